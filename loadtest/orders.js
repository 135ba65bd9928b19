// Orders per second, with clients that wait for each answer: k6 run loadtest/orders.js
//
//   BASE_URL  http://localhost:8080   the system's address (nginx, or one api instance)
//   VUS       20                      clients at the same time
//   DURATION  30s
//
// k6 run -e VUS=50 -e DURATION=1m loadtest/orders.js, or `make load VUS=50 DURATION=1m`, which fetches k6 as well.
// Nothing is imported from the network. The run fails when an answer is not a 202 or the 95th percentile exceeds 500 ms.
import { check } from 'k6';
import { newOrder, postOrder } from './lib.js';

export const options = {
  vus: Number(__ENV.VUS || 20),
  duration: __ENV.DURATION || '30s',
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    http_req_duration: ['p(95)<500'],
  },
};

export default function () {
  const response = postOrder(newOrder());
  check(response, { 'status 202': (r) => r.status === 202 });
}
