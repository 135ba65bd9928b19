"""Load generators: each runs for some seconds and reports its clients' results."""

import asyncio
import base64
import json
import os
import random
import re
import socket
import struct
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


def open_model(api, rate, seconds, groups, method="POST"):
    """New orders, or known ones, at a fixed rate, independent of the answers (vegeta); latency counts from the planned moment."""
    rate = round(rate)
    body = base64.b64encode(b'{"customer_email":"user@example.com","amount_cents":1999}').decode()
    post = lambda: {
        "method": "POST", "url": api.url + "/v1/orders", "body": body,
        "header": {"Content-Type": ["application/json"], "Idempotency-Key": [str(uuid.uuid4())]},
    }
    known = lambda: f"01900000-0000-7000-8000-{random.randint(1, int(ENV['KNOWN_ORDERS'])):012x}"
    get = lambda: {"method": "GET", "url": f"{api.url}/v1/orders/{known()}"}
    target = lambda: json.dumps(post() if method == "POST" else get())
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


def plain_request(method):
    """A new order, or a look at a known one, on a connection of its own."""
    known = f"01900000-0000-7000-8000-{random.randint(1, int(ENV.get('KNOWN_ORDERS', 1))):012x}"
    path = "/v1/orders" if method == "POST" else f"/v1/orders/{known}"
    body = '{"customer_email":"user@example.com","amount_cents":1999}' if method == "POST" else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return (f"{head}Idempotency-Key: {uuid.uuid4()}\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode()


def at_a_rate(port, rate, seconds, method):
    """Open model for some hundred requests a second, without another program: each is sent at its planned moment, whatever became
    of the others. Results are the planned second, the status (0: no answer), and the seconds from the planned moment."""
    results = []

    async def one(begin, number):
        planned = begin + number / rate
        await asyncio.sleep(planned - time.monotonic())
        status = 0
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(plain_request(method))
            status = int((await reader.readline()).split()[1])
            writer.close()
        except (OSError, IndexError):
            pass
        results.append((number / rate, status, time.monotonic() - planned))

    async def everyone():
        begin = time.monotonic() + 0.1
        await asyncio.gather(*(one(begin, number) for number in range(round(rate * seconds))))

    asyncio.run(everyone())
    return sorted(results)


def quiet_connection(port):
    """A connection that has had one answer and waits; closing it leaves no TIME_WAIT port behind."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
        raise OSError("no answer")
    return connection


def ghz_command(address, method, concurrency, connections, seconds, *options):
    """Calls without reflection, which not every server has. The last calls are answered before it ends."""
    proto = HERE.parent.parent / "proto"
    command = ["ghz", "--insecure", "-i", str(proto), "--proto", str(proto / "tbd/orders/v1/orders.proto"), "-O", "json"]
    command += ["--call", f"tbd.orders.v1.OrderService.{method}", f"-c{concurrency}", f"--connections={connections}"]
    return [*command, f"-z{seconds}s", "--duration-stop=wait", "-t35s", *options, address]


def ghz_latencies(report):
    return {f"p{one['percentage']}_ms": one["latency"] / 1e6 for one in report["latencyDistribution"]}


def ghz(api, port, method, seconds, groups, concurrency, connections, data, *options):
    """Closed model, unless `options` set a rate: each of `concurrency` callers waits for its answer."""
    command = ghz_command(f"127.0.0.1:{port}", method, concurrency, connections, seconds, *data, *options)
    calls = lambda: api.counter("grpc_server_handled_total")
    out, seen = watched(command, seconds, lambda load: Window({**groups, "load": load}, calls, api.pid))
    result = json.loads(out)
    if [*result["statusCodeDistribution"]] != ["OK"]:
        raise RuntimeError(f"{method}: {result['statusCodeDistribution']} {result['errorDistribution']}")
    return {"throughput": result["rps"], **ghz_latencies(result), **seen}


def ghz_uncounted(address, method, concurrency, seconds, pid, groups):
    """Closed model, eight calls in flight for each connection. Costs are per call by ghz's count, since only tbd counts calls."""
    requests = {
        "CreateOrder": '{"customer_email":"user@example.com","amount_cents":1999}',
        "GetOrder": '{"id":"01900000-0000-7000-8000-{{printf `%012x` (randomInt 1 ' + ENV["KNOWN_ORDERS"] + ')}}"}',
    }
    options = [f"--data={requests[method]}", "--metadata={\"idempotency-key\":\"{{newUUID}}\"}"]
    command = ghz_command(address, method, concurrency, max(1, concurrency // 8), seconds, *options)
    out, seen = watched(command, seconds, lambda load: Window({**groups, "load": load}, time.monotonic, pid))
    report = json.loads(out)
    errors = sum(count for code, count in report["statusCodeDistribution"].items() if code != "OK")
    rate = (report["count"] - errors) / (report["total"] / 1e9)
    seen["cpu_us"] = {name: cpu / rate for name, cpu in seen["cpu_us"].items()}
    return {**seen, **ghz_latencies(report), "switches": seen["switches"] / rate, "rate": rate, "throughput": rate, "errors": errors}


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
