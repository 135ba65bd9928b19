"""The frame of a lab: its text from docs/labs.md, the programs, what is watched, and plots for a terminal."""

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

os.environ["KNOWN_ORDERS"] = "1000"

import load  # noqa: E402  loadtest/bench; reads the environment
from system import ENV, Program, free_port, listens, seed, sql, wait_until  # noqa: E402,F401

ROOT = Path(__file__).parent.parent.parent
SHORT = bool(ENV["SHORT"])
API_PORT, WORKER_PORT = int(ENV["BENCH_API_PORT"]), int(ENV["BENCH_WORKER_PORT"])
BINARIES = {"tbd": ENV["TBD_BIN"], **{twin: f"{ENV['TWINS_BIN']}/{twin}" for twin in ENV["LAB_TWINS"].split()}}
SIDES = [*BINARIES]
# A connection and a statement for each request, so that what waits for what is easy to count.
ALONE = {"DB_COALESCE": "off", "TWIN_PIPELINE": "off"}
GROUP = f"lab-{time.time_ns()}"
TOPICS = {f"KAFKA_TOPIC_ORDER_{kind}": f"{GROUP}.{kind.lower()}" for kind in ("CREATED", "PROCESSED", "FAILED", "DLQ")}
COMMON = {**TOPICS, "KAFKA_CONSUMER_GROUP": GROUP, "KAFKA_TOPIC_PARTITIONS": "4", "API_GRPC_PORT": "0", "LOG_LEVEL": "warn", "WORKER_HOST": "127.0.0.1"}

failed = []


def program(name, port, side="tbd", **settings):
    return Program(name, port, {**COMMON, **settings}, BINARIES[side])


def api(side="tbd", **settings):
    """A ready api: of tbd, or of a twin."""
    return program("tbd-api", API_PORT, side, **settings)


def worker(number=0, **settings):
    return program("tbd-worker", WORKER_PORT + number, **settings)


# ---------------------------------------------------------------------------------------------------------- the text


def part(name):
    """A part of this lab's section in docs/labs.md, such as `Why`: the file is its only place."""
    number = re.search(r"lab(\d+)_", sys.argv[0])[1]
    section = re.search(rf"^(## {number}\. .*?)(?=^## |\Z)", (ROOT / "docs/labs.md").read_text(), re.M | re.S)[1]
    if name == "title":
        return section.splitlines()[0].lstrip("# ")
    return re.search(rf"^\*\*{name}\.\*\* (.*?)(?=^\*\*|\Z)", section, re.M | re.S)[1].strip()


@contextmanager
def experiment():
    """Asks for a prediction, lets the experiment run, and explains it."""
    with api():  # migrates the empty database
        pass
    print(f"\n{part('title')}\n\n{part('Question')}\n\nPredict. {part('Predict')}\n", flush=True)
    if sys.stdin.isatty():
        input("Write it down, then press Enter. ")
    yield
    print(f"\nWhy. {part('Why')}\n", flush=True)
    if failed:
        print("This run did not show it: " + "; ".join(failed), file=sys.stderr)
        sys.exit(3)


def claim(text, holds):
    """What the mechanism implies, whatever the machine's speed."""
    print(f"  {'yes' if holds else 'NO '}  {text}", flush=True)
    if not holds:
        failed.append(text)


# ---------------------------------------------------------------------------------------------------------- what is seen


def table(header, rows):
    cells = [[f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print()
    for row in cells:
        print("  " + "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))))
    print(flush=True)


def bars(title, values, unit):
    """`values`: label and number."""
    print(f"\n  {title}")
    most = max((value for _, value in values), default=0) or 1
    wide = max(len(label) for label, _ in values)
    for label, value in values:
        print(f"  {label.ljust(wide)} {'█' * round(40 * value / most):<40} {value:,.1f} {unit}")
    print(flush=True)


def curve(title, values, unit):
    """A line of bars over time."""
    most = max(values, default=0) or 1
    print(f"\n  {title}, at most {most:,.1f} {unit}\n  |" + "".join(" ▁▂▃▄▅▆▇█"[round(8 * value / most)] for value in values) + "|", flush=True)


@contextmanager
def watch(running, *names):
    """Samples metrics of a program every 20 ms: yields name to list of values."""
    seen, stop = {name: [] for name in names}, threading.Event()

    def look():
        while not stop.wait(0.02):
            text = running.get("/metrics")
            for name in names:
                found = re.search(rf"^{name} (\S+)$", text, re.M)
                seen[name].append(float(found[1]) if found else 0.0)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        stop.set()
        looking.join()


def statements(running, of):
    """Statements that a program has sent, by the name of the query."""
    lines = re.findall(r'^db_query_duration_seconds_count\{query="(.*?)"\} (\S+)$', running.get("/metrics"), re.M)
    return sum(float(count) for query, count in lines if query.startswith(of))


# ------------------------------------------------------------------------------------------------------- what is done


@contextmanager
def slow_database(milliseconds, port):
    """PostgreSQL behind a proxy that holds its answers back: yields the settings of a program behind it."""
    proxy = subprocess.Popen([sys.executable, Path(__file__).parent / "delay.py", str(port), ENV["DB_PORT"], f"{milliseconds:.0f}"])
    try:
        wait_until("the proxy", 60, lambda: listens(port))
        yield {"DB_PORT": str(port)}
    finally:
        proxy.terminate()
        proxy.wait()


def at_a_rate(rate, seconds, method):
    return load.at_a_rate(API_PORT, rate, seconds, method)


def kafka_tool(main, *arguments):
    """The output of one of Kafka's own programs."""
    command = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{ENV['KAFKA_HOME']}/*", main, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
