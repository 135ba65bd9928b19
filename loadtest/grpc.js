// Orders per second by gRPC, with clients that wait for each answer: k6 run loadtest/grpc.js
//
//   GRPC_ADDRESS  localhost:50051   the system's address (nginx, or one api instance)
//   VUS           20                clients at the same time, each with a connection of its own
//   DURATION      30s
//
// k6 run -e VUS=50 loadtest/grpc.js, or `make load SCRIPT=grpc VUS=50`, which fetches k6 as well.
// The run fails when an answer is not OK or the 95th percentile exceeds 500 ms.
import grpc from 'k6/net/grpc';
import { check } from 'k6';
import { uuidv4 } from './lib.js';

export const options = {
  vus: Number(__ENV.VUS || 20),
  duration: __ENV.DURATION || '30s',
  thresholds: {
    checks: ['rate==1'],
    grpc_req_duration: ['p(95)<500'],
  },
};

const client = new grpc.Client();
client.load(['../proto'], 'tbd/orders/v1/orders.proto');
let connected = false;

export default function () {
  if (!connected) {
    client.connect(__ENV.GRPC_ADDRESS || 'localhost:50051', { plaintext: true });
    connected = true;
  }
  const order = { customer_email: `user${__VU}@example.com`, amount_cents: 1999 };
  const metadata = { 'idempotency-key': uuidv4() };
  const response = client.invoke('tbd.orders.v1.OrderService/CreateOrder', order, { metadata, timeout: '35s' });
  check(response, { 'status OK': (r) => r.status === grpc.StatusOK });
}
