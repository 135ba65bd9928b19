"""Ten thousand quiet connections."""

import re
import resource
from pathlib import Path

import lab
from processes import memory_mib

# tbd needs two descriptors for a connection.
DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
COUNT = 300 if lab.SHORT else min(10_000, (DESCRIPTORS - 1_000) // 2)


def memory(pid):
    virtual = re.search(r"^VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]
    # Of the whole machine: no process shows the stack that the kernel has for each thread.
    stacks = re.search(r"^KernelStack:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)[1]
    return {"virtual_mib": int(virtual) / 1024, "kernel_mib": int(stacks) / 1024, **memory_mib(pid)}


def measure(side):
    """What each connection adds to an api that has nothing else to do."""
    with lab.api(side, HTTP_MEMORY_LIMIT="4GiB") as api:
        lab.load.quiet_connection(lab.API_PORT).close()
        before, quiet = memory(api.pid), []
        try:
            for _ in range(COUNT):
                quiet.append(lab.load.quiet_connection(lab.API_PORT))
            after = memory(api.pid)
            answers = lab.load.wrk(api, "get.lua", 8, 1, {})
        finally:
            for connection in quiet:
                connection.close()
    grown = {key: after[key] - before[key] for key in before}
    return {"side": side, "threads": round(grown["threads"]), "addresses": grown["virtual_mib"], "kernel": grown["kernel_mib"], "kib": grown["rss_mib"] * 1024 / COUNT, **answers}


with lab.experiment():
    lab.seed(1000)
    seen = [measure(side) for side in lab.SIDES]
    lab.table(
        [f"{COUNT} quiet connections", "threads", "addresses", "memory for each", "kernel's stacks", "answers/s next to them"],
        [(one["side"], one["threads"], f"{one['addresses']:,.0f} MiB", f"{one['kib']:.0f} KiB", f"{one['kernel']:.0f} MiB", one["throughput"]) for one in seen],
    )
    lab.bars("memory for each connection", [(one["side"], one["kib"]) for one in seen], "KiB")
    tbd = seen[0]
    lab.claim("tbd has a thread for each connection", tbd["threads"] > 0.9 * COUNT)
    lab.claim("a thread's stack is addresses: less than a tenth of them is memory", tbd["kib"] * COUNT / 1024 < tbd["addresses"] / 10)
    lab.claim("others are still answered", all(one["throughput"] > 0 and one["errors"] == 0 for one in seen))
    for one in seen[1:]:
        lab.claim(f"{one['side']} needs no threads for them", one["threads"] < COUNT / 10)
