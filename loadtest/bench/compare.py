"""tbd and its async twin under the same loads, one after the other, again and again; scripts/compare sets everything up."""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import compare_report
import load
from processes import Window, machine, memory_mib
from report import summarise
from system import ENV, HERE, Program, seed, settle, sql, sql_file, wait_until

DURATION = int(ENV.get("DURATION") or 4)
REPETITIONS = int(ENV.get("REPETITIONS") or 2)
CONNECTIONS = [int(n) for n in (ENV.get("CONNECTIONS") or "1 16 64 256 1000").split()]
IDLE = [int(n) for n in (ENV.get("IDLE") or "1000 8000").split()]
PARTS = (ENV.get("PARTS") or "connections idle slow overload worker").split()
KNOWN = 10_000
BACKLOG = int(ENV.get("BACKLOG") or 30_000)
DELAYS_MS = (5, 50)

API_PORT, WORKER_PORT, PROXY_PORT = (int(ENV[f"BENCH_{name}_PORT"]) for name in ("API", "WORKER", "PROXY"))
SERVERS = {"postgres": int(ENV["BENCH_POSTGRES_PID"]), "kafka": int(ENV["BENCH_KAFKA_PID"])}
# The same source of figures for both: the programs differ in nothing that is measured.
SIDES = {"threads": ENV["TBD_BIN"], "async": ENV["TWIN_BIN"]}

measured = []


def record(side, case, values, **conditions):
    measured.append({"case": f"{case}|{side}", **conditions, **values})
    print(f"{case} {conditions} {side}: {values.get('throughput', values.get('rss_mib', 0)):.0f}", file=sys.stderr)


def api(side, **settings):
    return Program("tbd-api", API_PORT, settings, SIDES[side])


@contextmanager
def delayed(server_port, milliseconds):
    proxy = subprocess.Popen([sys.executable, str(HERE / "delay.py"), str(PROXY_PORT), server_port, str(milliseconds)])
    try:
        wait_until("the proxy", 10, lambda: socket.socket().connect_ex(("127.0.0.1", PROXY_PORT)) == 0)
        yield {"DB_PORT": str(PROXY_PORT)}
    finally:
        proxy.terminate()
        proxy.wait()


def closed(side, case, program, script, connections, **conditions):
    values = load.wrk(program, script, connections, DURATION, {"api": program.pid, **SERVERS})
    settle()
    record(side, case, values, **(conditions or {"connections": connections}))


def by_connections(side):
    """Closed loop over the number of clients."""
    with api(side) as program:
        load.wrk(program, "post.lua", 64, 2, {})
        for connections in CONNECTIONS:
            for name in ("POST", "GET"):
                closed(side, name, program, f"{name.lower()}.lua", connections)


def by_idle(side):
    """64 busy clients beside many that keep a connection and ask nothing."""
    for count in IDLE:
        with api(side) as program:
            idle = []
            try:
                for _ in range(count):
                    connection = socket.create_connection(("127.0.0.1", API_PORT), timeout=5)
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    connection.recv(4096)
                    idle.append(connection)
            except OSError as error:
                record(side, "idle connections", {"refused_at": float(len(idle))}, connections=count)
                print(f"{side}: no more than {len(idle)} idle connections: {error}", file=sys.stderr)
                continue
            else:
                closed(side, "idle connections", program, "get.lua", 64, connections=count)
            finally:
                for connection in idle:
                    connection.close()


def by_slowness(side):
    """A database that answers late: what waits, and who pays for the waiting."""
    for milliseconds in DELAYS_MS:
        with delayed(ENV["DB_PORT"], milliseconds) as settings, api(side, **settings) as program:
            for connections in (64, 512):
                closed(side, f"GET, {connections} clients, slow database", program, "get.lua", connections, value=milliseconds)
            closed(side, "POST, 64 clients, slow database", program, "post.lua", 64, value=milliseconds)


def overload(side):
    """New orders at three times the rate that 64 waiting clients reach."""
    with api(side) as program:
        load.wrk(program, "post.lua", 64, 2, {})
        settle()
        capacity = load.wrk(program, "post.lua", 64, DURATION, {})["throughput"]
        settle()
        seen = load.open_model(program, capacity * 3, DURATION, {"api": program.pid, **SERVERS})
        accepted = seen["statuses"].get("202", 0)
        shed = seen["statuses"].get("503", 0)
        seen.pop("statuses")
        record(side, "overload", {**seen, "throughput": accepted / DURATION, "shed": shed / DURATION, "capacity": capacity})
        settle()


def worker(side):
    """A backlog of orders that a worker finds, and works off."""
    name = f"compare-{side}-{len(measured)}"
    topics = {f"KAFKA_TOPIC_ORDER_{kind}": f"{name}.{kind.lower()}" for kind in ("CREATED", "PROCESSED", "FAILED", "DLQ")}
    topics["KAFKA_CONSUMER_GROUP"] = name
    sql_file("backlog.sql", orders=BACKLOG, type=topics["KAFKA_TOPIC_ORDER_CREATED"])
    with api("threads", EVENT_DELIVERY="outbox", **topics):
        settle()
    with Program("tbd-worker", WORKER_PORT, topics, SIDES[side]) as program:
        processed = lambda: program.counter("orders_processed_total")
        window = Window({"worker": program.pid, **SERVERS}, processed, program.pid)
        done = "SELECT NOT EXISTS (SELECT FROM orders WHERE status IN ('pending', 'processing'))"
        wait_until("the backlog to be drained", 120, lambda: sql(done) == "t")
        used = window.end()
    rate = float(sql(f"SELECT {BACKLOG} / extract(epoch FROM max(updated_at) - min(updated_at)) FROM orders"))
    record(side, "worker, backlog", {**used, "throughput": rate})
    seed(KNOWN)


def start(side):
    """What an api is before anybody asks it anything."""
    with api(side) as program:
        time.sleep(1)
        record(side, "at rest", {"ready_seconds": program.ready_seconds, **memory_mib(program.pid)})


def size(side):
    """What the programs are made of."""
    binaries = Path(SIDES[side])
    of = lambda name: (binaries / name).stat().st_size / 2**20
    return {"tbd-api MiB": round(of("tbd-api"), 1), "tbd-worker MiB": round(of("tbd-worker"), 1)}


def main():
    begun = time.monotonic()
    with api("threads"):
        pass
    seed(KNOWN)
    about = {
        "taken": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(), "sizes": {side: size(side) for side in SIDES},
        "duration_s": DURATION, "repetitions": REPETITIONS,
    }
    parts = {"connections": by_connections, "idle": by_idle, "slow": by_slowness, "overload": overload, "worker": worker}
    for repetition in range(REPETITIONS):
        # Who goes first changes, so that neither side always finds the warmer machine.
        sides = list(SIDES) if repetition % 2 == 0 else list(reversed(SIDES))
        for measure in (start, *(parts[part] for part in PARTS)):
            for side in sides:
                measure(side)
    about["seconds"] = round(time.monotonic() - begun)
    compare_report.write(about, summarise(measured), measured)


main()
