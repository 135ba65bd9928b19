'use strict';
// The page uses only routes that every client can use: /metrics, /readyz, /v1/orders.

const MINUTE = 60_000;
const NEWEST = 200; // orders on the board
const ROWS = 6; // orders in the table
const GONE = 5_000; // ms without an answer after which an instance is no longer shown
const CELLS = 128; // maximum number of threads drawn for an instance
const STATUSES = ['pending', 'processing', 'completed', 'failed', 'canceled'];
const UNFINISHED = ['pending', 'processing'];

const byId = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const most = (numbers) => Math.max(0, ...numbers);
const randomHex = (bytes) =>
  Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, '0')).join('');

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Sets a text only if it differs: screen readers would read the same text again.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
const say = (text) => { setText(byId('alarm'), ''); setText(byId('said'), text); };
const alarm = (text) => { setText(byId('said'), ''); setText(byId('alarm'), text); };

// ------------------------------------------------------------------------------------------------ asking the API

// A browser opens six connections to an address for requests with credentials, and six for those
// without. Reads go without, so they do not queue behind orders that wait for Kafka.
const look = (path) => ask(path, { credentials: 'omit', cache: 'no-store', signal: AbortSignal.timeout(4_000) });

// Sends the token, if the API requires one; only then the page shows the field for it.
async function ask(path, { headers, ...rest }) {
  const token = byId('token');
  const authorization = token.value && { Authorization: `Bearer ${token.value}` };
  const response = await fetch(path, { headers: { ...headers, ...authorization }, ...rest });
  if (response.status === 401) token.parentElement.hidden = false;
  return response;
}

async function lookAtJson(path) {
  const response = await look(path);
  if (!response.ok) throw new Error(await inWords(response));
  return response.json();
}

// The text of an error response: problem details, RFC 9457.
async function inWords(response) {
  const problem = await response.json().catch(() => ({}));
  return `${problem.title ?? 'Error'} (${response.status}). ${problem.detail ?? ''}`.trim();
}

const seconds = (ms) => `${(ms / 1_000).toFixed(1)} s`;
const noAnswer = () => `No answer from ${location.host}.`;

// ------------------------------------------------------------------------------------------------------- posting

const mine = []; // orders posted here, newest first
let posting = 0;

// `base`: the path of a twin; none for tbd, whose newest posts the table shows.
function newPost(isAlone, base = '') {
  const amount = byId('amount_cents').valueAsNumber;
  const body = { customer_email: byId('customer_email').value, amount_cents: Number.isNaN(amount) ? null : amount };
  const post = { key: randomHex(16), body, isAlone, base, status: 'sending' };
  if (!base) {
    mine.unshift(post);
    mine.length = Math.min(mine.length, ROWS);
  }
  return post;
}

async function send(post) {
  Object.assign(post, { status: 'sending', why: '', trace: randomHex(16) });
  posting++;
  showMine();
  const begun = performance.now();
  try {
    const response = await ask(`${post.base}/v1/orders`, {
      method: 'POST',
      headers: {
        'Content-Type': 'application/json',
        'Idempotency-Key': post.key,
        traceparent: `00-${post.trace}-${randomHex(8)}-01`,
      },
      body: JSON.stringify(post.body),
    });
    if (response.ok) {
      post.order = await response.json();
      post.status = post.order.status;
    } else {
      if (response.status === 400) showFaults((await response.clone().json()).errors);
      post.status = 'refused';
      post.why = await inWords(response);
    }
  } catch {
    post.status = 'refused';
    post.why = noAnswer();
  }
  post.ms = performance.now() - begun;
  posting--;
  showMine();
}

async function sendOne(post) {
  showFaults([]);
  say('Sending the order…');
  await send(post);
  if (post.status === 'refused') alarm(`The order was not accepted: ${post.why}`);
  else say(`Order ${post.order.id} is accepted.`);
}

async function sendBurst(count) {
  const buttons = document.querySelectorAll('[data-burst]');
  buttons.forEach((button) => { button.disabled = true; });
  showFaults([]);
  const { refused, ms } = await burst(count, '');
  for (const name of twins) await burst(count, `/twins/${name}`);
  if (refused.length) alarm(`${refused.length} of ${count} orders were not accepted: ${refused[0].why}`);
  else say(`${count} orders were accepted in ${seconds(ms)}.`);
  buttons.forEach((button) => { button.disabled = false; });
}

// One program after the other: they share the machine, and the browser's connections.
async function burst(count, base) {
  const begun = performance.now();
  const posts = Array.from({ length: count }, () => newPost(false, base));
  say(`Sending ${count} orders${base && ` to ${base}`}…`);
  await Promise.all(posts.map(send));
  const result = { refused: posts.filter((post) => post.status === 'refused'), ms: performance.now() - begun };
  if (twins.length) showBurst(base, posts, result, await untilDone(base, posts));
  return result;
}

// --------------------------------------------------------------------------------------------------- next to the twins

// The twins that nginx has behind it, by its header. Without any, nothing is asked of them or shown.
let twins = [];

function showTwins() {
  byId('twins').hidden = !twins.length;
  const names = ['', ...twins.map((name) => `/twins/${name}`)];
  const rows = byId('bursts');
  if (rows.children.length === names.length) return;
  rows.replaceChildren(...names.map((base) => {
    const row = element('tr', {}, element('th', { scope: 'row' }, base || 'tbd'), ...Array.from({ length: 6 }, () => element('td', {}, '–')));
    row.dataset.base = base;
    return row;
  }));
}

function showBurst(base, posts, { refused, ms }, done) {
  const delays = posts.map((post) => post.ms).sort((a, b) => a - b);
  const cells = [posts.length - refused.length, refused.length, seconds(ms),
    `${Math.round(delays[delays.length >> 1])} ms`, `${Math.round(delays.at(-1))} ms`, done];
  const row = [...byId('bursts').children].find((one) => one.dataset.base === base);
  if (row) cells.forEach((text, index) => setText(row.children[index + 1], String(text)));
}

// Waits until no order of a burst is unfinished, 15 s at most: how many are, and how long after the first order.
async function untilDone(base, posts) {
  const ids = new Set(posts.filter((post) => post.order).map((post) => post.order.id));
  let orders = [];
  for (const end = performance.now() + 15_000; ids.size && performance.now() < end; await sleep(200)) {
    orders = (await newest(base).catch(() => [])).filter((order) => ids.has(order.id));
    if (orders.length && !orders.some((order) => UNFINISHED.includes(order.status))) break;
  }
  const done = orders.filter((order) => order.status === 'completed');
  const times = (field) => done.map((order) => new Date(order[field]));
  return done.length ? `${done.length} in ${seconds(Math.max(...times('updated_at')) - Math.min(...times('created_at')))}` : '0';
}

async function cancel(post) {
  try {
    const response = await ask(`/v1/orders/${post.order.id}/cancel`, { method: 'POST' });
    if (!response.ok) return alarm(`The order was not canceled: ${await inWords(response)}`);
    learn(await response.json());
    say(`Order ${post.order.id} is canceled.`);
  } catch {
    alarm(`The order was not canceled: ${noAnswer()}`);
  }
}

function showFaults(errors = []) {
  for (const field of ['customer_email', 'amount_cents']) {
    const fault = errors.find((error) => error.field === field);
    byId(field).setAttribute('aria-invalid', String(Boolean(fault)));
    setText(byId(`${field}_fault`), fault?.message ?? '');
  }
}

// Applies the state of an order, unless a newer one is known.
function learn(order) {
  const post = mine.find((other) => other.order?.id === order.id);
  if (!post || post.order.updated_at >= order.updated_at) return;
  post.order = order;
  post.status = order.status;
  if (post.isAlone && !UNFINISHED.includes(order.status)) say(`Order ${order.id} is ${order.status}.`);
  showMine();
}

// The steps of an order that several services process. Other orders have no saga, and are asked for it once.
async function lookAtSaga(post) {
  const isFinal = !UNFINISHED.includes(post.status);
  const response = await look(`/v1/orders/${post.order.id}/saga`);
  if (response.ok) post.saga = await response.json();
  post.isSagaKnown = isFinal || response.status === 404;
  showMine();
}

// ------------------------------------------------------------------------------------------------ the table's rows

function showMine() {
  if (!mine.length) return;
  const focused = document.activeElement?.dataset.action;
  byId('mine').replaceChildren(...mine.map(row));
  if (focused) document.querySelector(`[data-action="${focused}"]`)?.focus();
}

function row(post) {
  const status = element('td', { className: 'status' }, element('i', { className: post.status }), post.status);
  if (post.why) status.append(element('span', { className: 'why' }, post.why));
  if (post.saga) status.append(element('span', { className: 'why' }, sagaInWords(post.saga)));
  return element('tr', {},
    element('td', {}, post.order ? orderLink(post.order.id) : '–'),
    status, element('td', {}, took(post.order)), element('td', {}, trace(post.trace)), element('td', {}, ...actions(post)));
}

// reserve_stock ✓, authorize_payment ✗ (insufficient_funds), release_reservation ✓
function sagaInWords({ steps, reason }) {
  const marks = { running: '…', done: '✓', refused: `✗ (${reason})` };
  const undone = steps.map((step) => step.compensation).filter(Boolean).reverse();
  const calls = [...steps, ...undone].filter((step) => step.state !== 'pending');
  return calls.map((step) => `${step.name} ${marks[step.state]}`).join(', ');
}

function orderLink(id) {
  const link = element('a', { href: `/v1/orders/${id}`, title: id }, element('code', {}, `…${id.slice(-12)}`));
  link.setAttribute('aria-label', `Order ${id}`);
  return link;
}

// The time from creation to the last change, by the order's timestamps, not the browser's clock.
function took(order) {
  if (!order || UNFINISHED.includes(order.status)) return '–';
  const ms = new Date(order.updated_at) - new Date(order.created_at);
  return ms < 1_000 ? `${ms} ms` : seconds(ms);
}

function trace(id = '') {
  const { jaeger } = document.documentElement.dataset;
  if (!jaeger) return element('code', {}, id);
  const link = element('a', { href: `${jaeger}/trace/${id}`, target: '_blank', rel: 'noopener noreferrer', title: id },
    element('code', {}, `${id.slice(0, 8)}…`));
  link.setAttribute('aria-label', `Trace ${id} in Jaeger`);
  return link;
}

function actions(post) {
  const button = (name, title, act) => {
    const made = element('button', { type: 'button', title, onclick: act }, name);
    made.dataset.action = `${name} ${post.key}`;
    return [made];
  };
  if (post.status === 'pending') return button('Cancel', 'Possible until a worker begins it', () => cancel(post));
  if (post.status === 'refused') {
    return button('Try again', 'With the same Idempotency-Key, so that it is never ordered twice', () => sendOne(post));
  }
  return [];
}

// -------------------------------------------------------------------------------------------------------- plots

class Plot {
  constructor(id) {
    this.root = byId(id);
    this.points = [];
  }

  add(value, unit, caption = '') {
    const now = performance.now();
    this.points.push([now, value]);
    while (this.points.length > 1 && this.points[1][0] < now - MINUTE) this.points.shift();
    const highest = most(this.points.map(([, v]) => v));
    const x = (time) => (200 - ((now - time) / MINUTE) * 200).toFixed(1);
    const y = (v) => (40 - (v / Math.max(highest, 4)) * 38).toFixed(1);
    // A value is valid until the next measurement.
    const steps = this.points.map(([time, v], index) => `${index ? `H${x(time)}V` : `M${x(time)},`}${y(v)}`).join('');
    const within = (selector) => this.root.querySelector(selector);
    within('.line').setAttribute('d', steps);
    within('.area').setAttribute('d', `${steps}V40H${x(this.points[0][0])}Z`);
    const [number, words] = within('.value').childNodes;
    setText(number, String(value));
    setText(words, ` ${unit}`);
    setText(within('.most'), `at most ${highest}${caption && `; ${caption}`}`);
    within('svg').setAttribute('aria-label', `${value} ${unit}; at most ${highest} in the last minute`);
  }
}
const plots = Object.fromEntries(['queue', 'threads', 'database', 'kafka', 'backlog'].map((id) => [id, new Plot(id)]));

// ------------------------------------------------------------------------------------------- metrics of the instances

const instances = new Map(); // by name: time of the last answer, current and previous metrics

// Parses Prometheus' text into a map from name to value, summed over the labels.
function parseMetrics(text) {
  const values = new Map();
  for (const [, name, value] of text.matchAll(/^(\w+)(?:\{.*\})? (\S+)$/gm)) {
    values.set(name, (values.get(name) ?? 0) + Number(value));
  }
  return (name) => values.get(name) ?? 0;
}

async function lookAtMetrics() {
  // A load balancer takes the instances in turn: one request more than there are finds a new one.
  const looks = Array.from({ length: Math.min(instances.size || 1, 4) }, () => look('/metrics'));
  const now = performance.now();
  let why = noAnswer();
  for (const { value: response } of await Promise.allSettled(looks)) {
    if (!response?.ok) {
      if (response) why = await inWords(response);
      continue;
    }
    const name = response.headers.get('Tbd-Instance') ?? location.host;
    twins = (response.headers.get('Tbd-Twins') ?? '').split(', ').filter(Boolean);
    instances.set(name, { seen: now, now: parseMetrics(await response.text()), before: instances.get(name)?.now });
  }
  for (const [name, { seen }] of instances) if (now - seen > GONE) instances.delete(name);
  if (instances.size) showMetrics([...instances.values()]);
  showLanes();
  showTwins();
  setText(byId('blind'), instances.size ? '' : `No numbers from /metrics: ${why}`);
}

function showMetrics(all) {
  const each = (name) => all.map((instance) => instance.now(name));
  const total = (name) => sum(each(name));
  plots.queue.add(total('http_queue_depth'), 'waiting', mean(all, 'http_queue_wait_seconds'));
  plots.threads.add(total('http_threads_busy'), `of ${total('http_threads')} busy`);
  const waiting = total('db_connections_waiting');
  plots.database.add(total('db_connections_in_use'), `of ${total('db_connections_max')} in use`, waiting ? `${waiting} threads wait` : '');
  // All instances measure the same outbox.
  plots.kafka.add(most(each('outbox_backlog')), 'in the outbox', mean(all, 'kafka_producer_latency_seconds'));
  setText(byId('breaker'), ['closed', 'half-open', 'open'][most(all.map((one) => one.now('circuit_breaker_state')))] ?? 'open');
}

// The mean of the observations since the previous measurement.
function mean(all, histogram) {
  const grown = (suffix) => sum(all.map(({ now, before }) => (before ? now(histogram + suffix) - before(histogram + suffix) : 0)));
  const count = grown('_count');
  return count > 0 ? `${((grown('_sum') / count) * 1000).toFixed(1)} ms each` : '';
}

function showLanes() {
  const names = [...instances.keys()].sort();
  const lanes = byId('lanes');
  while (lanes.children.length > names.length) lanes.lastChild.remove();
  while (lanes.children.length < names.length) {
    lanes.append(element('div', { className: 'lane' }, element('code'), element('div'), element('span')));
  }
  names.forEach((name, index) => {
    const metric = instances.get(name).now;
    const [label, cells, count] = lanes.children[index].children;
    const threads = metric('http_threads');
    const busy = metric('http_threads_busy');
    const drawn = Math.min(threads, CELLS);
    setText(label, name);
    setText(count, `${busy} of ${threads} busy`);
    while (cells.children.length > drawn) cells.lastChild.remove();
    while (cells.children.length < drawn) cells.append(element('i'));
    const lit = Math.ceil((busy * drawn) / threads);
    [...cells.children].forEach((cell, number) => cell.classList.toggle('busy', number < lit));
  });
}

// ------------------------------------------------------------------------------------------------------- orders

let unfinished = 0;

async function newest(base) {
  const orders = [];
  let next = '';
  do {
    const page = await lookAtJson(`${base}/v1/orders?page_size=100${next}`);
    orders.push(...page.orders);
    next = page.next_cursor && `&cursor=${page.next_cursor}`;
  } while (next && orders.length < NEWEST);
  return orders;
}

async function lookAtOrders() {
  try {
    const orders = await newest('');
    showBoard(orders);
    orders.forEach(learn);
    // Other clients may post so many orders that this page's are no longer among the newest.
    const known = new Set(orders.map((order) => order.id));
    for (const { order } of mine.filter((post) => UNFINISHED.includes(post.status) && !known.has(post.order.id))) {
      learn(await lookAtJson(`/v1/orders/${order.id}`));
    }
    const begun = mine.filter((post) => post.order && !post.isSagaKnown && !['pending', 'canceled'].includes(post.status));
    await Promise.all(begun.map(lookAtSaga));
    byId('board').classList.remove('stale');
  } catch {
    byId('board').classList.add('stale'); // the header shows the reason
  }
}

function showBoard(orders) {
  const board = byId('board');
  while (board.children.length > orders.length) board.lastChild.remove();
  while (board.children.length < orders.length) board.append(element('i'));
  orders.forEach((order, index) => { board.children[index].className = order.status; });
  const counts = STATUSES.map((status) => orders.filter((order) => order.status === status).length);
  document.querySelectorAll('#legend b').forEach((node, index) => setText(node, String(counts[index])));
  unfinished = counts[0] + counts[1];
  plots.backlog.add(unfinished, 'to do');
}

// ------------------------------------------------------------------------------------------------------- health

async function lookAtHealth() {
  let words;
  try {
    const response = await look('/readyz');
    if (response.ok) words = '';
    else {
      const { checks } = await response.clone().json().catch(() => ({}));
      const faults = Object.entries(checks ?? {}).filter(([, verdict]) => verdict !== 'ok');
      words = faults.length ? `Not ready: ${faults.map(([name, why]) => `${name} (${why})`).join(', ')}` : await inWords(response);
    }
  } catch {
    words = `${noAnswer()} Asking again every second.`;
  }
  byId('health').dataset.is = words ? 'bad' : 'good';
  setText(byId('health'), words || 'Ready: database and Kafka answer');
}

// Repeats a task with a pause between, while the page is visible.
async function keep(doing, pause) {
  for (;;) {
    if (!document.hidden) await doing().catch(() => {});
    await sleep(pause());
  }
}

byId('form').addEventListener('submit', (event) => {
  event.preventDefault();
  sendOne(newPost(true));
});
document.querySelectorAll('[data-burst]').forEach((button) => {
  button.addEventListener('click', () => sendBurst(Number(button.dataset.burst)));
});
keep(lookAtMetrics, () => (posting ? 100 : 500));
keep(lookAtOrders, () => (posting || unfinished ? 250 : 1_000));
keep(lookAtHealth, () => 1_000);
