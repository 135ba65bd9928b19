"""Benchmark of the system on this machine; scripts/bench sets everything up and explains the settings."""

import http.client
import json
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import load
import report
from processes import Window, first_line, machine
from system import ENV, HERE, Program, seed, settle, sql, sql_file, wait_until

DURATION = int(ENV.get("DURATION") or 4)
REPETITIONS = int(ENV.get("REPETITIONS") or 3)
CONNECTIONS = [int(n) for n in (ENV.get("CONNECTIONS") or "1 20 64 256").split()]
GRPC_CONNECTIONS = [int(n) for n in (ENV.get("GRPC_CONNECTIONS") or "1 8 64").split()]
PARTS = (ENV.get("PARTS") or "requests grpc worker list").split()
KNOWN = int(ENV.get("KNOWN_ORDERS") or 100_000)
BACKLOG = int(ENV.get("BACKLOG") or 100_000)
LIST_ORDERS = [int(n) for n in (ENV.get("LIST_ORDERS") or "1000000").split()]
WARM_UP = int(ENV.get("WARM_UP") or 40)  # seconds until the JIT compiler of Kafka's JVM has settled, with all processes on two cores
SWEEP_RATE = 1_000  # orders per second that leave the machine half idle
SEED_VUS = 20  # as in the project's first load test

API_PORT, WORKER_PORT = int(ENV["BENCH_API_PORT"]), int(ENV["BENCH_WORKER_PORT"])
GRPC_PORT = int(ENV["API_GRPC_PORT"])
SERVERS = {"postgres": int(ENV["BENCH_POSTGRES_PID"]), "kafka": int(ENV["BENCH_KAFKA_PID"])}

measured = []


def record(case, values, **conditions):
    """Keeps the result of one measurement."""
    measured.append({"case": case, **conditions, **values})
    figures = {key: round(value, 3) for key, value in values.items() if isinstance(value, float)}
    named = " ".join(f"{key}={value}" for key, value in conditions.items())
    print(f"{case} {named}: {figures}", file=sys.stderr)
    return values


def api(**settings):
    program = Program("tbd-api", API_PORT, settings)
    record("api start", {"ready_seconds": program.ready_seconds})
    return program


def worker(**settings):
    return Program("tbd-worker", WORKER_PORT, settings)


def closed(case, program, script, connections):
    values = load.wrk(program, script, connections, DURATION, {"api": program.pid, **SERVERS})
    if values["errors"]:
        raise RuntimeError(f"{case} with {connections} connections: {values['errors']} errors")
    settle()
    return record(case, values, connections=connections)


def warm(program, seconds=1):
    """Warms a program up, so that its connections are open and its statements prepared."""
    load.wrk(program, "post.lua", 64, seconds, {})
    settle()


# ------------------------------------------------------------------------------------------------------ requests


def ceiling(clients):
    """PostgreSQL's own limit, measured right before the api's, because the machine's speed changes by the minute."""
    for script in ("insert", "update", "select"):
        record(f"pgbench {script}", load.pgbench(f"{script}.sql", clients, DURATION, KNOWN), connections=clients)
    sql("TRUNCATE outbox")  # no relay may publish pgbench's rows


def requests(repetition):
    seed(KNOWN)
    with api(EVENT_DELIVERY="direct") as program:
        capacity = 0
        warm(program, WARM_UP if repetition == 1 else 3)
        for connections in CONNECTIONS:
            if connections in (20, 64):
                ceiling(connections)
            for name in ("POST", "replay", "GET", "list", "mixed"):
                values = closed(f"{name} direct" if name == "POST" else name, program, f"{name.lower()}.lua", connections)
                if name == "POST":
                    capacity = max(capacity, values["throughput"])
        groups = {"api": program.pid, **SERVERS}
        record("POST at 50 % of capacity", load.open_model(program, capacity / 2, DURATION, groups))
        settle()
        record("k6 orders.js", load.k6(program, "orders.js", DURATION, SEED_VUS, groups), connections=SEED_VUS)
        settle()
    with api(EVENT_DELIVERY="outbox") as program:
        warm(program)
        for connections in CONNECTIONS:
            closed("POST outbox", program, "post.lua", connections)
    with api(DB_COALESCE="off") as program:
        warm(program)
        for connections in CONNECTIONS:
            closed("POST direct, not coalesced", program, "post.lua", connections)
            closed("GET, not coalesced", program, "get.lua", connections)


# ---------------------------------------------------------------------------------------------------------- gRPC


def grpc(repetition):
    """The same by gRPC: `calls` at a time over `connections`, right after REST with as many connections."""
    seed(KNOWN)
    ids = Path(ENV["BENCH_STATE"]) / "ids.json"
    ids.write_text(sql("SELECT json_agg(json_build_object('id', id)) FROM (SELECT id FROM orders ORDER BY random() LIMIT 1000) AS picked"))
    order = ["-d", '{"customer_email":"user@example.com","amount_cents":1999}', "-m", '{"idempotency-key":"{{newUUID}}"}']
    data = {"CreateOrder": order, "GetOrder": ["-D", str(ids)]}
    groups = lambda program: {"api": program.pid, **SERVERS}
    with api(EVENT_DELIVERY="direct") as program:
        warm(program, WARM_UP if repetition == 1 and "requests" not in PARTS else 3)
        capacity = 0
        for calls in CONNECTIONS:
            for method, script in (("CreateOrder", "post.lua"), ("GetOrder", "get.lua")):
                closed(f"REST next to {method}", program, script, calls)
                for connections in (n for n in GRPC_CONNECTIONS if n <= calls):
                    values = load.ghz(program, GRPC_PORT, method, DURATION, groups(program), calls, connections, data[method])
                    record(f"{method}, {connections} connections", values, connections=calls)
                    settle()
                    if method == "CreateOrder":
                        capacity = max(capacity, values["throughput"])
        rate = ["--async", f"--rps={round(capacity / 2)}"]
        values = load.ghz(program, GRPC_PORT, "CreateOrder", DURATION, groups(program), 64, 8, order, *rate)
        record("CreateOrder at 50 % of capacity", values)
        settle()


# -------------------------------------------------------------------------------------------------------- worker


def all_done():
    return sql("SELECT NOT EXISTS (SELECT FROM orders WHERE status IN ('pending', 'processing'))") == "t"


def own_topics(name):
    """Empty topics and a new group."""
    topics = {f"KAFKA_TOPIC_ORDER_{kind}": f"{name}.{kind.lower()}" for kind in ("CREATED", "PROCESSED", "FAILED", "DLQ")}
    return {**topics, "KAFKA_CONSUMER_GROUP": name}


def leave_backlog(topics):
    """Orders whose events wait for a worker."""
    sql_file("backlog.sql", orders=BACKLOG, type=topics["KAFKA_TOPIC_ORDER_CREATED"])
    with api(EVENT_DELIVERY="outbox", **topics):
        settle()


def drained_per_second():
    """A worker's orders per second, once it has finished all."""
    return float(sql(f"SELECT {BACKLOG} / extract(epoch FROM max(updated_at) - min(updated_at)) FROM orders"))


def drain(repetition):
    """A backlog, and a worker that finds it."""
    topics = own_topics(f"backlog-{repetition}")
    leave_backlog(topics)
    with worker(**topics) as program:
        processed = lambda: program.counter("orders_processed_total")
        window = Window({"worker": program.pid, **SERVERS}, processed, program.pid)
        wait_until("the backlog to be drained", 120, all_done)
        used = window.end()
    record("backlog", {**used, "throughput": drained_per_second()})


DELAYS = """SELECT json_build_object('completed', orders, 'p50_ms', p[1], 'p99_ms', p[2], 'max_ms', p[3]) FROM (
    SELECT count(*), percentile_cont('{0.5,0.99,1}'::float8[]) WITHIN GROUP (
        ORDER BY 1000 * extract(epoch FROM updated_at - created_at)::float8) FROM orders) AS delays (orders, p)"""


def end_to_end(repetition):
    """Time from the POST to the order's completion, from the order's two timestamps, which share this machine's clock."""
    topics = own_topics(f"delay-{repetition}")
    with api(**topics) as program, worker(**topics) as consumer:
        groups = {"api": program.pid, "worker": consumer.pid, **SERVERS}

        def begin():
            settle()
            wait_until("all orders to be done", 120, all_done)
            sql("TRUNCATE orders, idempotency_keys, outbox")

        begin()
        load.wrk(program, "post.lua", 64, 2, {})
        begin()
        load.wrk(program, "post.lua", 64, DURATION, {})
        wait_until("all orders to be done", 120, all_done)
        rate = float(sql("SELECT count(*) / extract(epoch FROM max(updated_at) - min(created_at)) FROM orders"))
        record("POST to completed, capacity", {"throughput": rate})
        for share in (25, 50, 75):
            begin()
            seen = load.open_model(program, rate * share / 100, DURATION + 2, groups)
            wait_until("all orders to be done", 120, all_done)
            posts = {f"POST {key}": seen.pop(key) for key in [*seen] if key.endswith("_ms")}
            record("POST to completed", {**seen, **posts, **json.loads(sql(DELAYS))}, share=share)


# ---------------------------------------------------------------------------------------------------------- list


def listing():
    for orders in LIST_ORDERS:
        seed(orders)
        with api():
            pages(orders)


def pages(orders):
    """Duration of sequential page requests on a large table."""
    times = 200
    connection = http.client.HTTPConnection("127.0.0.1", API_PORT, timeout=35)

    def ask(path):
        begun = time.perf_counter()
        connection.request("GET", "/v1/orders" + path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
        return (time.perf_counter() - begun) * 1e3, json.loads(body)

    kinds = {
        "first page": "", "100 orders": "?page_size=100", "completed": "?status=completed", "failed (1 %)": "?status=failed",
        "pending (none)": "?status=pending", "cursor": f"?cursor={ask('')[1]['next_cursor']}",
    }
    # 10,000 pages of 20.
    deep = ask("?page=10000")[1].get("next_cursor")
    if deep:
        kinds |= {"cursor, 200,000 deep": f"?cursor={deep}", "page 10,000": "?page=10000"}
    for name, path in kinds.items():
        took = sorted(ask(path)[0] for _ in range(times))
        record(f"list, {name}", {"p50_ms": statistics.median(took), "p99_ms": took[int(times * 0.99)]}, orders=orders)


# ---------------------------------------------------------------------------------------------------------- sweep


def sweep():
    """How costs grow: one setting at a time, all others at their defaults."""
    with api() as program:
        warm(program, WARM_UP)
    for variable, values in {"HTTP_WORKERS": (1, 4, 16, 64, 128, 256, 512), "DB_MAX_CONNS": (1, 2, 5, 10, 25, 50, 100)}.items():
        seed(KNOWN)
        for value in values:
            with api(**{variable: str(value)}) as program:
                warm(program)
                sweep_point(program, variable, value, 256)
    seed(KNOWN)
    with api() as program:
        warm(program)
        for connections in (1, 4, 16, 64, 256, 1000, 2000):
            sweep_point(program, "connections", connections, connections)
    for variable, values in {"WORKER_CONCURRENCY": (1, 2, 5, 16, 64), "KAFKA_TOPIC_PARTITIONS": (1, 4, 16, 64)}.items():
        for value in values:
            sweep_worker(variable, value)
    for orders in (10_000, 100_000, 1_000_000, 10_000_000):
        seed(orders)
        ENV["KNOWN_ORDERS"] = str(orders)
        with api() as program:
            pages(orders)
            warm(program)
            sweep_point(program, "orders in the table", orders, 64, ("GET", "list", "POST"))


def sweep_point(program, knob, value, connections, names=("POST", "GET")):
    for name in names:
        seen = load.wrk(program, f"{name.lower()}.lua", connections, DURATION, {"api": program.pid, **SERVERS})
        record(f"sweep {knob} {name}", seen, value=value)
        settle()


def sweep_worker(variable, value):
    """A backlog; orders at SWEEP_RATE until all are completed; and the cost of partitions for a POST."""
    topics = {**own_topics(f"sweep-{variable.lower()}-{value}"), variable: str(value)}
    leave_backlog(topics)
    with worker(**topics):
        wait_until("the backlog to be drained", 120, all_done)
        record(f"sweep {variable} backlog", {"throughput": drained_per_second()}, value=value)
        sql("TRUNCATE orders, idempotency_keys, outbox")
        with api(**topics) as program:
            load.open_model(program, SWEEP_RATE, DURATION, {"api": program.pid})
            wait_until("all orders to be done", 120, all_done)
            record(f"sweep {variable} completed", json.loads(sql(DELAYS)), value=value)
    if variable == "KAFKA_TOPIC_PARTITIONS":
        with api(**topics) as program:
            warm(program)
            sweep_point(program, variable, value, 64, ("POST",))


# ----------------------------------------------------------------------------------------------------------- main


def versions():
    binaries = Path(ENV["TBD_BIN"])
    return {
        "commit": first_line("git", "-C", str(HERE), "describe", "--always", "--dirty"),
        "rust": first_line("rustc", "--version"),
        "postgres": sql("SHOW server_version"),
        "kafka": ENV["KAFKA_VERSION"],
        "java": first_line("java", "-version"),
        "wrk": "4.1.0",
        "pgbench": first_line("pgbench", "--version"),
        "k6": first_line(ENV["K6"], "version"),
        "ghz": first_line("ghz", "--version"),
        "tbd-api MiB": round((binaries / "tbd-api").stat().st_size / 2**20, 2),
        "tbd-worker MiB": round((binaries / "tbd-worker").stat().st_size / 2**20, 2),
    }


def settings():
    names = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size", "max_connections")
    own = {key: value for key, value in ENV.items() if key.split("_")[0] in ("HTTP", "DB", "EVENT", "LOG", "OTEL", "WORKER")}
    for private in ("DB_PASSWORD", "DB_HOST", "DB_PORT", "DB_USER", "DB_NAME"):
        own.pop(private, None)
    return {
        **{name: sql(f"SHOW {name}") for name in names},
        "file system": ENV["BENCH_FILE_SYSTEM"], "duration_s": DURATION, "repetitions": REPETITIONS, **own,
    }


def main():
    begun = time.monotonic()
    # Migrates the empty database.
    with Program("tbd-api", API_PORT, {}):
        pass
    about = {
        "taken": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(), "versions": versions(), "settings": settings(),
    }
    for repetition in range(1, REPETITIONS + 1):
        if "requests" in PARTS:
            requests(repetition)
        if "grpc" in PARTS:
            grpc(repetition)
        if "worker" in PARTS:
            drain(repetition)
            end_to_end(repetition)
    if "list" in PARTS:
        listing()
    if "sweep" in PARTS:
        sweep()
    about["seconds"] = round(time.monotonic() - begun)
    report.write(about, measured, ENV["BENCH_NAME"])


main()
