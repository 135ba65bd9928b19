"""The system under test: the programs, started and stopped, and its database."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
ENV = os.environ  # scripts/bench sets the servers' addresses


def sql(text):
    """Runs statements in psql and returns the output of the last one."""
    return psql("-c", text)


def sql_file(name, **variables):
    settings = [word for name_, value in variables.items() for word in ("-v", f"{name_}={value}")]
    return psql(*settings, "-f", str(HERE / name))


def psql(*arguments):
    run = subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *arguments], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"psql: {run.stderr.strip()}")
    return run.stdout.strip()


def wait_until(what, seconds, condition):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"gave up waiting for {what}")
        time.sleep(0.005)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PORTS = {"tbd-api": "API_PORT", "tbd-worker": "WORKER_PORT", "tbd-participant": "HTTP_PORT"}


class Program:
    """One of tbd's programs. The environment holds its settings; `settings` override them."""

    def __init__(self, name, port, settings, folder=ENV["TBD_BIN"], core=None):
        """`core`: the only one that it may run on."""
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(Path(ENV["BENCH_STATE"]) / f"{name}.log", "ab")
        begun = time.monotonic()
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        self.process = subprocess.Popen(
            [*pinned, Path(folder) / name], env={**ENV, **settings, PORTS[name]: str(port)}, stdout=self.log, stderr=self.log
        )
        self.pid = self.process.pid
        try:
            wait_until(f"{name} to be ready", 60, self.is_ready)
        except TimeoutError:
            self.stop()
            raise
        self.ready_seconds = time.monotonic() - begun

    def is_ready(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"it ended with {self.process.returncode}; see {self.log.name}")
        try:
            return self.get("/readyz") is not None
        except OSError:
            return False

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return response.read().decode()

    def counter(self, name):
        """The sum of a metric over all label values except probes."""
        lines = re.findall(rf"^{name}(\{{.*?\}})? (\S+)$", self.get("/metrics"), re.M)
        return sum(float(value) for labels, value in lines if not re.search('route="/(metrics|healthz|readyz)"', labels))

    def requests(self):
        return self.counter("http_requests_total")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def seed(known):
    """Known orders, in an otherwise empty database."""
    sql_file("seed.sql", known=known)


def outbox_is_empty():
    return sql("SELECT NOT EXISTS (SELECT FROM outbox)") == "t"


def settle():
    """Waits until housekeeping has caught up, so that one measurement does not slow the next."""
    wait_until("the outbox to be empty", 60, outbox_is_empty)
