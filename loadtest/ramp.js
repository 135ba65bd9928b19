// Overload in an open model, whose clients do not wait for each other. Orders arrive at CAPACITY a second,
// then three times as many, then half as many. Some must be refused at once, and the others answered nearly
// as fast as at capacity. Probes must answer throughout, and the overload must end with the load.
//
//   BASE_URL  http://localhost:8080   preferably one api instance, not nginx: then its memory is checked, too
//   CAPACITY  500                     orders a second that it sustains: measure with loadtest/orders.js
//   SECONDS   30                      length of each of the three phases
//
// k6 run -e BASE_URL=http://localhost:8081 -e CAPACITY=2000 loadtest/ramp.js. Prints the 99th percentiles of both phases and their ratio.
// If k6 shares the machine with the system, k6 itself may be overloaded; see docs/performance.md.
import http from 'k6/http';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { newOrder, postOrder } from './lib.js';

const base = __ENV.BASE_URL || 'http://localhost:8080';
const capacity = Number(__ENV.CAPACITY || 500);
const seconds = Number(__ENV.SECONDS || 30);

const accepted = {
  capacity: new Trend('accepted_at_capacity', true),
  overload: new Trend('accepted_in_overload', true),
  after: new Trend('accepted_afterwards', true),
};
const refused = new Trend('refused', true);
const refusedAfter = new Counter('refused_afterwards');

// Every answer comes within half a minute, which bounds the requests in flight.
const clients = { preAllocatedVUs: 300, maxVUs: 2000, timeUnit: '1s' };
const phase = (name, start, executor) => ({
  ...clients,
  ...executor,
  exec: 'order',
  env: { PHASE: name },
  startTime: `${start}s`,
  gracefulStop: '5s',
});

export const options = {
  scenarios: {
    capacity: phase('capacity', 0, { executor: 'constant-arrival-rate', rate: capacity, duration: `${seconds}s` }),
    overload: phase('overload', seconds, {
      executor: 'ramping-arrival-rate',
      startRate: capacity,
      stages: [
        { target: 3 * capacity, duration: `${Math.ceil(seconds / 3)}s` },
        { target: 3 * capacity, duration: `${Math.floor((2 * seconds) / 3)}s` },
      ],
    }),
    // A second later, because the requests in flight must be answered first.
    after: phase('after', 2 * seconds + 1, {
      executor: 'constant-arrival-rate',
      rate: Math.ceil(capacity / 2),
      duration: `${seconds}s`,
    }),
    probes: { executor: 'constant-arrival-rate', rate: 4, duration: `${3 * seconds}s`, preAllocatedVUs: 20, exec: 'probe' },
  },
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max', 'count'],
  thresholds: {
    checks: ['rate==1'],
    refused: ['p(95)<100'],
    refused_afterwards: ['count==0'],
  },
};

export function order() {
  const response = postOrder(newOrder());
  check(response, {
    'accepted, or refused with Retry-After': (r) => r.status === 202 || (r.status === 503 && r.headers['Retry-After']),
  });
  if (response.status === 202) {
    accepted[__ENV.PHASE].add(response.timings.duration);
  } else {
    refused.add(response.timings.duration);
    if (__ENV.PHASE === 'after') refusedAfter.add(1);
  }
}

export function probe() {
  for (const path of ['/healthz', '/readyz']) {
    check(http.get(base + path, { tags: { name: `GET ${path}` } }), { 'probes answer': (r) => r.status === 200 });
  }
}

function memory() {
  const found = /^process_resident_memory_bytes (\S+)/m.exec(http.get(`${base}/metrics`).body);
  return found ? Math.round(Number(found[1]) / 2 ** 20) : null;
}

export const setup = () => ({ before: memory() });

export function teardown({ before }) {
  console.log(`resident memory of the api: ${before} MiB before, ${memory()} MiB afterwards`);
}

export function handleSummary({ metrics }) {
  const values = (name) => (metrics[name] ? metrics[name].values : { med: NaN, 'p(95)': NaN, 'p(99)': NaN, max: NaN, count: 0 });
  const line = (name) => {
    const v = values(name);
    const ms = (stat) => `${stat} ${v[stat].toFixed(1)} ms`.padEnd(18);
    return `${name.padEnd(22)} ${String(v.count).padStart(7)}   ${['med', 'p(95)', 'p(99)', 'max'].map(ms).join(' ')}\n`;
  };
  const ratio = values('accepted_in_overload')['p(99)'] / values('accepted_at_capacity')['p(99)'];
  const dropped = metrics.dropped_iterations ? metrics.dropped_iterations.values.count : 0;
  const failed = Object.entries(metrics).flatMap(([name, metric]) =>
    Object.entries(metric.thresholds || {}).filter(([, t]) => !t.ok).map(([rule]) => `${name}: ${rule}`),
  );
  const lines = ['accepted_at_capacity', 'accepted_in_overload', 'refused', 'accepted_afterwards'].map(line).join('');
  return {
    stdout:
      `\n${lines}p99 in overload / at capacity: ${ratio.toFixed(2)} (goal: 2 at most)\n` +
      `not sent, as k6 had no client free: ${dropped}\n` +
      (values('refused').count ? '' : 'nothing was refused: k6 could not send enough, or CAPACITY is too low\n') +
      `${failed.length ? `FAILED ${failed.join('; ')}` : 'all thresholds hold'}\n`,
  };
}
