"""Comparison of tbd and its async twin under the same loads, in turn; scripts/compare sets everything up."""

import resource
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import compare_facts
import compare_report
import load
from processes import Window, machine, memory_mib
from system import ENV, Program, seed, settle, sql, sql_file, wait_until


def numbers(variable, default):
    return [int(n) for n in (ENV.get(variable) or default).split()]


DURATION = int(ENV.get("DURATION") or 4)
WARM_UP = min(2, DURATION)
SERVERS_WARM_UP = 40  # seconds of POSTs: until then the JIT compiler of Kafka's JVM takes CPU from the first program
REPETITIONS = int(ENV.get("REPETITIONS") or 3)
CONNECTIONS = numbers("CONNECTIONS", "1 16 64 256 1000 4000")
IDLE = numbers("IDLE", "1000 5000 10000")
RATES = numbers("RATES", "500 1000 2000 3000")
KNOWN = 10_000
BACKLOG = int(ENV.get("BACKLOG") or 30_000)
DELAYS_MS = (5, 50)

API_PORT, WORKER_PORT, PROXY_PORT = (int(ENV[f"BENCH_{name}_PORT"]) for name in ("API", "WORKER", "PROXY"))
SERVERS = {"postgres": int(ENV["BENCH_POSTGRES_PID"]), "kafka": int(ENV["BENCH_KAFKA_PID"])}
BINARIES = {"threads": ENV["TBD_BIN"], "async": ENV["TWIN_BIN"]}
SIDES = {"threads": {}, "async": {}}
# Each side's remedy for a slow server: more threads here, more statements per connection there.
SLOW_SIDES = {
    **SIDES,
    "threads, more": {"HTTP_WORKERS": "512", "DB_MAX_CONNS": "200", "DB_MAX_IDLE_CONNS": "200"},
    "async, not pipelined": {"TWIN_PIPELINE": "off"},
}
ONE_CONSUMER = {**SIDES, "threads, one": {"WORKER_CONCURRENCY": "1"}, "async, one": {"WORKER_CONCURRENCY": "1"}}
EACH_ALONE = {"threads": {"DB_COALESCE": "off"}, "async": {"DB_COALESCE": "off", "TWIN_PIPELINE": "off"}}

measured = []


def record(side, case, values, **conditions):
    measured.append({"case": f"{case}|{side}", **conditions, **values})
    print(f"{case} {conditions} {side}: {values.get('throughput', values.get('rss_mib', 0)):.0f}", file=sys.stderr)


def program(side, name="tbd-api", port=API_PORT, **settings):
    return Program(name, port, settings, BINARIES[side.split(",")[0]])


@contextmanager
def api(side, script="post.lua", **settings):
    """A warm api: its connections are open, its statements prepared."""
    with program(side, **settings) as running:
        load.wrk(running, script, 64, WARM_UP, {})
        settle()
        yield running


@contextmanager
def delayed(server_port, milliseconds):
    """A proxy in front of a server, on PROXY_PORT."""
    proxy = subprocess.Popen([Path(ENV["TWIN_BIN"]) / "delay", str(PROXY_PORT), str(server_port), str(milliseconds)])
    try:
        wait_until("the proxy", 10, proxy_listens)
        yield
    finally:
        proxy.terminate()
        proxy.wait()


def proxy_listens():
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PROXY_PORT)) == 0


def closed(side, case, running, script, connections, **conditions):
    values = load.wrk(running, script, connections, DURATION, {"api": running.pid, **SERVERS})
    settle()
    record(side, case, values, connections=connections, **conditions)


def by_start(side, settings):
    """An idle api before its first request."""
    with program(side, **settings) as running:
        time.sleep(1)
        record(side, "at rest", {"ready_seconds": running.ready_seconds, **memory_mib(running.pid)})


def by_connections(side, settings):
    """Closed loop over the number of clients."""
    with api(side, **settings) as running:
        load.wrk(running, "get.lua", 64, WARM_UP, {})
        for connections in CONNECTIONS:
            for name in ("POST", "GET"):
                closed(side, name, running, f"{name.lower()}.lua", connections)


def by_coalescing(side, settings):
    """A statement and a connection per request."""
    with api(side, **settings) as running:
        for connections in (64, 256):
            for name in ("POST", "GET"):
                closed(side, f"{name}, nothing shared", running, f"{name.lower()}.lua", connections)


def by_rate(side, settings):
    """Open model: the same rate for both, even above their capacity; latency counts from the planned moment."""
    with api(side, **settings) as running:
        for rate in RATES:
            seen = load.open_model(running, rate, DURATION, {"api": running.pid, **SERVERS})
            settle()
            seen.pop("statuses")
            record(side, "POST at a fixed rate", {**seen, "throughput": seen["accepted"]}, value=rate)


def by_k6(side, settings):
    """The script that users run."""
    with api(side, **settings) as running:
        seen = load.k6(running, "orders.js", DURATION, 64, {"api": running.pid, **SERVERS})
        settle()
        record(side, "k6, orders.js", seen, connections=64)


def by_idle(side, settings):
    """64 busy clients next to many idle connections."""
    for count in IDLE:
        with api(side, "get.lua", **settings) as running:
            idle = []
            try:
                for _ in range(count):
                    idle.append(quiet_connection())
                closed(side, "GET beside idle connections", running, "get.lua", 64, value=count)
            except (OSError, RuntimeError) as error:
                record(side, "GET beside idle connections", {"refused_at": float(len(idle))}, connections=64, value=count)
                print(f"{side}: no more than {len(idle)} idle connections: {error}", file=sys.stderr)
            finally:
                for connection in idle:
                    connection.close()


def quiet_connection():
    """A connection that has had one answer and waits; closing it leaves no TIME_WAIT port behind."""
    connection = socket.create_connection(("127.0.0.1", API_PORT), timeout=5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
        raise OSError("no answer")
    return connection


def by_slow_database(side, settings):
    """A slow database: what waits, and what the waiting costs."""
    for milliseconds in DELAYS_MS:
        with delayed(ENV["DB_PORT"], milliseconds), api(side, DB_PORT=str(PROXY_PORT), **settings) as running:
            for name in ("GET", "POST"):
                for connections in (64, 512):
                    closed(side, f"{name}, slow database", running, f"{name.lower()}.lua", connections, value=milliseconds)


def by_slow_kafka(side, settings):
    """A slow Kafka: the proxy is the only way to this listener of the broker."""
    for milliseconds in DELAYS_MS:
        through = {"KAFKA_BROKERS": f"127.0.0.1:{PROXY_PORT}"}
        with delayed(ENV["BENCH_KAFKA_SLOW_PORT"], milliseconds), api(side, **through, **settings) as running:
            for connections in (64, 512):
                closed(side, "POST, slow Kafka", running, "post.lua", connections, value=milliseconds)


def by_overload(side, settings):
    """New orders at three times the rate of 64 waiting clients."""
    with api(side, **settings) as running:
        capacity = load.wrk(running, "post.lua", 64, DURATION, {})["throughput"]
        settle()
        seen = load.open_model(running, capacity * 3, DURATION, {"api": running.pid, **SERVERS})
        settle()
        shed = seen.pop("statuses").get("503", 0) / DURATION
        rates = {"throughput": seen["accepted"], "shed": shed, "capacity": capacity}
        record(side, "POST at three times what it can do", {**seen, **rates})


def by_backlog(side, settings):
    """A worker that processes a backlog of orders."""
    name = f"compare-{side.replace(', ', '-')}-{len(measured)}"
    topics = {f"KAFKA_TOPIC_ORDER_{kind}": f"{name}.{kind.lower()}" for kind in ("CREATED", "PROCESSED", "FAILED", "DLQ")}
    topics["KAFKA_CONSUMER_GROUP"] = name
    sql_file("backlog.sql", orders=BACKLOG, type=topics["KAFKA_TOPIC_ORDER_CREATED"])
    with program("threads", EVENT_DELIVERY="outbox", **topics):
        settle()
    with program(side, "tbd-worker", WORKER_PORT, **topics, **settings) as running:
        window = Window({"worker": running.pid, **SERVERS}, lambda: running.counter("orders_processed_total"), running.pid)
        done = "SELECT NOT EXISTS (SELECT FROM orders WHERE status IN ('pending', 'processing'))"
        wait_until("the backlog to be drained", 120, lambda: sql(done) == "t")
        used = window.end()
    rate = float(sql(f"SELECT {BACKLOG} / extract(epoch FROM max(updated_at) - min(updated_at)) FROM orders"))
    record(side, "worker, backlog", {**used, "throughput": rate})
    seed(KNOWN)


# The parts that can be measured separately; the report keeps the others.
PARTS = {
    "start": (by_start, SIDES),
    "connections": (by_connections, SIDES),
    "coalescing": (by_coalescing, EACH_ALONE),
    "rates": (by_rate, SIDES),
    "k6": (by_k6, SIDES),
    "idle": (by_idle, SIDES),
    "slow-database": (by_slow_database, SLOW_SIDES),
    "slow-kafka": (by_slow_kafka, SLOW_SIDES),
    "overload": (by_overload, SIDES),
    "worker": (by_backlog, ONE_CONSUMER),
}


def main():
    wanted = (ENV.get("PARTS") or " ".join([*PARTS, "build"])).split()
    with program("threads") as running:  # migrates the empty database
        if wanted != ["build"]:
            load.wrk(running, "post.lua", 64, SERVERS_WARM_UP, {})
            settle()
    ENV["KNOWN_ORDERS"] = str(KNOWN)
    for part in wanted:
        begun = time.monotonic()
        about = {
            "taken": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {**machine(), "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, "duration_s": DURATION,
        }
        if part == "build":
            facts = compare_facts.gather(BINARIES)
            compare_report.keep(part, {**about, "facts": facts})
            continue
        measure, sides = PARTS[part]
        seed(KNOWN)
        measured.clear()
        for repetition in range(REPETITIONS):
            # The sides take turns in going first, so that neither always gets the warmer machine.
            order = list(sides) if repetition % 2 == 0 else list(reversed(sides))
            for side in order:
                measure(side, sides[side])
        seconds = round(time.monotonic() - begun)
        compare_report.keep(part, {**about, "repetitions": REPETITIONS, "seconds": seconds, "measured": list(measured)})
    compare_report.write()


main()
