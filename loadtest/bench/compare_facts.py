"""Static facts of both sides: lines, dependencies, binaries and compile times."""

import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "loadtest" / "async-twin"
PROGRAMS = ("tbd-api", "tbd-worker")
# The code that waits, on each side. The rest of tbd (domain, SQL, formats, metrics, logs) is in both.
AREAS = {
    "HTTP": (["crates/http/src", "src/orders/adapters/http/handlers.rs"], ["src/http.rs"]),
    "PostgreSQL": (["crates/postgres/src", "src/orders/adapters/postgres"], ["src/store.rs"]),
    "Kafka": (["crates/kafka/src", "src/orders/adapters/kafka/bus.rs"], ["src/bus.rs"]),
    "delivery, housekeeping": (["src/orders/app/delivery.rs", "src/orders/app/delivery", "src/orders/app/housekeeping.rs",
                                "src/orders/app/housekeeping"], ["src/delivery.rs"]),
    "worker": (["src/orders/adapters/kafka/consumer.rs", "src/orders/app/commands/process_orders.rs",
                "src/orders/app/commands/process_orders"], ["src/worker.rs"]),
    "start, stop": (["src/wiring", "src/bin"], ["src/service.rs", "src/bin/tbd-api.rs", "src/bin/tbd-worker.rs"]),
}
SHARED = {"migrations", "health.rs"}
ONLY_TESTS = {"tests.rs", "fakes.rs", "fake_broker.rs"}


def code_lines(path):
    """Lines of code without blank lines, comments and tests."""
    text = re.split(r"^#\[cfg\(test\)\]\n(?:pub(?:\(\w+\))? )?mod \w+ \{", path.read_text(), flags=re.M)[0]
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("//"))


def lines(base, names):
    total = 0
    for name in names:
        path = base / name
        files = path.rglob("*.rs") if path.is_dir() else [path]
        total += sum(code_lines(file) for file in files
                     if file.name not in ONLY_TESTS and "tests" not in file.parts and not SHARED & set(file.relative_to(base).parts))
    return total


def cargo(folder, *arguments):
    run = subprocess.run(["cargo", *arguments, "--locked"], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout


def dependencies(folder, *options):
    """Packages in the programs, without this one."""
    tree = cargo(folder, "tree", "--edges=normal", "--prefix=none", "--format={p}", *options)
    return len({line.split(" (")[0] for line in tree.splitlines() if line}) - 1


def compile_seconds(folder):
    """CPU time and wall-clock time of a clean release build; CPU time hardly depends on the machine's other work."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    with tempfile.TemporaryDirectory(dir=ROOT / ".local") as target:
        cpu, begun = used(), time.monotonic()
        cargo(folder, "build", "--release", "--bin=tbd-api", "--bin=tbd-worker", f"--target-dir={target}")
        return round(used() - cpu), round(time.monotonic() - begun)


def gather(binaries):
    """Maps each fact's name to its value on each side."""
    facts = {f"lines, {area}": (lines(ROOT, ours), lines(TWIN, theirs)) for area, (ours, theirs) in AREAS.items()}
    facts["packages in it"] = (dependencies(ROOT), dependencies(TWIN))
    facts["packages in it, without tbd's own"] = ("", dependencies(TWIN, "--prune=tbd"))
    for name in PROGRAMS:
        facts[f"{name}, MiB"] = tuple(round(os.stat(Path(folder) / name).st_size / 2**20, 1) for folder in binaries.values())
    ours, theirs = compile_seconds(ROOT), compile_seconds(TWIN)
    facts["compiling both programs for release, CPU seconds"] = (ours[0], theirs[0])
    facts["the same by the clock, seconds"] = (ours[1], theirs[1])
    return facts
