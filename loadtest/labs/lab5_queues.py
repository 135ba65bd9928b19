"""A queue that is full against one that grows."""

import lab

THREADS, WAIT = 4, 0.5 if lab.SHORT else 0.05
CAPACITY = THREADS / WAIT  # of the api, and of the worker
RATE = 3 * CAPACITY
DURATION = 3 if lab.SHORT else 6


def by_second(results):
    """The mean delay of the accepted requests of each half second."""
    halves = [[] for _ in range(2 * DURATION)]
    for planned, status, delay in results:
        if status < 300:
            halves[int(planned * 2)].append(delay * 1000)
    return [sum(half) / max(1, len(half)) for half in halves]


def full():
    """Requests in the api's queue, which has an end."""
    with lab.slow_database(WAIT * 1000, lab.free_port()) as slow, lab.api(HTTP_WORKERS=str(THREADS), **lab.ALONE, **slow) as api:
        lab.load.wrk(api, "get.lua", THREADS, 1, {})
        with lab.watch(api, "http_queue_depth") as seen:
            results = lab.at_a_rate(RATE, DURATION, "GET")
    return results, seen["http_queue_depth"]


def growing():
    """Orders in Kafka's log, which has none."""
    with lab.api() as _, lab.worker(WORKER_CONCURRENCY=str(THREADS), PROCESSING_TIME=f"{WAIT * 1000:.0f}ms"):
        results = lab.at_a_rate(RATE, DURATION, "POST")
        lab.wait_until("the worker", 240, lambda: lab.sql("SELECT NOT EXISTS (SELECT FROM orders WHERE status IN ('pending', 'processing'))") == "t")
        left = int(lab.sql("SELECT count(*) FROM orders WHERE updated_at > (SELECT max(created_at) FROM orders)"))
        delays = lab.sql("""SELECT 1000 * avg(extract(epoch FROM updated_at - created_at)) FROM orders, (SELECT min(created_at) AS begun FROM orders) AS first
                            GROUP BY floor(2 * extract(epoch FROM created_at - begun)) ORDER BY min(created_at)""")
    return results, left, [float(delay) for delay in delays.split()]


with lab.experiment():
    lab.seed(1000)
    results, depth = full()
    refused = sum(status == 503 for _, status, _ in results)
    accepted = by_second(results)
    lab.curve("HTTP queue: requests waiting", depth[:: max(1, len(depth) // 60)], "requests")
    lab.curve("HTTP queue: delay of the accepted, by half second", accepted, "ms")
    lab.sql("TRUNCATE orders, idempotency_keys, outbox")
    posted, left, delays = growing()
    lab.curve("topic: delay from the POST to completed, by half second of the POST", delays, "ms")
    in_time = sum(status == 202 for _, status, _ in posted)
    lab.table(
        [f"{RATE:.0f}/s offered, {CAPACITY:.0f}/s possible", "accepted", "refused", "waiting at the end", "delay of the last"],
        [
            ("the HTTP queue", len(results) - refused, refused, round(depth[-1]), f"{accepted[-1]:,.0f} ms"),
            ("the topic", in_time, len(posted) - in_time, left, f"{delays[-1]:,.0f} ms"),
        ],
    )
    lab.claim("a full queue refuses what is too much", refused > 0)
    lab.claim("its queue ends shorter than it was at its longest", depth[-1] < max(depth))
    lab.claim("the topic refuses nothing", in_time == len(posted))
    lab.claim("the topic's queue is longest at the end, and holds what the worker could not do", left > 0)
    lab.claim("the last orders wait longer than the first", delays[-1] > delays[0])
