"""The cases of the comparison: what is started, loaded and recorded for one side."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import load
from compare_syscalls import syscalls
from processes import Window, memory_mib
from system import ENV, Program, listens, settle, sql, sql_file, wait_until


def numbers(variable, default):
    return [int(n) for n in (ENV.get(variable) or default).split()]


# Seconds of a measurement, turns, clients and parts of each length. Six turns are the fewest with a 95 % interval.
LENGTHS = {
    "smoke": (2, 6, "64", "1000", "clients one-core syscalls"),
    "default": (4, 6, "1 16 64 256 1000", "500 1000 2000", "start clients one-core rates grpc slow-database worker syscalls"),
    "long": (8, 12, "1 16 64 256 1000 4000", "500 1000 2000 3000",
             "start clients one-core rates grpc coalescing k6 idle slow-database slow-kafka overload worker syscalls build"),
}
LENGTH = ENV.get("LENGTH") or "default"
seconds, turns, clients, rates, parts = LENGTHS[LENGTH]
DURATION = int(ENV.get("DURATION") or seconds)
TURNS = int(ENV.get("TURNS") or turns)
CONNECTIONS, RATES = numbers("CONNECTIONS", clients), numbers("RATES", rates)
IDLE = numbers("IDLE", "1000 5000 10000")
KNOWN = 10_000
BACKLOG = int(ENV.get("BACKLOG") or 30_000)
DELAYS_MS = (5, 50) if LENGTH == "long" else (50,)

# Two windows agree if they differ by less than this; then a program, or the servers, are warm.
AGREE, WINDOWS_MAX = 0.1, 12

API_PORT, GRPC_PORT, WORKER_PORT, PROXY_PORT = (int(ENV[f"BENCH_{name}_PORT"]) for name in ("API", "GRPC", "WORKER", "PROXY"))
SERVERS = {"postgres": int(ENV["BENCH_POSTGRES_PID"]), "kafka": int(ENV["BENCH_KAFKA_PID"])}
BINARIES = {side: ENV[f"{side.upper()}_BIN"] for side in ENV["SIDES"].split()}
SIDES = {side: {} for side in BINARIES}
# Each side's remedy for a slow server: more threads, or more statements per connection.
SLOW_SIDES = {
    **SIDES,
    "threads, more": {"HTTP_WORKERS": "512", "DB_MAX_CONNS": "200", "DB_MAX_IDLE_CONNS": "200"},
    "async, not pipelined": {"TWIN_PIPELINE": "off"},
}
EACH_ALONE = {side: {"DB_COALESCE": "off", "TWIN_PIPELINE": "off"} for side in SIDES}
OURS = 0  # the core of the program under test, where it has one to itself

measured = []  # of the turn in progress


def record(side, case, values, **conditions):
    measured.append({"case": f"{case}|{side}", **conditions, **values})
    print(f"{case} {conditions} {side}: {values.get('throughput', values.get('rss_mib', 0)):.0f}", file=sys.stderr)


def program(side, name="tbd-api", port=API_PORT, core=None, **settings):
    return Program(name, port, {"API_GRPC_PORT": "0", **settings}, BINARIES[side.split(",")[0]], core)


def warm(running, script, window_seconds=1):
    """Loads a program until two windows agree. Returns whether they did."""
    before = 0.0
    for _ in range(WINDOWS_MAX):
        now = load.wrk(running, script, 64, window_seconds, {})["throughput"]
        if before and abs(now - before) < AGREE * before:
            return True
        before = now
    return False


@contextmanager
def api(side, *scripts, core=None, **settings):
    """A warm api: its connections are open, its statements prepared."""
    with program(side, core=core, **settings) as running:
        running.is_warm = all([warm(running, script) for script in scripts or ("post.lua",)])
        settle()
        yield running


@contextmanager
def one_core():
    """Everything but the program under test keeps off its core."""
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        raise RuntimeError("the part one-core needs two cores")
    others = everywhere - {OURS}
    pin(others)
    try:
        yield
    finally:
        pin(everywhere)


def pin(cores):
    """Moves this process, with the loads it will start, and the servers with all their threads and children."""
    os.sched_setaffinity(0, cores)
    for server in SERVERS.values():
        family = subprocess.run(["pgrep", "--parent", str(server)], capture_output=True, text=True).stdout.split()
        for pid in (str(server), *family):
            subprocess.run(["taskset", "-acp", ",".join(map(str, cores)), pid], capture_output=True, check=False)


@contextmanager
def delayed(server_port, milliseconds):
    """A proxy in front of a server, on PROXY_PORT."""
    proxy = subprocess.Popen([Path(ENV["ASYNC_BIN"]) / "delay", str(PROXY_PORT), str(server_port), str(milliseconds)])
    try:
        wait_until("the proxy", 10, lambda: listens(PROXY_PORT))
        yield
    finally:
        proxy.terminate()
        proxy.wait()


def closed(side, case, running, script, connections, **conditions):
    values = load.wrk(running, script, connections, DURATION, {"api": running.pid, **SERVERS})
    settle()
    if values["errors"]:
        # Requests that still wait, and refusals that are held, outlive the clients they were for.
        time.sleep(2)
    record(side, case, {**values, "warm": running.is_warm}, connections=connections, **conditions)


def opened(side, case, running, rate, method, **conditions):
    """Open model: the same rate for all, whatever the answers do; a delay counts from the planned moment."""
    seen = load.open_model(running, rate, DURATION, {"api": running.pid, **SERVERS}, method)
    settle()
    seen.pop("statuses")
    record(side, case, {**seen, "throughput": seen["accepted"], "warm": running.is_warm}, value=rate, **conditions)


def by_start(side, settings):
    """An idle api before its first request."""
    with program(side, **settings) as running:
        time.sleep(1)
        record(side, "at rest", {"ready_seconds": running.ready_seconds, **memory_mib(running.pid)})


def by_clients(side, settings, core=None, suffix=""):
    """Closed loop over the number of clients, and a fixed rate."""
    with api(side, "post.lua", "get.lua", core=core, **settings) as running:
        for connections in CONNECTIONS:
            for name in ("POST", "GET"):
                closed(side, name + suffix, running, f"{name.lower()}.lua", connections)
        if LENGTH == "smoke":
            opened(side, f"POST at a fixed rate{suffix}", running, RATES[0], "POST")


def by_one_core(side, settings):
    """The same with a core for the program, and the others for the servers and the load."""
    with one_core():
        by_clients(side, settings, OURS, ", one core")


def by_coalescing(side, settings):
    """A statement and a connection per request."""
    with api(side, **settings) as running:
        for connections in (64, 256):
            for name in ("POST", "GET"):
                closed(side, f"{name}, nothing shared", running, f"{name.lower()}.lua", connections)


def by_rate(side, settings):
    with api(side, "post.lua", "get.lua", **settings) as running:
        for rate in RATES:
            for method in ("POST", "GET"):
                opened(side, f"{method} at a fixed rate", running, rate, method)


def by_grpc(side, settings):
    """The OrderService, by the sides that have it. The load, ghz, takes more CPU than the programs."""
    with api(side, API_GRPC_PORT=str(GRPC_PORT), **settings) as running:
        if not listens(GRPC_PORT):
            return print(f"{side}: no gRPC", file=sys.stderr)
        for method in ("CreateOrder", "GetOrder"):
            call = lambda seconds: load.ghz_uncounted(f"127.0.0.1:{GRPC_PORT}", method, 64, seconds, running.pid, {"api": running.pid, **SERVERS})
            call(2)
            values = call(DURATION)
            settle()
            record(side, method, values, connections=64)


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
                    idle.append(load.quiet_connection(API_PORT))
                closed(side, "GET next to quiet connections", running, "get.lua", 64, value=count)
            except (OSError, RuntimeError) as error:
                record(side, "GET next to quiet connections", {"refused_at": float(len(idle))}, connections=64, value=count)
                print(f"{side}: no more than {len(idle)} idle connections: {error}", file=sys.stderr)
            finally:
                for connection in idle:
                    connection.close()


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
    name = f"compare-{side}-{time.monotonic_ns()}"
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


def by_syscalls(side, settings):
    """System calls of a request, counted by strace, which slows the program down: its rates are not for comparison."""
    with api(side, **settings) as running:
        for name in ("POST", "GET"):
            record(side, f"system calls of a {name}", syscalls(running, f"{name.lower()}.lua", 2), connections=64)
            settle()


# The parts that can be measured separately; the report keeps the others.
PARTS = {
    "start": (by_start, SIDES),
    "clients": (by_clients, SIDES),
    "one-core": (by_one_core, SIDES),
    "coalescing": (by_coalescing, EACH_ALONE),
    "rates": (by_rate, SIDES),
    "grpc": (by_grpc, SIDES),
    "k6": (by_k6, SIDES),
    "idle": (by_idle, SIDES),
    "slow-database": (by_slow_database, SLOW_SIDES),
    "slow-kafka": (by_slow_kafka, SLOW_SIDES),
    "overload": (by_overload, SIDES),
    "worker": (by_backlog, SIDES),
    "syscalls": (by_syscalls, SIDES),
}
