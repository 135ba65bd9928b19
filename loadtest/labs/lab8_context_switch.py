"""What a context switch costs here."""

import os
import time

import lab
from processes import switches

ROUNDS = 2_000 if lab.SHORT else 50_000
CLIENTS = 16


def measured(go_round):
    """Seconds for each round, in the fastest of ten slices, since other programs disturb; switches of this process for each round."""
    switched, slices = sum(switches(os.getpid()).values()), []
    for _ in range(10):
        begun = time.monotonic()
        for _ in range(ROUNDS // 10):
            go_round()
        slices.append(time.monotonic() - begun)
    return min(slices) / (ROUNDS // 10), (sum(switches(os.getpid()).values()) - switched) / ROUNDS


def to_and_fro(cores):
    """Two processes that wake each other in turn, on these cores."""
    there, back = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {cores[-1]})
        for _ in range(ROUNDS):
            os.write(back[1], os.read(there[0], 1))
        os._exit(0)
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores[0]})

    def go_round():
        os.write(there[1], b"x")
        os.read(back[0], 1)

    result = measured(go_round)
    os.sched_setaffinity(0, everywhere)
    os.waitpid(child, 0)
    for end in (*there, *back):
        os.close(end)
    return result


def alone():
    """The same system calls in one process: nobody is woken."""
    ends = [os.pipe(), os.pipe()]

    def go_round():
        for read, write in ends:
            os.write(write, b"x")
            os.read(read, 1)

    result = measured(go_round)
    for end in (end for pipe in ends for end in pipe):
        os.close(end)
    return result


def requests(side):
    with lab.api(side) as api:
        lab.load.wrk(api, "post.lua", CLIENTS, 1, {})
        return lab.load.wrk(api, "post.lua", CLIENTS, 3 if lab.SHORT else 8, {"api": api.pid})


with lab.experiment():
    cores = sorted(os.sched_getaffinity(0))
    calls, without = alone()
    seen = [("the same calls in one process", calls, without), ("two processes on one core", *to_and_fro(cores[:1]))]
    if len(cores) > 1:
        seen.append(("two processes on two cores", *to_and_fro(cores[:2])))
    lab.table(["there and back", "µs", "switches of one process"], [(name, took * 1e6, f"{count:.2f}") for name, took, count in seen])
    cost = max(0, seen[1][1] - calls) / 2
    print(f"  A switch on one core costs {cost * 1e6:.1f} µs more than its system calls.", flush=True)
    posts = [(side, requests(side)) for side in lab.SIDES]
    lab.table(
        [f"a POST, {CLIENTS} clients", "switches", "CPU of the api", "of it switches, at the cost above"],
        [(side, one["switches"], f"{one['cpu_us']['api']:.0f} µs", f"{100 * one['switches'] * cost * 1e6 / one['cpu_us']['api']:.0f} %") for side, one in posts],
    )
    lab.bars("switches for each POST", [(side, one["switches"]) for side, one in posts], "")
    lab.claim("a process that waits for another is switched away each time", seen[1][2] > 0.9)
    lab.claim("one that finds its byte is not", without < 0.1)
    lab.claim("a POST in tbd crosses threads: it is switched at least twice", posts[0][1]["switches"] >= 2)
