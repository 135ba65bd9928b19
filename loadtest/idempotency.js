// One order, however often it is sent. k6 run loadtest/idempotency.js
//
//   BASE_URL  http://localhost:8080
//   VUS       20       clients at the same time
//   DURATION  30s
//   TWINS     4        requests with one key that are sent at the same moment
//
// Each round sends a new order TWINS times at once, then once more, then another order with the same key.
// All answers but the last must be identical, one of them the original and the others marked as replayed.
// The last request must be refused.
import http from 'k6/http';
import { check } from 'k6';
import { Counter } from 'k6/metrics';
import { newOrder, orderRequest, postOrder } from './lib.js';

const twins = Number(__ENV.TWINS || 4);
const stillRunning = new Counter('twins_told_to_come_back');

http.setResponseCallback(http.expectedStatuses(202, 409, 422));

export const options = {
  vus: Number(__ENV.VUS || 20),
  duration: __ENV.DURATION || '30s',
  batchPerHost: twins,
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    http_req_duration: ['p(95)<1000'],
  },
};

const isReplay = (response) => response.headers['Idempotent-Replayed'] === 'true';

export default function () {
  const order = newOrder(1999);
  const answers = http.batch(Array.from({ length: twins }, () => orderRequest(order)));
  // A twin gets 409 if its first request takes too long; it may retry.
  const accepted = answers.filter((answer) => answer.status !== 409);
  stillRunning.add(answers.length - accepted.length);
  const again = postOrder(order);
  check(accepted, {
    'twins: 202 and the same answer': (all) =>
      all.every((answer) => answer.status === 202 && answer.body === again.body),
    'twins: one is the first': (all) => all.filter((answer) => !isReplay(answer)).length <= 1,
  });
  check(again, { 'again: 202, replayed': (r) => r.status === 202 && isReplay(r) });

  const other = postOrder({ key: order.key, body: newOrder(2999).body });
  check(other, { 'another order with this key: 422': (r) => r.status === 422 });
}
