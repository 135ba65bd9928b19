// Shared code of the k6 scripts. Nothing is imported from the network.
import http from 'k6/http';

export const url = `${__ENV.BASE_URL || 'http://localhost:8080'}/v1/orders`;

// A random (version 4) UUID.
export function uuidv4() {
  const bytes = new Uint8Array(crypto.getRandomValues(new Uint8Array(16)));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

// An order, and the key of all its requests.
export function newOrder(amountCents = 1999) {
  const body = JSON.stringify({ customer_email: `user${__VU}@example.com`, amount_cents: amountCents });
  return { key: uuidv4(), body };
}

// The request of `postOrder`, for http.batch.
export function orderRequest({ key, body }) {
  const headers = { 'Content-Type': 'application/json', 'Idempotency-Key': key };
  return { method: 'POST', url, body, params: { headers, tags: { name: 'POST /v1/orders' } } };
}

export function postOrder(order) {
  const { body, params } = orderRequest(order);
  return http.post(url, body, params);
}
