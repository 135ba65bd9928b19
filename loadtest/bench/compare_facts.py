"""Static facts of the sides: lines, dependencies, binaries and compile times."""

import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "loadtest" / "async-twin"
GO = ROOT / "loadtest" / "go-twin"
PROGRAMS = ("tbd-api", "tbd-worker")
# The code that waits, on each side. The rest of tbd (domain, SQL, formats, metrics, logs) is in the async twin, too; the Go
# twin has its own, in order.go and sql.go.
AREAS = {
    "HTTP": (["crates/http/src", "src/orders/adapters/http/handlers.rs"], ["src/http.rs"], ["twin/http.go"]),
    "PostgreSQL": (["crates/postgres/src", "src/orders/adapters/postgres"], ["src/store.rs"], ["twin/store.go", "twin/batch.go"]),
    "Kafka": (["crates/kafka/src", "src/orders/adapters/kafka/bus.rs"], ["src/bus.rs"], ["twin/bus.go"]),
    "delivery, housekeeping": (["src/orders/app/delivery.rs", "src/orders/app/housekeeping.rs"], ["src/delivery.rs"], ["twin/delivery.go"]),
    "worker": (["src/orders/adapters/kafka/consumer.rs", "src/orders/app/commands/process_orders.rs"], ["src/worker.rs"], ["twin/worker.go"]),
    "start, stop": (["src/wiring", "src/bin"], ["src/service.rs", "src/bin/api.rs", "src/bin/worker.rs"], ["twin/service.go", "cmd"]),
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
        files = [*path.rglob("*.rs"), *path.rglob("*.go")] if path.is_dir() else [path]
        total += sum(code_lines(file) for file in files
                     if file.name not in ONLY_TESTS and "tests" not in file.parts and not SHARED & set(file.relative_to(base).parts))
    return total


def run(folder, *command, **env):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env={**os.environ, **env})
    return done.stdout


def packages(folder, *options):
    """Packages in the programs, without this one."""
    tree = run(folder, "cargo", "tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}", *options)
    return len({line.split(" (")[0] for line in tree.splitlines() if line}) - 1


def modules():
    """The Go twin's modules, without its own."""
    return len(set(run(GO, "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/...").split())) - 1


def compile_seconds(build):
    """CPU time and wall-clock time of a clean release build; CPU time hardly depends on the machine's other work."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    with tempfile.TemporaryDirectory(dir=ROOT / ".local") as target:
        cpu, begun = used(), time.monotonic()
        build(target)
        seconds = round(used() - cpu), round(time.monotonic() - begun)
        subprocess.run(["chmod", "-R", "u+w", target], check=True)  # Go's cache is read-only
    return seconds


def gather(binaries):
    """Maps each fact's name to its value on each side."""
    cargo = lambda *options: lambda target: run(ROOT, "cargo", "build", "--release", "--locked", f"--target-dir={target}", *options)
    sides = {
        "threads": (packages(ROOT), cargo("--package=tbd", "--bins")),
        "async": (packages(TWIN), cargo("--package=tbd-async-twin", "--bin=async-api", "--bin=async-worker")),
    }
    if "go" in binaries:
        sides["go"] = (modules(), lambda target: run(GO, "go", "build", f"-o={target}/", "./cmd/...", GOCACHE=f"{target}/cache"))
    facts = {f"lines, {area}": tuple(map(lines, (ROOT, TWIN, GO), names)) for area, names in AREAS.items()}
    facts["packages in it; of Go, modules"] = tuple(count for count, _ in sides.values())
    for name in PROGRAMS:
        facts[f"{name}, MiB"] = tuple(round(os.stat(Path(folder) / name).st_size / 2**20, 1) for folder in binaries.values())
    spent = [compile_seconds(build) for _, build in sides.values()]
    facts["compiling both programs for release, CPU seconds"] = tuple(cpu for cpu, _ in spent)
    facts["the same by the clock, seconds"] = tuple(clock for _, clock in spent)
    return facts
