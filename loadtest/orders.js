// Orders per second, as seen by clients that each wait for their answer: k6 run loadtest/orders.js
//
//   BASE_URL  http://localhost:8080   where the system answers (nginx, or one api instance)
//   VUS       20                      clients at the same time
//   DURATION  30s
//
// k6 run -e VUS=50 -e DURATION=1m loadtest/orders.js, or `make load VUS=50 DURATION=1m`, which fetches k6 as well.
// Nothing is imported from the network. The run fails when an answer is not a 202 or the 95th percentile exceeds 500 ms.
import http from 'k6/http';
import { check } from 'k6';

const url = `${__ENV.BASE_URL || 'http://localhost:8080'}/v1/orders`;

export const options = {
  vus: Number(__ENV.VUS || 20),
  duration: __ENV.DURATION || '30s',
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    http_req_duration: ['p(95)<500'],
  },
};

// A random (version 4) UUID.
function uuidv4() {
  const bytes = new Uint8Array(crypto.getRandomValues(new Uint8Array(16)));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

export default function () {
  const headers = { 'Content-Type': 'application/json', 'Idempotency-Key': uuidv4() };
  const body = JSON.stringify({ customer_email: `user${__VU}@example.com`, amount_cents: 1999 });

  const response = http.post(url, body, { headers, tags: { name: 'POST /v1/orders' } });
  check(response, { 'status 202': (r) => r.status === 202 });
}
