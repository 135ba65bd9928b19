#!/usr/bin/env python3
"""Capacity model for docs/scaling.md: the needs of tens, hundreds and thousands of times this machine's load.

usage: loadtest/scaling.py [RESULTS]      RESULTS: a bench.json of `make bench`; the default is loadtest/results/bench.json

Two models, both small enough to verify by reading:
- arithmetic: the measured CPU time of an order in each part times the orders per second, and the bytes that it leaves;
- a discrete-event simulation of POSTs through one database. Requests arrive at random. The api's writer puts all waiting
  rows into one commit; then the Kafka requests, one in flight per broker, do the same. It shows how the delay grows
  with the load, and where it takes off.

Standard library only.
"""

import heapq
import json
import math
import random
import statistics
import sys
from collections import deque
from pathlib import Path

# Not measured by `make bench`. Bytes of an order: rows and index entries of order and key; WAL; records of order.created and order.processed.
TABLE_BYTES, WAL_BYTES, EVENT_BYTES = 900, 2_600, 2 * 700
KEY_SHARE = 0.55  # of the table's bytes, gone after IDEMPOTENCY_TTL
BUSY_MAX = 0.6  # of a core, which leaves room for a burst and for the loss of a machine
ROWS_MAX, WRITERS = 64, 1  # of src/orders/adapters/postgres/submission.rs, as of one api


def measured(path):
    """The costs of an order in each part, POST at 64 connections and the worker's backlog, and the rate of that POST."""
    cases = {case["case"]: case for case in json.loads(Path(path).read_text())["summary"]}
    post, backlog = cases["POST direct 64"], cases["backlog"]
    costs = {part: post[f"cpu_us {part}"][0] for part in ("api", "postgres", "kafka")}
    for part in ("postgres", "kafka"):
        costs[part] += backlog[f"cpu_us {part}"][0]
    costs["worker"] = backlog["cpu_us worker"][0]
    return costs, post["throughput"][0]


def batching(arrivals, servers, batch_max, seconds_of):
    """Completion time of each arrival at a station whose servers take all waiting work at once."""
    free = [0.0] * servers
    heapq.heapify(free)
    waiting, done, at = deque(), [0.0] * len(arrivals), 0
    while at < len(arrivals) or waiting:
        start = heapq.heappop(free)
        if not waiting:
            start = max(start, arrivals[at])
        while at < len(arrivals) and arrivals[at] <= start:
            waiting.append(at)
            at += 1
        batch = [waiting.popleft() for _ in range(min(batch_max, len(waiting)))]
        end = start + seconds_of(len(batch))
        for one in batch:
            done[one] = end
        heapq.heappush(free, end)
    return done


def delays(rate, databases, brokers, row_us, commit_ms, kafka_ms, seconds=4.0):
    """Median and 99th percentile, in ms, of an order's time in its database and its broker."""
    rng = random.Random(1)
    per_database = rate / databases
    arrivals, now = [], 0.0
    while now < seconds:
        now += rng.expovariate(per_database)
        arrivals.append(now)
    jitter = lambda: rng.expovariate(1.0)
    commit = lambda rows: (commit_ms * (0.7 + 0.3 * jitter()) + rows * row_us / 1e3) / 1e3
    stored = batching(arrivals, WRITERS, ROWS_MAX, commit)
    # Each broker leads its share; the records of one database spread over all of them.
    order = sorted(range(len(arrivals)), key=stored.__getitem__)
    acknowledged = [0.0] * len(arrivals)
    for broker in range(brokers):
        mine = [one for one in order if one % brokers == broker]
        ends = batching([stored[one] for one in mine], 1, 10_000, lambda _: kafka_ms * (0.7 + 0.3 * jitter()) / 1e3)
        for one, end in zip(mine, ends):
            acknowledged[one] = end
    took = sorted((end - begin) * 1e3 for begin, end in zip(arrivals, acknowledged))
    return statistics.median(took), took[int(len(took) * 0.99)]


def human(number, unit):
    """Bytes with a prefix."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} P{unit}"


def main():
    results = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results/bench.json"
    costs, base = measured(results)
    base = round(base, -2)
    print(f"An order costs, in CPU microseconds: {', '.join(f'{part} {cost:.0f}' for part, cost in costs.items())}.\n")
    print("| | " + " | ".join(f"{factor:,}x" for factor in (1, 10, 100, 1000)) + " |")
    print("|---|---|---|---|---|")
    rates = [base * factor for factor in (1, 10, 100, 1000)]
    rows = {"orders per second": [f"{rate:,.0f}" for rate in rates]}
    for part, cost in costs.items():
        rows[f"cores: {part}"] = [f"{max(1, math.ceil(rate * cost / 1e6 / BUSY_MAX)):,}" for rate in rates]
    # A primary: the limits of one machine's cores and one WAL.
    rows["PostgreSQL primaries of 32 cores"] = [f"{math.ceil(rate * costs['postgres'] / 1e6 / BUSY_MAX / 32):,}" for rate in rates]
    rows["WAL"] = [human(rate * WAL_BYTES, "B/s") for rate in rates]
    rows["tables grow, a day"] = [human(rate * TABLE_BYTES * 86_400, "B") for rate in rates]
    rows["of these keys, gone after 72 h"] = [human(rate * TABLE_BYTES * KEY_SHARE * 86_400 * 3, "B") for rate in rates]
    rows["events, a day, one replica"] = [human(rate * EVENT_BYTES * 86_400, "B") for rate in rates]
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")

    print("\nOne api, one database, one broker of 1 ms: delay of a POST's way (simulated; median / 99th percentile, ms)\n")
    commits = (0.5, 2.0, 10.0)
    print("| orders per second | " + " | ".join(f"commit of {commit:g} ms" for commit in commits) + " |")
    print("|---|" + "---|" * len(commits))
    for rate in (100, 1_000, 5_000, 10_000, 20_000, 40_000):
        cells = []
        for commit in commits:
            median, p99 = delays(rate, 1, 1, 25.0, commit, 1.0)
            cells.append("beyond its capacity" if p99 > 1_000 else f"{median:.1f} / {p99:.1f}")
        print(f"| {rate:,} | " + " | ".join(cells) + " |")


main()
