"""What a saga costs next to a single step; scripts/bench-saga sets everything up and explains the settings."""

import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import load
from intervals import median_interval, verdict
from processes import Window, first_line, machine
from system import ENV, HERE, Program, free_port, settle, sql, sql_file, wait_until

TURNS = int(ENV.get("TURNS") or 6)
BACKLOG = int(ENV.get("BACKLOG") or 10_000)
RATE, DURATION = int(ENV.get("RATE") or 100), int(ENV.get("DURATION") or 4)
API_PORT, WORKER_PORT = int(ENV["BENCH_API_PORT"]), int(ENV["BENCH_WORKER_PORT"])
PARTICIPANTS = {name: (free_port(), free_port()) for name in ("inventory", "payments")}  # for HTTP and gRPC
ADDRESSES = {f"{name.upper()}_ADDRESS": f"127.0.0.1:{grpc}" for name, (_, grpc) in PARTICIPANTS.items()}
DELAYS = """SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM updated_at - created_at)::float8)
            FROM orders"""
# Of the orders behind the first batch: nobody knows when that one began.
DRAINED = """SELECT count(*) FILTER (WHERE updated_at > first) / extract(epoch FROM max(updated_at) - min(updated_at))
             FROM orders, (SELECT min(updated_at) AS first FROM orders) AS begun"""
FIGURES = {
    "drained": "orders/s of a backlog", "worker_us": "worker's CPU for an order, µs", "all_us": "CPU of worker and participants for an order, µs",
    "p50_ms": "p50 from the POST to completed, ms", "p99_ms": "p99 from the POST to completed, ms",
}


def topics():
    """Empty topics and a new group."""
    name = f"saga-{time.time_ns()}"
    names = {f"KAFKA_TOPIC_ORDER_{kind}": f"{name}.{kind.lower()}" for kind in ("CREATED", "PROCESSED", "FAILED", "DLQ")}
    return {**names, "KAFKA_CONSUMER_GROUP": name}


def all_done():
    return sql("SELECT NOT EXISTS (SELECT FROM orders WHERE status IN ('pending', 'processing'))") == "t"


def finish():
    """Waits for the last order, and sees that none has failed: a refusal would be cheaper than a whole saga."""
    wait_until("all orders to be done", 240, all_done)
    if sql("SELECT count(*) FROM orders WHERE status <> 'completed'") != "0":
        raise RuntimeError("not all orders are completed")


def measure(workflow, participants):
    """A backlog, and then orders at a fixed rate, for a worker with this workflow."""
    names = topics()
    settings = {**names, **ADDRESSES, "WORKER_WORKFLOW": workflow}
    sql_file("backlog.sql", orders=BACKLOG, type=names["KAFKA_TOPIC_ORDER_CREATED"])
    with Program("tbd-api", API_PORT, {**names, "EVENT_DELIVERY": "outbox"}):
        settle()
        with Program("tbd-worker", WORKER_PORT, settings) as worker:
            groups = {"worker": worker.pid, **participants}
            window = Window(groups, lambda: worker.counter("orders_processed_total"), worker.pid)
            finish()
            used = window.end()
            drained = float(sql(DRAINED))
            sql("TRUNCATE orders, idempotency_keys, outbox")
            load.at_a_rate(API_PORT, RATE, DURATION, "POST")
            finish()
            p50, p99 = map(float, sql(DELAYS).strip("{}").split(","))
    cpu = used["cpu_us"]
    return {"drained": drained, "worker_us": cpu["worker"], "all_us": sum(cpu.values()), "p50_ms": p50, "p99_ms": p99,
            "idle": used["machine_idle"], "steal": used["machine_steal"]}


def report(turns):
    """The report: medians of both, and the median of the ratios within a turn."""
    about = machine()
    lines = [
        "# What a saga costs next to a step", "",
        f"`make bench-saga`, {datetime.now(timezone.utc):%Y-%m-%d}, commit {first_line('git', '-C', str(HERE), 'describe', '--always', '--dirty')}: "
        f"{len(turns)} turns of `step` and `saga` on {about['cores']} cores ({about['cpu']}), load average before it {about['load_before']:.1f}. "
        f"A backlog of {BACKLOG:,} orders, then {RATE} orders/s for {DURATION} s; one worker with default settings, one participant of each kind, "
        "PostgreSQL and Kafka on the same machine. The ratio is taken within a turn; the interval is of 95 %, by the sign test.", "",
        "| | step | saga | saga / step | 95 % interval | |", "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for key, name in FIGURES.items():
        step, saga = (median_interval([turn[side][key] for turn in turns])[0] for side in ("step", "saga"))
        ratio, low, high = median_interval([turn["saga"][key] / turn["step"][key] for turn in turns])
        interval = "" if low is None else f"{low:.2f} to {high:.2f}"
        lines.append(f"| {name} | {step:,.0f} | {saga:,.0f} | {ratio:.2f} | {interval} | {verdict(low, high)} |")
    idle = median_interval([turn[side]["idle"] for turn in turns for side in turn])[0]
    return "\n".join([*lines, "", f"The machine was idle for {100 * idle:.0f} % of the time while a backlog was drained (median).", ""])


def main():
    with Program("tbd-api", API_PORT, topics()):
        pass  # migrates the empty database
    running = {}
    try:
        for name, (port, grpc) in PARTICIPANTS.items():
            settings = {"PARTICIPANT": name, "PARTICIPANT_HOST": "127.0.0.1", "DB_NAME": name, "GRPC_PORT": str(grpc), "INVENTORY_STOCK": "100000000"}
            running[name] = Program("tbd-participant", port, settings)
        pids = {name: program.pid for name, program in running.items()}
        measure("saga", pids)  # warms the servers
        turns = []
        for number in range(TURNS):
            order = ("step", "saga") if number % 2 == 0 else ("saga", "step")
            turns.append({workflow: measure(workflow, pids) for workflow in order})
            print(json.dumps(turns[-1]), file=sys.stderr)
    finally:
        for program in running.values():
            program.stop()
    path = Path(ENV.get("RESULT") or HERE.parent / "results/saga.md")
    path.write_text(report(turns))
    print(f"written: {path}", file=sys.stderr)


main()
