"""Resource usage of processes, from /proc: CPU time, memory, context switches."""

import os
import platform
import re
import subprocess
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def stat(pid):
    """The fields of /proc/PID/stat after the name, which may contain any character."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid):
    """User and system time, including reaped children."""
    try:
        fields = stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def cpu_with_children(pid):
    """As `cpu_seconds`, including live children."""
    return cpu_seconds(pid) + sum(cpu_with_children(child) for child in children(pid))


def switches(pid):
    """Context switches of each live thread."""
    seen = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        seen[task.name] = sum(map(int, re.findall(r"ctxt_switches:\t(\d+)", text)))
    return seen


def memory_mib(pid):
    """Current and peak resident memory in MiB, and the number of threads."""
    text = Path(f"/proc/{pid}/status").read_text()
    field = lambda name: int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1])
    return {"rss_mib": field("VmRSS") / 1024, "peak_mib": field("VmHWM") / 1024, "threads": field("Threads")}


def machine_cpu():
    """Busy, idle and stolen seconds of all cores together."""
    fields = [int(n) / TICK for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle, steal = fields[3] + fields[4], fields[7]
    return {"busy": sum(fields) - idle - steal, "idle": idle, "steal": steal}


def mhz():
    """The cores' mean frequency, as far as the machine shows it."""
    seen = [float(value) for value in re.findall(r"cpu MHz\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text())]
    return sum(seen) / max(1, len(seen))


class Window:
    """Resource usage between its beginning and its end."""

    def __init__(self, groups, requests, main):
        """`groups`: name to process id; `requests`: counts them; `main`: the process id whose switches are counted."""
        self.groups, self.requests, self.main = groups, requests, main
        self.begun = self.look()

    def look(self):
        return {
            "time": time.monotonic(),
            "requests": self.requests(),
            "switches": switches(self.main),
            "machine": machine_cpu(),
            "cpu": {name: cpu_with_children(pid) for name, pid in self.groups.items()},
        }

    def end(self):
        """Per request: CPU microseconds by group, context switches. And how busy the machine was."""
        a, b = self.begun, self.look()
        requests = max(1e-9, b["requests"] - a["requests"])
        switched = sum(count - a["switches"].get(thread, 0) for thread, count in b["switches"].items())
        machine = {key: b["machine"][key] - a["machine"][key] for key in a["machine"]}
        ours = sum(b["cpu"].values()) - sum(a["cpu"].values())
        return {
            "rate": requests / (b["time"] - a["time"]),
            "cpu_us": {name: (b["cpu"][name] - a["cpu"][name]) / requests * 1e6 for name in self.groups},
            "switches": switched / requests,
            "machine_idle": machine["idle"] / max(1e-9, sum(machine.values())),
            "machine_steal": machine["steal"] / max(1e-9, sum(machine.values())),
            # CPU of processes outside the groups, and the kernel's own.
            "machine_other": max(0.0, machine["busy"] - ours) / max(1e-9, sum(machine.values())),
            "mhz": mhz(),
            **memory_mib(self.main),
        }


def first_line(*command):
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not found"
    lines = (run.stdout + run.stderr).strip().splitlines()
    return lines[0] if lines else ""


def machine():
    """The machine, for the record."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }
