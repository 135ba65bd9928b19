"""Results as JSON, Markdown tables and plots; each figure is the median of its repetitions, with minimum and maximum."""

import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent.parent / "results"
CONDITIONS = ("connections", "share", "orders", "value")
plt.rcParams.update({"svg.hashsalt": "tbd", "axes.grid": True, "grid.alpha": 0.3, "figure.figsize": (8, 4.5)})


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key} ")
        elif isinstance(value, (int, float)):
            yield prefix + key, value


def gather(measured):
    """Maps case and conditions to each figure's values, one per repetition, in the order of the first measurement."""
    gathered = {}
    for one in measured:
        name = (one["case"], *(one.get(condition) for condition in CONDITIONS if condition in one))
        figures = gathered.setdefault(name, {})
        for figure, value in flat({key: value for key, value in one.items() if key not in ("case", *CONDITIONS)}):
            figures.setdefault(figure, []).append(value)
    return gathered


def spread(seen):
    return [statistics.median(seen), min(seen), max(seen)]


def summarise(measured):
    """As above, with the median, minimum and maximum of the values."""
    return {name: {figure: spread(seen) for figure, seen in figures.items()} for name, figures in gather(measured).items()}


def digits(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def shown(figure):
    """Median, with the spread in small print."""
    if figure is None:
        return ""
    median, least, most = figure
    return digits(median) if least == most else f"{digits(median)} <sub>{digits(least)}–{digits(most)}</sub>"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def row(name, figures, wanted):
    return [*map(str, name), *(shown(figures.get(figure)) for figure in wanted)]


# -------------------------------------------------------------------------------------------------------- Markdown


def ratios(summary, measured):
    """The figures that are independent of the machine's speed: each ratio within one repetition."""
    gathered = gather(measured)
    rates = lambda name: gathered.get(name, {}).get("throughput", [])

    def ratio(what, one, other, goal):
        seen = [mine / its for mine, its in zip(rates(one), rates(other))]
        if seen:
            yield [what, shown(spread(seen)), goal]

    def figure(what, name, key, goal, unit=""):
        if name in summary and key in summary[name]:
            yield [what, shown(summary[name][key]) + unit, goal]

    insert, select, update = (("pgbench " + script, 64) for script in ("insert", "select", "update"))
    yield from ratio("POST direct, 64 connections, to pgbench's insert, 64 clients", ("POST direct", 64), insert, "≥ 1.0")
    yield from ratio("POST outbox, 64 connections, to pgbench's insert, 64 clients", ("POST outbox", 64), insert, "")
    for connections in (1, 20, 64, 256):
        for case in ("POST direct", "GET"):
            both = (case, connections), (f"{case}, not coalesced", connections)
            yield from ratio(f"{case}, coalesced to not coalesced, {connections} connections", *both, "> 1")
    yield from ratio("replay, 64 connections, to pgbench's select, 64 clients", ("replay", 64), select, "≥ 0.5")
    yield from ratio("GET by id, 64 connections, to pgbench's select, 64 clients", ("GET", 64), select, "≥ 0.5")
    for connections in (1, 20, 64, 256):
        for method, goal in (("CreateOrder", "≥ 1.0"), ("GetOrder", "")):
            both = (f"{method}, 8 connections", connections), (f"REST next to {method}", connections)
            yield from ratio(f"{method}, {connections} calls over 8 connections, to REST over {connections}", *both, goal)
    yield from ratio("worker's backlog to pgbench's update, 64 clients", ("backlog",), update, "≥ 1.5")
    yield from figure("p99 of POST at 50 % of capacity", ("POST at 50 % of capacity",), "p99_ms", "≤ 15 ms", " ms")
    yield from figure("p99 from POST to completed at 50 % of capacity", ("POST to completed", 50), "p99_ms", "< 150 ms", " ms")
    yield from figure("api's CPU per POST, 64 connections", ("POST direct", 64), "cpu_us api", "≤ 120 µs", " µs")
    yield from figure("api's CPU per GET, 64 connections", ("GET", 64), "cpu_us api", "≤ 50 µs", " µs")
    yield from figure("api's CPU per CreateOrder, 64 calls over 8 connections", ("CreateOrder, 8 connections", 64), "cpu_us api", "", " µs")
    yield from figure("api's CPU per GetOrder, 64 calls over 8 connections", ("GetOrder, 8 connections", 64), "cpu_us api", "", " µs")
    yield from figure("api's highest resident memory, 64 connections", ("POST direct", 64), "peak_mib", "< 48 MiB", " MiB")
    yield from figure("worker's highest resident memory", ("backlog",), "peak_mib", "< 48 MiB", " MiB")
    yield from figure("api's start until ready", ("api start",), "ready_seconds", "< 1 s", " s")


def markdown(about, summary, measured, plots):
    text = ["# What was measured\n", "Each figure: the median of its repetitions, and from the least to the most of them."]
    text.append("How it is measured and how to read it: [docs/performance.md](../../docs/performance.md).\n")
    named = {"taken": about["taken"], "took": f"{about['seconds']} s", **about["machine"], **about["versions"], **about["settings"]}
    text.append(table(["", ""], [[key, str(value)] for key, value in named.items()]))
    found = list(ratios(summary, measured))
    if found:
        text += ["## Against the goals\n", table(["", "measured", "goal"], found)]
    chosen = lambda *starts: {name: figures for name, figures in summary.items() if name[0].startswith(starts)}
    alone = chosen("pgbench")
    if alone:
        rows = [row(name, figures, ["throughput", "mean_ms"]) for name, figures in alone.items()]
        text += ["## PostgreSQL alone\n", table(["", "clients", "per second", "mean ms"], rows)]
    loads = {name: figures for name, figures in summary.items() if "switches" in figures and not name[0].startswith("sweep")}
    if loads:
        head = ["", "", "per second", "p50 ms", "p99 ms", "api µs", "worker µs", "PostgreSQL µs", "Kafka µs", "load µs"]
        wanted = ["throughput", "p50_ms", "p99_ms", *(f"cpu_us {who}" for who in ("api", "worker", "postgres", "kafka", "load"))]
        rows = []
        for (case, *condition), figures in loads.items():
            figures = {"throughput": figures.get("rate"), **figures}
            condition = f"{condition[0]} %" if case == "POST to completed" else "".join(map(str, condition))
            rest = [shown(figures.get(name)) for name in ("switches", "rss_mib", "threads", "machine_idle", "machine_steal")]
            rows.append([case, condition, *(shown(figures.get(figure)) for figure in wanted), *rest])
        head += ["switches", "resident MiB", "threads", "idle", "steal"]
        text += ["## The system\n", "CPU microseconds and context switches are per request (of the worker: per order).\n", table(head, rows)]
    lists = chosen("list, ")
    if lists:
        rows = [row((name[0], f"{name[1]:,}"), figures, ["p50_ms", "p99_ms"]) for name, figures in lists.items()]
        text += ["## Lists of a large table\n", table(["", "orders", "p50 ms", "p99 ms"], rows)]
    swept = chosen("sweep ")
    if swept:
        wanted = ["throughput", "p50_ms", "p99_ms", "errors", "cpu_us api", "peak_mib", "threads"]
        rows = [row((name[0].removeprefix("sweep "), f"{name[1]:,}"), figures, wanted) for name, figures in swept.items()]
        text += ["## Costs that grow\n", table(["", "value", "answered per second", "p50 ms", "p99 ms", "refused", "api µs", "peak MiB", "threads"], rows)]
    text += [f"![{plot}]({plot})" for plot in plots]
    return "\n".join(text) + "\n"


# ----------------------------------------------------------------------------------------------------------- plots


def save(figure, name):
    figure.tight_layout()
    figure.savefig(RESULTS / name, metadata={"Date": None})
    plt.close(figure)
    return name


def lines(summary, cases, figure, ylabel, title, name, xlabel="connections", logy=False):
    """One line for each case over its condition, with the spread of the repetitions."""
    chart, axes = plt.subplots()
    for case in cases:
        points = sorted((key[1], figures[figure]) for key, figures in summary.items() if key[0] == case and figure in figures)
        if not points:
            continue
        x = [point[0] for point in points]
        median, least, most = zip(*(point[1] for point in points))
        axes.plot(x, median, marker="o", label=case)
        axes.fill_between(x, least, most, alpha=0.15)
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    ticks = sorted({key[1] for key in summary if key[0] in cases and len(key) > 1})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yscale("log") if logy else axes.set_ylim(bottom=0)
    axes.legend()
    return save(chart, name)


def bars(summary, connections, name):
    """CPU time of a request by process."""
    cases = [key for key in summary if len(key) > 1 and key[1] == connections and "cpu_us api" in summary[key]]
    chart, axes = plt.subplots()
    left = [0.0] * len(cases)
    for who in ("api", "postgres", "kafka", "load"):
        cpu = [summary[case].get(f"cpu_us {who}", [0])[0] for case in cases]
        axes.barh([case[0] for case in cases], cpu, left=left, label=who)
        left = [a + b for a, b in zip(left, cpu)]
    axes.invert_yaxis()
    axes.set(xlabel="CPU microseconds per request", title=f"Whose CPU a request takes ({connections} connections)")
    axes.legend()
    return save(chart, name)


def draw(summary, prefix):
    cases = {key[0] for key in summary}
    plots = []
    writes = ["POST direct", "POST outbox", "POST direct, not coalesced", "pgbench insert"]
    reads = ["replay", "GET", "GET, not coalesced", "list", "mixed", "pgbench select"]
    if "POST direct" in cases:
        plots.append(lines(summary, writes, "throughput", "per second", "Orders per second", f"{prefix}-writes.svg"))
        plots.append(lines(summary, writes[:3], "p99_ms", "ms", "POST: 99th percentile", f"{prefix}-writes-p99.svg"))
        plots.append(lines(summary, reads, "throughput", "per second", "Reads and replays per second", f"{prefix}-reads.svg"))
        plots.append(bars(summary, 64, f"{prefix}-cpu.svg"))
    if "CreateOrder, 8 connections" in cases:
        both = lambda method: [f"REST next to {method}", *(f"{method}, {n} connections" for n in (1, 8, 64))]
        plots.append(lines(summary, both("CreateOrder"), "throughput", "per second", "Orders by gRPC", f"{prefix}-grpc-writes.svg", "calls at a time"))
        plots.append(lines(summary, both("GetOrder"), "throughput", "per second", "Reads by gRPC", f"{prefix}-grpc-reads.svg", "calls at a time"))
    lists = sorted(case for case in cases if case.startswith("list, "))
    if len({key[1] for key in summary if key[0] in lists}) > 1:
        plots.append(lines(summary, lists, "p50_ms", "ms", "A page of a list, median", f"{prefix}-lists.svg", "orders in the table", logy=True))
    for knob in sorted({case.rpartition(" ")[0] for case in cases if case.startswith("sweep ")}):
        mine = sorted(case for case in cases if case.rpartition(" ")[0] == knob)
        what = knob.removeprefix("sweep ")
        file = f"{prefix}-{what.lower().replace(' ', '-').replace('_', '-')}"
        plots.append(lines(summary, mine, "throughput", "per second", f"Throughput by {what}", f"{file}.svg", what))
        if any("p99_ms" in figures for key, figures in summary.items() if key[0] in mine):
            plots.append(lines(summary, mine, "p99_ms", "ms", f"99th percentile by {what}", f"{file}-p99.svg", what, logy=True))
    return plots


def write(about, measured, prefix):
    RESULTS.mkdir(exist_ok=True)
    summary = summarise(measured)
    readable = [{"case": " ".join(map(str, name)), **figures} for name, figures in summary.items()]
    result = {**about, "summary": readable, "measured": measured}
    (RESULTS / f"{prefix}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{prefix}.md").write_text(markdown(about, summary, measured, draw(summary, prefix)))
