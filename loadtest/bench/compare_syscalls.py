"""System calls of a program under load, counted by strace."""

import subprocess
import tempfile
import time

import load


def syscalls(running, script, seconds):
    """Calls of each kind per request, at 64 connections."""
    with tempfile.NamedTemporaryFile("r") as report:
        tracer = subprocess.Popen(["strace", "-f", "-c", "-o", report.name, "-p", str(running.pid)], stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.5)  # until it has stopped every thread once
            before = running.requests()
            load.wrk(running, script, 64, seconds, {})
            requests = running.requests() - before
        finally:
            tracer.terminate()
            tracer.wait()
        counts = {}
        for line in report.read().splitlines():
            words = line.split()
            # % time, seconds, usecs/call, calls, perhaps errors, name
            if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
                counts[words[-1]] = int(words[3]) / max(1, requests)
    frequent = {name: count for name, count in counts.items() if count >= 0.05}
    return {"calls": sum(counts.values()), "call": frequent}
