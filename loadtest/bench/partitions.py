"""scripts/partition-orders on a live table; scripts/bench-partitions sets everything up and explains the settings."""

import http.client
import json
import queue
import subprocess
import sys
import threading
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path

import load
from intervals import median_interval, verdict
from processes import first_line, machine
from system import ENV, HERE, Program, psql

ORDERS = int(ENV.get("ORDERS") or 10_000_000)
RATE, QUIET = int(ENV.get("RATE") or 300), int(ENV.get("QUIET") or 60)
TURNS, DURATION = int(ENV.get("TURNS") or 6), int(ENV.get("DURATION") or 4)
API_PORT = int(ENV["BENCH_API_PORT"])
SCRIPT = HERE.parent.parent / "scripts/partition-orders"
DAYS = 90
DAY_MS = 24 * 3600 * 1000
SINCE_MS = (int(time.time() * 1000) // DAY_MS - DAYS) * DAY_MS
STEP_MS = DAYS * DAY_MS // ORDERS
ENV.update(KNOWN_ORDERS=str(ORDERS), KNOWN_SINCE_MS=str(SINCE_MS), KNOWN_STEP_MS=str(STEP_MS))
# One table; the same after the script; the orders in partitions of these days.
PARTITIONED = {"tbd_weeks": 7, "tbd_days": 1}
TABLES = {"tbd_plain": "one table", "tbd": "the script's first five partitions", "tbd_weeks": f"{-(-DAYS // 7)} partitions and five", "tbd_days": f"{DAYS} partitions and five"}
PARTS = {"get": "GET by id", "list": "list, newest first", "post": "POST"}
BATCH = 500_000


def sql(database, text):
    return psql("-d", database, "-c", text)


def log(text):
    print(f"{datetime.now(timezone.utc):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def api(database, **settings):
    return Program("tbd-api", API_PORT, {"DB_NAME": database, **settings})


def fill(database):
    """Orders of the last days, oldest first, one in a hundred failed."""
    index = sql(database, "SELECT pg_get_indexdef('orders_status_id'::regclass)").replace(" ON ONLY ", " ON ")
    sql(database, "DROP INDEX orders_status_id")
    for first in range(1, ORDERS + 1, BATCH):
        sql(database, f"""INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
            SELECT (left(hex, 8) || '-' || right(hex, 4) || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
                   'user' || n || '@example.com', n, CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'completed' END, at, at
              FROM generate_series({first}, {min(first + BATCH - 1, ORDERS)}) AS n,
                   lpad(to_hex({SINCE_MS} + n::bigint * {STEP_MS}), 12, '0') AS hex,
                   to_timestamp(({SINCE_MS} + n::bigint * {STEP_MS}) / 1000.0) AS at""")
    sql(database, index)
    sql(database, "VACUUM ANALYZE orders")


def script(database, *arguments):
    """Runs the script. Returns its lines, each with its time."""
    began = time.monotonic()
    process = subprocess.Popen([SCRIPT, *arguments], env={**ENV, "PGDATABASE": database}, stderr=subprocess.PIPE, text=True)
    lines = [(line.strip(), time.monotonic()) for line in process.stderr]
    if process.wait() != 0:
        raise RuntimeError(lines)
    return [("begun", began), *lines, ("ended", time.monotonic())]


class Posts:
    """New orders at a fixed rate. A delay counts from the planned moment, so one stall shows in all orders behind it."""

    def __init__(self):
        self.sent, self.planned, self.ending = [], queue.Queue(), threading.Event()
        self.threads = [threading.Thread(target=self.plan), *(threading.Thread(target=self.send) for _ in range(64))]
        for thread in self.threads:
            thread.start()

    def plan(self):
        at = time.monotonic()
        while not self.ending.is_set():
            time.sleep(max(0.0, at - time.monotonic()))
            self.planned.put(at)
            at += 1 / RATE
        for _ in self.threads[1:]:
            self.planned.put(None)

    def send(self):
        connection = http.client.HTTPConnection("127.0.0.1", API_PORT, timeout=40)
        while (at := self.planned.get()) is not None:
            headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
            try:
                connection.request("POST", "/v1/orders", '{"customer_email":"user@example.com","amount_cents":1999}', headers)
                response = connection.getresponse()
                response.read()
                status = response.status
            except OSError:
                connection.close()
                status = 0
            self.sent.append((at, 1000 * (time.monotonic() - at), status))

    def end(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()
        self.sent.sort()

    def between(self, name, begin, end):
        delays = sorted(delay for at, delay, _ in self.sent if begin <= at < end)
        others = sum(status != 202 for at, _, status in self.sent if begin <= at < end)
        quantile = lambda q: delays[min(int(q * len(delays)), len(delays) - 1)] if delays else 0.0
        return {"name": name, "seconds": end - begin, "posts": len(delays), "others": others, "p50": quantile(0.5),
                "p99": quantile(0.99), "max": quantile(1)}


def change():
    """The script on the live table: what each step took, and what the clients saw."""
    with api("tbd"):
        posts = Posts()
        quiet = time.monotonic()
        time.sleep(QUIET)
        times = dict((line.split(":")[0], at) for line, at in script("tbd", "start", "day"))
        time.sleep(10)
        posts.end()
    steps = ["begun", "expanded", "validated", "contracted", "ended"]
    names = ["expand: the CHECK, not valid", "validate it", "contract: rename, create, attach", "three partitions ahead"]
    phases = [posts.between("before", quiet, times["begun"])]
    for name, begin, end in zip(names, steps, steps[1:]):
        phases.append(posts.between(name, times[begin], times[end]))
    phases.append(posts.between("10 s after", times["ended"], times["ended"] + 10))
    rows = int(sql("tbd", "SELECT count(*) FROM orders"))
    accepted = sum(status == 202 for _, _, status in posts.sent)
    log(f"{rows} orders, {accepted} of them accepted meanwhile")
    if rows != ORDERS + accepted:
        raise RuntimeError("orders are lost or doubled")
    return phases


def partition(database, days):
    """The orders in partitions of so many days, and the script's partitions after them."""
    psql("-d", "postgres", "-c", f"CREATE DATABASE {database}")
    with api(database):
        pass
    script(database, "start", "day")
    before, end = sql(database, """SELECT relname, substring(pg_get_expr(relpartbound, oid) FROM 'TO \(''([^'']+)')
                                   FROM pg_class WHERE relname ~ '^orders_before_\\d+$'""").split("|")
    begins = range(SINCE_MS, SINCE_MS + DAYS * DAY_MS, days * DAY_MS)
    name = lambda ms: datetime.fromtimestamp(ms / 1000, timezone.utc).strftime("orders_%Y%m%d")
    ends = [*map(lowest_id, begins[1:]), end]
    partitions = (f"CREATE TABLE {name(begin)} PARTITION OF orders FOR VALUES FROM ('{lowest_id(begin)}') TO ('{end}');" for begin, end in zip(begins, ends))
    sql(database, f"DROP TABLE {before}; {' '.join(partitions)}")
    fill(database)


def lowest_id(ms):
    return f"{ms >> 16:08x}-{ms & 0xffff:04x}-0000-0000-000000000000"


def wal():
    return int(sql("tbd", "SELECT pg_current_wal_lsn() - '0/0'").split(".")[0])


def remove():
    """Half of the orders: by partitions, and by DELETE from the plain table. New orders come at the same time."""
    found = {}
    half = DAYS // 2
    oldest = lowest_id(SINCE_MS + half * DAY_MS)
    ways = {
        "tbd_days": lambda: script("tbd_days", "drop", "--older-than", f"{DAYS - half}d"),
        "tbd_plain": lambda: sql("tbd_plain", f"DELETE FROM orders WHERE id < '{oldest}'"),
    }
    for database, way in ways.items():
        sql(database, "CHECKPOINT")
        size = lambda: int(sql(database, "SELECT pg_database_size(current_database())"))
        with api(database, EVENT_DELIVERY="direct"):
            posts = Posts()
            time.sleep(5)
            size_before, wal_before, begin = size(), wal(), time.monotonic()
            way()
            end = time.monotonic()
            written, freed = wal() - wal_before, size_before - size()
            posts.end()
        found[database] = {**posts.between(database, begin, end), "wal": written, "freed": freed}
        log(json.dumps(found[database]))
    return found


def compare():
    turns = []
    for number in range(TURNS):
        databases = list(TABLES)
        databases = databases[number % len(databases):] + databases[: number % len(databases)]
        turn = {}
        for database in databases:
            with api(database) as program:
                load.wrk(program, "get.lua", 16, 1, None)  # warms caches and plans
                turn[database] = {part: load.wrk(program, f"{part}.lua", 16, DURATION, None) for part in PARTS}
        turns.append({database: {part: run["throughput"] for part, run in runs.items()} for database, runs in turn.items()})
        errors = sum(run["errors"] for runs in turn.values() for run in runs.values())
        log(json.dumps(turns[-1]) + f" errors: {errors}")
    return turns


def report(phases, removed, turns):
    about = machine()
    commit = first_line("git", "-C", str(HERE), "describe", "--always", "--dirty")
    lines = [
        "# Partitions", "",
        f"`make bench-partitions`, {datetime.now(timezone.utc):%Y-%m-%d}, commit {commit}, on {about['cores']} cores ({about['cpu']}), load average before it "
        f"{about['load_before']:.1f}. {ORDERS:,} orders of {DAYS} days; PostgreSQL with durable commits, Kafka, api and load on one machine.", "",
        "## The change of a live table", "",
        f"`scripts/partition-orders start day` while {RATE} orders/s arrive. A delay counts from the planned moment of the POST, so it includes "
        "a wait for a lock. No order was lost or doubled.", "",
        "| | Seconds | POSTs | Not 202 | Median, ms | p99, ms | Slowest, ms |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {it['name']} | {it['seconds']:.2f} | {it['posts']:,} | {it['others']} | {it['p50']:.1f} | {it['p99']:.0f} | {it['max']:.0f} |" for it in phases]
    lines += ["", "## Half of the orders go", "", f"{DAYS // 2} of {DAYS} days, while {RATE} orders/s arrive. The vacuum that a `DELETE` needs afterwards is not in its figures.", "",
              "| | Seconds | WAL, MB | Disk freed, MB | POSTs | Not 202 | p99 of a POST, ms | Slowest, ms |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for database, name in (("tbd_days", "`drop --older-than`"), ("tbd_plain", "`DELETE` from a plain table, one statement")):
        it = removed[database]
        lines.append(f"| {name} | {it['seconds']:.1f} | {it['wal'] / 1e6:,.0f} | {max(0, it['freed']) / 1e6:,.0f} | {it['posts']:,} | {it['others']} | {it['p99']:.0f} | {it['max']:.0f} |")
    lines += ["", "## What partitions cost", "",
              f"Requests per second of 16 connections, {DURATION} s each, in {len(turns)} turns of all four databases. The ratio to one table is taken within a turn; "
              "the interval is of 95 %, by the sign test.", "",
              "| | One table | | Ratio | 95 % interval | |", "| --- | ---: | --- | ---: | --- | --- |"]
    for part, name in PARTS.items():
        plain = median_interval([turn["tbd_plain"][part] for turn in turns])[0]
        for database in list(TABLES)[1:]:
            ratio, low, high = median_interval([turn[database][part] / turn["tbd_plain"][part] for turn in turns])
            interval = "" if low is None else f"{low:.2f} to {high:.2f}"
            lines.append(f"| {name} | {plain:,.0f} | {TABLES[database]} | {ratio:.2f} | {interval} | {verdict(low, high)} |")
    return "\n".join([*lines, ""])


def main():
    with api("tbd"):
        pass  # migrates the empty database
    log("filling the table")
    fill("tbd")
    psql("-d", "postgres", "-c", "CREATE DATABASE tbd_plain TEMPLATE tbd STRATEGY file_copy")
    for database, days in PARTITIONED.items():
        log(f"filling partitions of {days} days")
        partition(database, days)
    sql("tbd", "CHECKPOINT")
    log("changing the live table")
    phases = change()
    for phase in phases:
        log(json.dumps(phase))
    log("comparing")
    turns = compare()
    log("removing")
    removed = remove()
    path = Path(ENV.get("RESULT") or HERE.parent / "results/partitions.md")
    path.write_text(report(phases, removed, turns))
    log(f"written: {path}")


main()
