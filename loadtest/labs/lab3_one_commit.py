"""One commit for fifty orders."""

import os
import time
from contextlib import nullcontext
from pathlib import Path

import lab

CLIENTS = 50
DURATION = 2 if lab.SHORT else 8


def fsyncs_per_second():
    """What this disk can do, one after the other, with a block of a write-ahead log."""
    path = Path(lab.ENV["LAB_FOLDER"]) / "fsync"
    with open(path, "wb", buffering=0) as file:
        begun, count = time.monotonic(), 0
        while time.monotonic() < begun + 1:
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            count += 1
    path.unlink()
    return count


def measure(coalesce):
    # The short form must not depend on the disk: each commit takes 20 ms.
    database = lab.slow_database(20, lab.free_port()) if lab.SHORT else nullcontext({})
    with database as slow, lab.api(**slow, DB_COALESCE=coalesce, DB_MAX_CONNS="50", DB_MAX_IDLE_CONNS="50") as api:
        lab.load.wrk(api, "post.lua", CLIENTS, 1, {})
        orders, sent = api.counter("orders_created_total"), lab.statements(api, "INSERT order")
        result = lab.load.wrk(api, "post.lua", CLIENTS, DURATION, {})
        orders, sent = api.counter("orders_created_total") - orders, lab.statements(api, "INSERT order") - sent
    return {"case": f"DB_COALESCE={coalesce}", "orders_per_commit": orders / max(1, sent), **result}


with lab.experiment():
    print(f"  This disk: {fsyncs_per_second():,} writes with fsync a second, one after the other.", flush=True)
    off, on = measure("off"), measure("on")
    lab.table(
        [f"{CLIENTS} clients", "orders for each commit", "orders/s", "a client waits"],
        [(one["case"], one["orders_per_commit"], one["throughput"], f"{one['p50_ms']:.1f} ms") for one in (off, on)],
    )
    lab.bars("orders", [(one["case"], one["throughput"]) for one in (off, on)], "/s")
    lab.claim("off: each order is a commit", 0.9 < off["orders_per_commit"] < 1.1)
    lab.claim("on: a commit carries several orders", on["orders_per_commit"] > 2)
    lab.claim("no commit carries more orders than there are clients", on["orders_per_commit"] <= CLIENTS)
