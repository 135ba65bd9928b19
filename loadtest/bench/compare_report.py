"""The comparison as JSON, Markdown and one HTML page with its plots inside."""

import html
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
from report import RESULTS, digits, shown, table

READING = Path(__file__).with_name("compare_reading.md")
SIDES = {"threads": "#1f77b4", "async": "#d95f02"}
WANTED = {
    "throughput": "per second", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "cpu_us api": "api µs", "cpu_us worker": "worker µs",
    "switches": "switches", "rss_mib": "resident MiB", "threads": "threads", "shed": "shed per second", "refused_at": "refused at",
    "ready_seconds": "ready s",
}


def pairs(summary):
    """Case and condition to the figures of both sides."""
    found = {}
    for (name, *condition), figures in summary.items():
        case, side = name.split("|")
        found.setdefault((case, *condition), {})[side] = figures
    return found


def rows(found):
    for (case, *condition), sides in found.items():
        for side in SIDES:
            if side in sides:
                figures = [shown(sides[side].get(figure)) for figure in WANTED]
                yield [case, ", ".join(f"{value:,}" for value in condition), side, *figures]


def ratios(found):
    """How much more threads do, or need, than async does."""
    for (case, *condition), sides in found.items():
        if "throughput" not in sides.get("threads", {}) or "throughput" not in sides.get("async", {}):
            continue
        ratio = lambda figure: sides["threads"][figure][0] / sides["async"][figure][0]
        cells = [f"{ratio(f):.2f}" if f in sides["threads"] and sides["async"].get(f, [0])[0] else "" for f in
                 ("throughput", "p99_ms", "cpu_us api", "cpu_us worker", "rss_mib", "switches")]
        yield [case, ", ".join(f"{value:,}" for value in condition), *cells]


def plot(found, case, figure, title, ylabel):
    chart, axes = plt.subplots()
    for side, colour in SIDES.items():
        points = sorted((key[1], sides[side][figure]) for key, sides in found.items()
                        if key[0] == case and figure in sides.get(side, {}))
        if points:
            median, least, most = zip(*(point[1] for point in points))
            axes.plot([point[0] for point in points], median, marker="o", label=side, color=colour)
            axes.fill_between([point[0] for point in points], least, most, alpha=0.15, color=colour)
            axes.set_xticks([point[0] for point in points], [f"{point[0]:,}" for point in points])
    axes.set(xscale="log", xlabel="connections", ylabel=ylabel, title=title)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    chart.tight_layout()
    text = io.StringIO()
    chart.savefig(text, format="svg", metadata={"Date": None})
    plt.close(chart)
    return text.getvalue()


def draw(found):
    wanted = [("throughput", "Throughput", "per second"), ("p99_ms", "99th percentile", "ms"), ("cpu_us api", "CPU of the api", "µs per request"),
              ("rss_mib", "Resident memory", "MiB"), ("switches", "Context switches", "per request")]
    for case in ("POST", "GET"):
        for figure, title, unit in wanted:
            yield plot(found, case, figure, f"{case}: {title}", unit)


def as_html(markdown_table):
    """A table of Markdown as one of HTML; what `shown` makes is HTML already."""
    lines = [line.strip("| ").split(" | ") for line in markdown_table.strip().splitlines()]
    cell = lambda text: text if "<sub>" in text else html.escape(text)
    row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{cell(text)}</{tag}>" for text in cells) + "</tr>"
    return "<table>" + row(lines[0], "th") + "".join(row(line, "td") for line in lines[2:]) + "</table>"


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;font-size:.85rem;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.2rem .5rem;text-align:right}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}figure{display:inline-block;width:min(100%,36rem);margin:0}"""


def write(about, summary, measured):
    RESULTS.mkdir(exist_ok=True)
    found = pairs(summary)
    facts = {**about["machine"], "taken": about["taken"], "took": f"{about['seconds']} s", "seconds each": about["duration_s"],
             "repetitions": about["repetitions"]}
    facts.update({f"{side}: {name}": digits(value) for side, sizes in about["sizes"].items() for name, value in sizes.items()})
    tables = {
        "Threads, divided by async": table(
            ["", "", "throughput", "p99", "api's CPU", "worker's CPU", "memory", "switches"], list(ratios(found))),
        "Every figure": table(["", "", "", *WANTED.values()], list(rows(found))),
        "Conditions": table(["", ""], [[key, str(value)] for key, value in facts.items()]),
    }
    reading = READING.read_text() if READING.exists() else ""
    head = "# Threads and async, side by side\n\nMade by `make compare`. The median of the repetitions; in small print the least and the most.\n"
    text = [head, reading, *(f"## {title}\n\n{text}" for title, text in tables.items())]
    (RESULTS / "compare.md").write_text("\n".join(text))
    page = [f"<!doctype html><html lang=en><meta charset=utf-8><title>tbd: threads and async</title><style>{STYLE}</style>",
            "<h1>Threads and async, side by side</h1>", *paragraphs(reading),
            *(f"<figure>{svg[svg.index('<svg'):]}</figure>" for svg in draw(found)),
            *(f"<h2>{title}</h2>{as_html(text)}" for title, text in tables.items())]
    (RESULTS / "compare.html").write_text("\n".join(page) + "\n")
    (RESULTS / "compare.json").write_text(json.dumps({**about, "measured": measured}, indent=1) + "\n")


def paragraphs(markdown):
    """The little Markdown that the reading is written in: headings, paragraphs, bold."""
    for block in markdown.strip().split("\n\n"):
        if block.startswith("#"):
            yield f"<h2>{html.escape(block.lstrip('# '))}</h2>"
        elif block:
            parts = html.escape(" ".join(block.split("\n"))).split("**")
            yield "<p>" + "".join(f"<b>{part}</b>" if index % 2 else part for index, part in enumerate(parts)) + "</p>"
