"""Load generators: each runs for some seconds and reports its clients' results."""

import base64
import json
import os
import re
import subprocess
import time
import uuid
from pathlib import Path

from processes import Window

HERE = Path(__file__).parent
ENV = os.environ
# A window opens and closes this long after and before a load's beginning and end.
MARGIN = 0.4


def watched(command, seconds, window=None, **options):
    """Runs a load and returns its output, and the window over its middle (None without)."""
    load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    seen = None
    if window:
        time.sleep(MARGIN)
        open_window = window(load.pid)
        time.sleep(seconds - 2 * MARGIN)
        seen = open_window.end()
    out, err = load.communicate()
    if load.returncode != 0:
        raise RuntimeError(f"{command[0]}: {err.strip() or out.strip()}")
    return out, seen


def wrk(api, script, connections, seconds, groups):
    """Closed model: each connection sends its next request after its answer. A refusal counts as an error."""
    window = (lambda load: Window({**groups, "load": load}, api.requests, api.pid)) if groups else None
    command = ["wrk", f"-t{min(2, connections)}", f"-c{connections}", f"-d{seconds}s", "--timeout", "35s"]
    env = {**ENV, "BENCH_LUA": str(HERE)}
    out, seen = watched([*command, "-s", str(HERE / script), api.url], seconds, window, env=env)
    result = json.loads(out.strip().splitlines()[-1])
    good = result["requests"] - result["errors"]
    return {"throughput": good / result["seconds"], **result, **(seen or {})}


def pgbench(script, clients, seconds, known):
    """PostgreSQL alone: the rate of one prepared statement."""
    command = ["pgbench", "-n", "-M", "prepared", f"-c{clients}", f"-j{min(2, clients)}", f"-T{seconds}"]
    out, _ = watched([*command, "-D", f"known={known}", "-f", str(HERE / script)], seconds)
    if not re.search(r"tps = [1-9]", out) or re.search(r"failed transactions: [1-9]", out):
        raise RuntimeError(f"pgbench {script}: {out}")
    throughput = float(re.search(r"tps = (\S+)", out)[1])
    return {"throughput": throughput, "mean_ms": clients / throughput * 1e3}


def open_model(api, rate, seconds, groups):
    """POST at a fixed rate, independent of the answers (vegeta); latency counts from the planned moment."""
    rate = round(rate)
    body = base64.b64encode(b'{"customer_email":"user@example.com","amount_cents":1999}').decode()
    target = lambda: json.dumps({
        "method": "POST", "url": api.url + "/v1/orders", "body": body,
        "header": {"Content-Type": ["application/json"], "Idempotency-Key": [str(uuid.uuid4())]},
    })
    targets = Path(ENV["BENCH_STATE"]) / "targets.json"
    targets.write_text("\n".join(target() for _ in range(rate * seconds)))
    results = targets.with_suffix(".bin")
    window = lambda load: Window({**groups, "load": load}, api.requests, api.pid)
    command = ["vegeta", "attack", f"-targets={targets}", "-format=json", f"-rate={rate}", f"-duration={seconds}s"]
    # As many connections as a client of this rate needs, and no more than the api has threads.
    command += ["-connections=64", "-max-connections=1000", "-timeout=35s", f"-output={results}"]
    _, seen = watched(command, seconds, window)
    report = subprocess.run(["vegeta", "report", "-type=json", results], capture_output=True, text=True, check=True)
    report = json.loads(report.stdout)
    latencies = {f"p{key[:2]}_ms": value / 1e6 for key, value in report["latencies"].items() if key.endswith("th")}
    results.unlink()
    targets.unlink()
    # Until the last answer: late answers count, and so does their time.
    accepted = report["throughput"]
    return {**seen, **latencies, "offered": rate, "accepted": accepted, "success": report["success"], "statuses": report["status_codes"]}


def k6(api, script, seconds, vus, groups):
    """The k6 script as users run it."""
    window = lambda load: Window({**groups, "load": load}, api.requests, api.pid)
    summary = Path(ENV["BENCH_STATE"]) / "k6.json"
    env = {**ENV, "BASE_URL": api.url, "VUS": str(vus), "DURATION": f"{seconds}s"}
    command = [ENV["K6"], "run", "--quiet", "--no-usage-report", f"--summary-export={summary}", str(HERE.parent / script)]
    _, seen = watched(command, seconds, window, env=env)
    metrics = json.loads(summary.read_text())["metrics"]
    duration = metrics["http_req_duration"]
    return {"throughput": metrics["http_reqs"]["rate"], "p50_ms": duration["med"], "p95_ms": duration["p(95)"], **seen}
