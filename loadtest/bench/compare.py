"""Comparison of tbd and its twins under the same loads, in turns; scripts/compare sets everything up."""

import os
import resource
import sys
import time
from datetime import datetime, timezone

import compare_facts
import compare_report
from compare_cases import BINARIES, DURATION, KNOWN, LENGTH, PARTS, TURNS, measured, parts, program, warm
from processes import machine
from system import ENV, seed, settle

# A turn is disturbed if more of the machine's CPU than this went to its host, or to foreign processes and the kernel.
STEAL_MAX, OTHER_MAX = 0.02, 0.15
REPEATS_MAX = int(ENV.get("REPEATS") or TURNS)


def disturbance():
    """What the machine did meanwhile: the largest shares of CPU for its host and for foreign processes."""
    most = lambda name: max((one[name] for one in measured if name in one), default=0.0)
    return {"steal": most("machine_steal"), "other": most("machine_other"), "load": os.getloadavg()[0]}


def is_disturbed(turn):
    return turn["steal"] > STEAL_MAX or turn["other"] > OTHER_MAX


def in_turns(measure, sides, turns):
    """Every case of every side once in each turn. A disturbed turn is measured again, whatever its result."""
    kept, disturbances, repeats = [], [], 0
    while len(disturbances) < turns:
        turn = len(disturbances)
        # The sides take turns in going first.
        first = turn % len(sides)
        measured.clear()
        for side in [*list(sides)[first:], *list(sides)[:first]]:
            measure(side, sides[side])
        seen = disturbance()
        if is_disturbed(seen) and repeats < REPEATS_MAX:
            repeats += 1
            print(f"disturbed, once more: {seen}", file=sys.stderr)
            continue
        kept += [{**one, "turn": turn} for one in measured]
        disturbances.append({**seen, "disturbed": is_disturbed(seen)})
    return {"measured": kept, "turns": disturbances, "repeated": repeats}


def main():
    wanted = (ENV.get("PARTS") or parts).split()
    with program("threads") as running:  # migrates the empty database
        # Until the JIT compiler of Kafka's JVM has settled, it takes CPU from the first program.
        servers_warm = warm(running, "post.lua", 5)
        settle()
    ENV["KNOWN_ORDERS"] = str(KNOWN)
    for part in wanted:
        begun = time.monotonic()
        about = {
            "taken": datetime.now(timezone.utc).isoformat(timespec="seconds"), "length": LENGTH, "duration_s": DURATION,
            "machine": {**machine(), "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, "servers_warm": servers_warm,
        }
        if part == "build":
            compare_report.keep(part, {**about, "facts": compare_facts.gather(BINARIES)})
            continue
        measure, sides = PARTS[part]
        seed(KNOWN)
        sides = {side: settings for side, settings in sides.items() if side.split(",")[0] in BINARIES}
        # Counts of system calls need no interval.
        result = in_turns(measure, sides, 1 if part == "syscalls" else TURNS)
        compare_report.keep(part, {**about, "seconds": round(time.monotonic() - begun), **result})
    compare_report.write()


main()
