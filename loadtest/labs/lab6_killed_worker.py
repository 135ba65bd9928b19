"""A worker killed in the middle."""

import signal
import threading

import lab

ORDERS = 100 if lab.SHORT else 400
STEP = "200ms" if lab.SHORT else "50ms"
SESSION = 6  # seconds, the shortest that tbd takes


def done():
    return int(lab.sql("SELECT count(*) FROM orders WHERE status = 'completed'"))


def announced():
    """Records in order.processed."""
    offsets = lab.kafka_tool("org.apache.kafka.tools.GetOffsetShell", "--bootstrap-server", lab.ENV["KAFKA_BROKERS"], "--topic",
                             lab.TOPICS["KAFKA_TOPIC_ORDER_PROCESSED"])
    return sum(int(line.rpartition(":")[2]) for line in offsets.split())


with lab.experiment():
    settings = {"WORKER_CONCURRENCY": "2", "PROCESSING_TIME": STEP, "KAFKA_SESSION_TIMEOUT": f"{SESSION}s"}
    with lab.api(), lab.worker(0, **settings) as first, lab.worker(1, **settings):
        lab.sql("TRUNCATE orders, idempotency_keys, outbox")
        posting = threading.Thread(target=lab.at_a_rate, args=(200, ORDERS / 200, "POST"))
        posting.start()
        lab.wait_until("the first orders", 60, lambda: first.counter("orders_processed_total") > 0)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        before = done()
        posting.join()
        killed_at = lab.sql("SELECT extract(epoch FROM clock_timestamp())")
        lab.wait_until("every order", 120, lambda: done() == ORDERS)
        events = announced()
    took = lab.sql(f"SELECT floor(4 * (extract(epoch FROM updated_at) - {killed_at})) AS quarter, count(*) FROM orders GROUP BY 1 ORDER BY 1")
    per_quarter = {int(quarter): int(count) for quarter, count in (line.split("|") for line in took.split())}
    first_quarter, last_quarter = min(per_quarter), max(per_quarter)
    lab.curve(f"orders completed in each quarter of a second; the kill is {-first_quarter / 4:.1f} s after the beginning",
              [per_quarter.get(quarter, 0) for quarter in range(first_quarter, last_quarter + 1)], "orders")
    lab.table(
        ["", "orders"],
        [("completed before the kill", before), ("completed in the end", done()), ("announced", events), ("announced more than once", events - ORDERS),
         ("the last one, after the kill", f"{(last_quarter + 1) / 4:.1f} s")],
    )
    lab.claim("no order is lost", done() == ORDERS)
    lab.claim("each is announced, some perhaps twice", events >= ORDERS)
    lab.claim(f"the dead worker's orders wait for the group to miss it, about {SESSION} s", last_quarter / 4 > SESSION / 2)
