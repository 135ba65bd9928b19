// A shop's load: more reads than new orders. k6 run loadtest/mixed.js
//
//   BASE_URL  http://localhost:8080
//   VUS       20       clients at the same time, each of which waits for its answers
//   DURATION  30s
//   WRITES    0.2      share of requests that create an order; the others get one by id (3 of 4) or list the newest
//
// The run fails when an answer is not the expected one or the 95th percentile exceeds 500 ms.
import http from 'k6/http';
import { check } from 'k6';
import { newOrder, postOrder, url } from './lib.js';

const writes = Number(__ENV.WRITES || 0.2);

export const options = {
  vus: Number(__ENV.VUS || 20),
  duration: __ENV.DURATION || '30s',
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'http_req_duration{name:POST /v1/orders}': ['p(95)<500'],
    'http_req_duration{name:GET /v1/orders/:id}': ['p(95)<500'],
    'http_req_duration{name:GET /v1/orders}': ['p(95)<500'],
  },
};

// The latest orders of this client.
const KEPT = 100;
const mine = [];

export default function () {
  if (mine.length === 0 || Math.random() < writes) {
    const response = postOrder(newOrder());
    if (check(response, { 'made: 202': (r) => r.status === 202 })) {
      mine.push(response.json('id'));
      if (mine.length > KEPT) mine.shift();
    }
  } else if (Math.random() < 0.75) {
    const id = mine[Math.floor(Math.random() * mine.length)];
    const response = http.get(`${url}/${id}`, { tags: { name: 'GET /v1/orders/:id' } });
    check(response, { 'got: 200, the order': (r) => r.status === 200 && r.json('id') === id });
  } else {
    const response = http.get(url, { tags: { name: 'GET /v1/orders' } });
    check(response, { 'listed: 200, a page': (r) => r.status === 200 && r.json('orders').length > 0 });
  }
}
