"""Report of the comparison: JSON by part, Markdown, and one HTML page with inline plots."""

import html
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
from intervals import median_interval, verdict
from report import CONDITIONS, RESULTS, flat, shown, summarise, table

plt.rcParams.update({"svg.fonttype": "none"})  # text as text: a tenth of the size

READING = Path(__file__).with_name("compare_reading.md")
KEPT = RESULTS / "compare.json"
COLOURS = {
    "threads": "#1f77b4", "async": "#d95f02", "go": "#1b9e77", "threads, more": "#9ecae1", "async, not pipelined": "#fdbe85",
}
PLAIN = ("threads", "async", "go")
PAIRS = (("threads", "async"), ("threads", "go"), ("async", "go"))
WANTED = {
    "throughput": "per second", "p50_ms": "p50 ms", "p90_ms": "p90 ms", "p95_ms": "p95 ms", "p99_ms": "p99 ms", "p999_ms": "p99.9 ms",
    "max_ms": "most ms", "cpu_us api": "api µs", "cpu_us worker": "worker µs", "cpu_us postgres": "PostgreSQL µs",
    "cpu_us kafka": "Kafka µs", "cpu_us load": "load µs", "switches": "switches", "calls": "system calls", "rss_mib": "resident MiB",
    "peak_mib": "peak MiB", "threads": "threads",
    "errors": "refused or broken", "offered": "offered per second", "shed": "shed per second", "refused_at": "ended at",
    "ready_seconds": "ready s", "machine_idle": "idle",
}
# Delays come from the open model only: in the closed model a slow answer also delays the next request.
CLOSED = {"throughput": "per second", "cpu_us api": "api's CPU", "cpu_us worker": "worker's CPU", "switches": "context switches", "rss_mib": "memory"}
OPEN = {"p50_ms": "p50", "p99_ms": "p99", "cpu_us api": "api's CPU"}
# Each part's title, and how its conditions read.
PARTS = {
    "start": ("At rest", ""),
    "clients": ("By the number of clients", "{:,}"),
    "one-core": ("The program on a core of its own", "{:,}"),
    "rates": ("The same rate for all", "{:,} per second"),
    "grpc": ("gRPC", "{:,} calls in flight"),
    "coalescing": ("Nothing shared", "{:,} clients"),
    "k6": ("k6, as users run it", "{:,} users"),
    "idle": ("Next to quiet connections", "{:,} busy, {:,} quiet"),
    "slow-database": ("A slow database", "{:,} clients, {} ms late"),
    "slow-kafka": ("A slow Kafka", "{:,} clients, {} ms late"),
    "overload": ("Overload", ""),
    "worker": ("The worker", ""),
    "syscalls": ("System calls", "{:,} clients"),
}


def keep(part, result):
    """Replaces a part's last result."""
    RESULTS.mkdir(exist_ok=True)
    parts = json.loads(KEPT.read_text())["parts"] if KEPT.exists() else {}
    parts[part] = result
    KEPT.write_text(json.dumps({"parts": parts}, indent=1) + "\n")


def pairs(summary):
    """Maps case and condition to the figures of each side."""
    found = {}
    for (name, *condition), figures in summary.items():
        case, side = name.split("|")
        found.setdefault((case, *condition), {})[side] = figures
    return found


def condition(part, key):
    return PARTS[part][1].format(*key[1:])


# -------------------------------------------------------------------------------------------------------- tables


def figures(part, found):
    """Every figure of a part, without empty columns."""
    wanted = [name for name in WANTED if any(name in seen for sides in found.values() for seen in sides.values())]
    rows = [[key[0], condition(part, key), side, *(shown(sides[side].get(name)) for name in wanted)]
            for key, sides in found.items() for side in COLOURS if side in sides]
    return table(["", "", "", *(WANTED[name] for name in wanted)], rows)


def by_turn(measured):
    """Maps case and condition to each side's figures of each turn."""
    found = {}
    for one in measured:
        case, side = one["case"].split("|")
        key = (case, *(one[name] for name in CONDITIONS if name in one))
        found.setdefault(key, {}).setdefault(side, {})[one["turn"]] = dict(flat(one))
    return found


def ratio(sides, pair, figure):
    """Median and interval of the ratios within the turns."""
    ours, theirs = (sides.get(side, {}) for side in pair)
    both = [(ours[turn].get(figure), theirs[turn].get(figure)) for turn in ours if turn in theirs]
    seen = [one / other for one, other in both if one and other]
    if not seen:
        return ""
    middle, low, high = median_interval(seen)
    if low is None:
        return f"{middle:.2f}, too few turns"
    text = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return f"{text}, no difference shown" if verdict(low, high) == "no difference shown" else f"**{text}**"


def ratios(kept):
    """Each figure of one side divided by another's in the same turn."""
    rows = []
    for part in PARTS:
        if part == "syscalls" or "turns" not in kept.get(part, {}):
            continue
        for key, sides in by_turn(kept[part]["measured"]).items():
            for figure, name in (OPEN if "fixed rate" in key[0] else CLOSED).items():
                cells = [ratio(sides, pair, figure) for pair in PAIRS]
                if any(cells):
                    rows.append([key[0], condition(part, key), name, *cells])
    return table(["", "", "", *(" / ".join(pair) for pair in PAIRS)], rows)


def kinds(kept):
    """The frequent system calls of a request, by kind."""
    rows = [[one["case"].replace("|", ", "), f"{one['calls']:.1f}",
             ", ".join(f"{name} {count:.2f}" for name, count in sorted(one["call"].items(), key=lambda it: -it[1]))]
            for one in kept["measured"]]
    return table(["", "in all", "of these"], rows)


def conditions(kept):
    latest = max(kept.values(), key=lambda part: part["taken"])
    rows = [[name, str(value)] for name, value in latest["machine"].items() if name != "load_before"]
    return table(["", ""], rows) + "\n" + turns(kept)


def turns(kept):
    """What else the machine did in each part."""
    rows = []
    for name, part in kept.items():
        if "turns" in part:
            spread = lambda figure, shape: " to ".join(format(value, shape) for value in (f(turn[figure] for turn in part["turns"]) for f in (min, max)))
            mhz = [one["mhz"] for one in part["measured"] if "mhz" in one]
            disturbed = sum(turn["disturbed"] for turn in part["turns"])
            cold = sum(not one.get("warm", True) for one in part["measured"])
            rows.append([name, part["taken"], f"{len(part['turns'])} × {part['duration_s']} s", spread("steal", ".1%"), spread("other", ".1%"),
                         spread("load", ".1f"), f"{min(mhz):.0f} to {max(mhz):.0f}" if mhz else "", str(part["repeated"]), str(disturbed), str(cold)])
    return table(["part", "taken", "turns", "stolen", "other processes and kernel", "load", "MHz", "turns repeated", "kept though disturbed", "not warm"], rows)


def facts(kept):
    rows = [[name, *(f"{value:,}" if value != "" else "" for value in values)] for name, values in kept["build"]["facts"].items()]
    return table(["", *PLAIN], rows)


# --------------------------------------------------------------------------------------------------------- plots


def svg(chart):
    chart.tight_layout()
    text = io.StringIO()
    chart.savefig(text, format="svg", metadata={"Date": None})
    plt.close(chart)
    return text.getvalue()


def lines(found, case, figure, title, ylabel, xlabel, log=False):
    """One line for each side over the last condition."""
    chart, axes = plt.subplots()
    ticks = set()
    for side in PLAIN:
        points = sorted((key[-1], sides[side][figure]) for key, sides in found.items() if key[0] == case and figure in sides.get(side, {}))
        if points:
            x = [point[0] for point in points]
            median, least, most = zip(*(point[1] for point in points))
            axes.plot(x, median, marker="o", label=side, color=COLOURS[side])
            axes.fill_between(x, least, most, alpha=0.15, color=COLOURS[side])
            ticks.update(x)
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
    axes.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_yscale("log") if log else axes.set_ylim(bottom=0)
    axes.legend()
    return svg(chart)


def bars(part, found, figure, title, xlabel):
    """One bar for each case and side."""
    chart, axes = plt.subplots()
    labels, place = [], 0
    for key, sides in found.items():
        here = [side for side in COLOURS if figure in sides.get(side, {})]
        for index, side in enumerate(here):
            median, least, most = sides[side][figure]
            axes.barh(place + index, median, color=COLOURS[side], xerr=[[median - least], [most - median]], ecolor="#555")
        labels.append((place + (len(here) - 1) / 2, ", ".join(filter(None, (key[0], condition(part, key))))))
        place += len(here) + 1
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, title=title)
    sides = [side for side in COLOURS if any(side in there for there in found.values())]
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=COLOURS[side]) for side in sides], sides, fontsize=8)
    return svg(chart)


def plots(part, found):
    if part in ("clients", "one-core"):
        suffix = ", one core" if part == "one-core" else ""
        shapes = [("throughput", "answers", "per second", False), ("cpu_us api", "CPU of the api", "µs per request", False), ("switches", "context switches", "per request", False),
                  ("rss_mib", "resident memory", "MiB", False), ("threads", "threads", "", True)]
        for case in (f"POST{suffix}", f"GET{suffix}"):
            if len({key[-1] for key in found if key[0] == case}) == 1:  # one point makes no line
                yield bars(part, {key: sides for key, sides in found.items() if key[0] == case}, "throughput", case, "per second")
                continue
            for figure, title, unit, log in shapes:
                yield lines(found, case, figure, f"{case}: {title}", unit, "clients", log)
    elif part == "rates":
        for case in ("POST at a fixed rate", "GET at a fixed rate"):
            for figure, title in (("p50_ms", "median"), ("p99_ms", "99th percentile")):
                yield lines(found, case, figure, f"{case}: {title}", "ms", "offered per second", True)
            yield lines(found, case, "cpu_us api", f"{case}: CPU of the api", "µs per request", "offered per second")
    elif part == "idle":
        for figure, title, unit in (("rss_mib", "resident memory", "MiB"), ("threads", "threads", ""), ("throughput", "answers", "per second")):
            yield lines(found, "GET next to quiet connections", figure, f"64 busy clients next to quiet connections: {title}", unit, "quiet connections")
    elif part in ("slow-database", "slow-kafka"):
        yield bars(part, found, "throughput", PARTS[part][0], "per second")
        yield bars(part, found, "p50_ms", PARTS[part][0], "median, ms")
    elif part == "overload":
        for figure, title, unit in (("throughput", "accepted", "per second"), ("shed", "refused", "per second"), ("p50_ms", "median, refusals included", "ms")):
            if any(figure in seen for sides in found.values() for seen in sides.values()):
                yield bars(part, found, figure, f"Overload: {title}", unit)
        yield bars(part, found, "p99_ms", "Overload: 99th percentile, refusals included", "ms")
    elif part == "worker":
        yield bars(part, found, "throughput", "The worker: a backlog", "orders per second")
        yield bars(part, found, "cpu_us worker", "The worker: CPU", "µs per order")


# --------------------------------------------------------------------------------------------------------- pages


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
p,li{max-width:46rem}table{border-collapse:collapse;font-size:.8rem;display:block;overflow-x:auto}td,th{border:1px solid #ccc;
padding:.2rem .5rem;text-align:right}td:first-child,th:first-child,td:nth-child(2){text-align:left}svg{max-width:100%;height:auto}
figure{display:inline-block;width:min(100%,36rem);margin:0}"""
HEAD = ("Made by `make compare`. Each figure is the median of its turns; in small print the least and the most. A ratio is taken within "
        "a turn; its interval covers the true median with 95 % (sign test). It shows a difference only if it does not hold 1.")


def as_html(markdown_table):
    """Converts a Markdown table to HTML; the result of `shown` is HTML already."""
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in markdown_table.strip().splitlines()]
    cell = lambda text: text if "<sub>" in text else spans(html.escape(text))
    row = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{cell(text)}</{tag}>" for text in cells) + "</tr>"
    return "<table>" + row(rows[0], "th") + "".join(row(line, "td") for line in rows[2:]) + "</table>"


def spans(text):
    """Converts bold and code."""
    for mark, tag in (("**", "b"), ("`", "code")):
        parts = text.split(mark)
        text = "".join(f"<{tag}>{part}</{tag}>" if index % 2 else part for index, part in enumerate(parts))
    return text


def paragraphs(markdown):
    """Converts the reading's subset of Markdown: headings, paragraphs, lists, tables, bold, code."""
    for block in markdown.strip().split("\n\n"):
        if block.startswith("#"):
            yield f"<h2>{html.escape(block.lstrip('# '))}</h2>"
        elif block.startswith("|"):
            yield spans(as_html(block))
        elif block.startswith("- "):
            items = html.escape(block[2:]).split("\n- ")
            yield "<ul>" + "".join(f"<li>{spans(' '.join(item.split()))}</li>" for item in items) + "</ul>"
        elif block:
            yield f"<p>{spans(html.escape(' '.join(block.split())))}</p>"


def write():
    """The report of all kept results."""
    kept = json.loads(KEPT.read_text())["parts"]
    parts = {part: pairs(summarise(kept[part]["measured"])) for part in PARTS if part in kept}
    reading = READING.read_text() if READING.exists() else ""
    sections = {"Ratios within a turn": ratios(kept)}
    if "build" in kept:
        sections["What they are made of"] = facts(kept)
    drawn = {PARTS[part][0]: list(plots(part, found)) for part, found in parts.items()}
    sections |= {PARTS[part][0]: figures(part, found) for part, found in parts.items()}
    if "syscalls" in kept:
        sections["System calls by kind"] = kinds(kept["syscalls"])
    sections["Conditions"] = conditions(kept)
    markdown = [f"# Threads, tasks and goroutines, side by side\n\n{HEAD}\nWith plots: [compare.html](compare.html).\n", reading]
    markdown += [f"## {title}\n\n{text}" for title, text in sections.items()]
    KEPT.with_suffix(".md").write_text("\n".join(markdown))
    page = [f"<!doctype html><html lang=en><meta charset=utf-8><title>tbd: threads, tasks, goroutines</title><style>{STYLE}</style>",
            f"<h1>Threads, tasks and goroutines, side by side</h1><p>{spans(HEAD)}</p>", *paragraphs(reading)]
    for title, text in sections.items():
        page.append(f"<h2>{title}</h2>")
        page += [f"<figure>{chart[chart.index('<svg'):]}</figure>" for chart in drawn.get(title, [])]
        page.append(as_html(text))
    KEPT.with_suffix(".html").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    write()
