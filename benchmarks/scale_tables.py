"""Shows the measurements of ``scale.py`` as tables and a plot, also in docs/scaling.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN = "<!-- written by benchmarks/scale.py -->"
END = "<!-- up to here -->"
PLOT = "assets/scale.svg"
NAMES = {"server": "server", "lite": "Lite"}
COLOURS = {"1": "#1f5fa8", "8": "#c2571a", "32": "#3b7d3b"}

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its title.
        columns: the names of the columns.
        rows: the cells, one for each column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown, for the docs."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join([f"{self.title}\n", *(f"| {' | '.join(line)} |" for line in lines)])

    def rich(self) -> RichTable:
        """The table for a terminal."""
        shown = RichTable(*self.columns, title=self.title, title_justify="left", box=None)
        for row in self.rows:
            shown.add_row(*row)
        return shown


def figure(value: float) -> str:
    """A number with two significant digits, or all digits before the point."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def places(values: Values, what: str) -> list[tuple[str, str, int, Any]]:
    """The measurements of each index: its key, its place, its rows, and the figures."""
    found = []
    for key, measured in values.items():
        kind, _, place = key.partition("/")
        if kind == what and place.split("/")[0] in NAMES:
            where, rows = place.split("/")
            found.append((place, NAMES[where], int(rows), measured))
    return sorted(found, key=lambda each: (each[1], each[2]), reverse=False)


def of_type(values: Values, what: str) -> Iterator[tuple[str, int, Any]]:
    """Kind of index, number of vectors, and the measurements."""
    for key, measured in values.items():
        if key.startswith(f"{what}/"):
            _, kind, documents = key.split("/")
            yield kind, int(documents), measured


def percent(share: float) -> str:
    """A share near 1, in percent."""
    return f"{100 * share:.1f} %"


def tables(values: Values) -> Iterator[Table]:
    """All tables of the measurements so far."""
    yield growth(values)
    yield searches(values)
    yield others(values)
    yield recalls(values)
    if any(of_type(values, "type")):
        yield kinds(values)
        yield groups(values)


def growth(values: Values) -> Table:
    """Inserts and memory."""
    rows = []
    for place, where, size, found in places(values, "search"):
        inserted = values[f"{place}/insert"]
        worked = inserted.get("processor")
        memory = values.get(f"memory/{place}")
        held = "" if memory is None else gibibytes((memory["with"] - memory["before"]) / 1024)
        rows.append(
            [
                f"{size:,}, {where}",
                "" if worked is None else f"{1e3 * worked / size:.1f} ms",
                f"{inserted['indexed_in']:,.0f} s",
                held,
                f"{found['client'] - found['client_before']:,.0f} MiB",
            ]
        )
    columns = [
        *("rows", "processor time per inserted row", "index finished after"),
        *("server memory", "memory of a searching client"),
    ]
    return Table(f"Inserts and memory{rates(values)}:", columns, rows)


def rates(values: Values) -> str:
    """Our rate of inserts and the raw one, in words."""
    if "inserts" not in values:
        return ""
    ours, raw = (np.median(values["inserts"][way]) for way in ("ours", "raw"))
    return (
        f" (into new collections `insert_nodes` writes {ours:,.0f} rows/s, and raw pymilvus "
        f"{raw:,.0f})"
    )


def searches(values: Values) -> Table:
    """The whole retriever under load."""
    rows = []
    for _, where, size, found in places(values, "search"):
        for threads, times in found["threads"].items():
            rows.append(
                [
                    f"{size:,}, {where}",
                    threads,
                    f"{figure(times['p50'])} ms",
                    f"{figure(times['p95'])} ms",
                    figure(times["per_second"]),
                    f"{figure(times['client_ms'])} ms",
                ]
            )
    columns = ["rows", "threads", "p50", "p95", "searches/s", "processor time of the client"]
    return Table("The whole retriever, both corrections on:", columns, rows)


def others(values: Values) -> Table:
    """Other operations that may depend on the number of rows."""
    rows = []
    for _, where, size, found in places(values, "search"):
        milliseconds = [
            *(1e3 * found[each] for each in ("opened_in", "count", "first")),
            *(found[each]["p50"] for each in ("plain", "filtered", "complete")),
            1e3 * found["unchanged"],
        ]
        rows.append([f"{size:,}, {where}", *map(figure, milliseconds)])
    columns = [
        *("rows", "opening", "`count()`", "first search", "`hubs=False`, raw scores"),
        *("with a filter", "`complete=True`", "inserting 1,000 unchanged rows"),
    ]
    return Table("Other operations, in milliseconds (searches by one thread, p50):", columns, rows)


def recalls(values: Values) -> Table:
    """Recall of HNSW."""
    rows = []
    for _, where, size, found in places(values, "recall"):
        for modality in ("text", "image"):
            cells = [
                f"{percent(each['recall'])}, {figure(each['p50'])} ms"
                for each in found[modality].values()
            ]
            rows.append([f"{size // 2:,} {modality}s, {where}", *cells])
    efs = next(iter(places(values, "recall")))[3]["text"]
    return Table(
        "Recall@16 of HNSW against an exact search, and p50 of one raw search:",
        ["vectors", *(f"ef={ef}" for ef in efs)],
        rows,
    )


def kinds(values: Values) -> Table:
    """Kinds of index."""
    rows = []
    for kind, size, found in of_type(values, "type"):
        built = values[f"built/{kind}/{size}"]
        for number, (words, each) in enumerate(
            (words, each) for words, each in found.items() if isinstance(each, dict)
        ):
            first = [f"{size:,}", kind, f"{built['indexed_in']:,.0f} s"]
            rows.append(
                [
                    *(first if number == 0 else [""] * 3),
                    words,
                    percent(each["recall"]),
                    f"{figure(each['p50'])} ms",
                    f"{figure(each['p95'])} ms",
                ]
            )
    columns = ["vectors", "index", "built in", "search", "recall@16", "p50", "p95"]
    return Table("Kinds of index on a server:", columns, rows)


def groups(values: Values) -> Table:
    """Filters and partitions."""
    rows = [
        [f"{size:,}", kind if "partitions" in kind else f"{kind}, a filter", *times(found)]
        for kind, size, found in of_type(values, "groups")
    ]
    return Table(
        "Searching one of sixteen groups, which a column marks:",
        ["vectors", "index", "p50", "p95"],
        rows,
    )


def gibibytes(held: float) -> str:
    """Memory in GiB; differences below 0.1 are fluctuations of the server."""
    return f"{held:.2f} GiB" if held >= 0.1 else "< 0.1 GiB"


def times(found: Mapping[str, float]) -> list[str]:
    """Two percentiles."""
    return [f"{figure(found['p50'])} ms", f"{figure(found['p95'])} ms"]


def print_tables(values: Values) -> None:
    """Show all tables."""
    console = Console()
    console.width = max(console.width, 140)
    for table in tables(values):
        console.print(table.rich())
        console.print()


def draw(values: Values, path: Path) -> None:
    """Draw how times and memory grow with the rows.

    Args:
        values: the measurements.
        path: the SVG file.
    """
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    settings = {"svg.hashsalt": "scale", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3}
    with plt.rc_context({**settings, "axes.spines.top": False, "axes.spines.right": False}):
        figure_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        server = [each for each in places(values, "search") if each[1] == "server"]
        rows = [size for _, _, size, _ in server]
        for threads, colour in COLOURS.items():
            times_ = [found["threads"][threads] for *_, found in server]
            label = f"{threads} thread{'s' if threads != '1' else ''}"
            left.plot(rows, [each["p50"] for each in times_], "o-", color=colour, label=label)
        for _, where, size, found in places(values, "search"):
            if where == "Lite":
                left.plot(
                    size, found["threads"]["1"]["p50"], "s", color="black", label="Lite, 1 thread"
                )
        left.set(xscale="log", yscale="log", xlabel="rows", ylabel="whole retriever, p50 (ms)")
        left.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
        memory = [values[f"memory/{place}"] for place, *_ in server]
        held = [(each["with"] - each["before"]) / 1024 for each in memory]
        told = [(size, each) for size, each in zip(rows, held, strict=True) if each >= 0.1]
        right.plot(*zip(*told, strict=True), "o-", color="black")
        right.set(xlabel="rows", ylabel="memory of the server (GiB)")
        if server:
            right.set(xscale="log", yscale="log")
        plain = ticker.FuncFormatter(lambda value, _: f"{value:,.10g}")
        for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
            axis.set_major_formatter(plain)
        for axis in (left.yaxis, right.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_minor_formatter(ticker.NullFormatter())
        figure_.savefig(path, metadata={"Date": None})
        plt.close(figure_)


def write_docs(values: Values, page: Path) -> None:
    """Put the tables and the plot into the docs.

    Args:
        values: the measurements.
        page: a page with the two marks that enclose the tables.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page}: lacks {BEGIN} … {END}, which enclose the tables")
    (page.parent / PLOT).parent.mkdir(exist_ok=True)
    draw(values, page.parent / PLOT)
    machine = values["machine"]
    block = [
        f"Measured on {machine['date']}; {machine['cores']} cores for client and server together.",
        *(table.markdown() for table in tables(values)),
        f"![How the time of a search and the memory of the server grow with the rows]({PLOT})",
    ]
    page.write_text("\n\n".join([f"{before}{begin}", *block, f"{end}{after}"]))
