"""The connection pool: too small and too large."""

import re
from pathlib import Path

import lab

WAIT = 0.01  # seconds that the database takes
THREADS = 32 if lab.SHORT else 200
POOLS = (1, 32) if lab.SHORT else (1, 4, 16, 64, 200)
DURATION = 1 if lab.SHORT else 5


def backends():
    """PostgreSQL's processes for this database: their number and memory, each shared page divided by its users."""
    pids = lab.sql("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").split()
    kib = 0
    for pid in pids:
        try:
            kib += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
        except OSError:
            pass
    return len(pids), kib / 1024


def measure(pool, milliseconds):
    settings = {**lab.ALONE, "HTTP_WORKERS": str(THREADS), "DB_MAX_CONNS": str(pool), "DB_MAX_IDLE_CONNS": str(pool)}
    with lab.slow_database(milliseconds, lab.free_port()) as slow:
        with lab.api(**(slow if milliseconds else {}), **settings) as api:
            lab.load.wrk(api, "get.lua", THREADS, 1, {})
            with lab.watch(api, "db_connections_waiting", "db_connections_in_use") as seen:
                result = lab.load.wrk(api, "get.lua", THREADS, DURATION, {})
            processes, memory = backends()
    waiting, in_use = (max(values) for values in seen.values())
    return {"pool": pool, "waiting": round(waiting), "in_use": round(in_use), "processes": processes, "memory": memory, **result}


with lab.experiment():
    lab.seed(1000)
    far = [measure(pool, WAIT * 1000) for pool in POOLS]
    lab.table(
        [f"{THREADS} threads, database {WAIT * 1000:.0f} ms away", "by Little's law", "measured/s", "in use", "threads waiting for one"],
        [(f"DB_MAX_CONNS={one['pool']}", f"{one['pool'] / WAIT:,.0f}/s", one["throughput"], one["in_use"], one["waiting"]) for one in far],
    )
    lab.bars("answers, database far away", [(str(one["pool"]), one["throughput"]) for one in far], "/s")
    near = [measure(pool, 0) for pool in POOLS]
    lab.table(
        [f"{THREADS} threads, database on this machine", "measured/s", "p99", "PostgreSQL's processes", "their memory"],
        [(f"DB_MAX_CONNS={one['pool']}", one["throughput"], f"{one['p99_ms']:.0f} ms", one["processes"], f"{one['memory']:.0f} MiB") for one in near],
    )
    small, large = far[0], far[-1]
    lab.claim("one connection: no more than one statement at a time", small["in_use"] <= 1 and small["throughput"] <= 1.05 / WAIT)
    lab.claim("the other threads wait for it", small["waiting"] > THREADS / 2)
    lab.claim("a large pool has more statements in progress than one", large["in_use"] > 1)
    lab.claim("each connection is a process of PostgreSQL", near[-1]["processes"] > POOLS[-1] / 2 and near[-1]["memory"] > near[0]["memory"])
