"""The gap report on a terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_index_gap.diagnosis.mitigations import BeforeAfter
from llama_index_gap.diagnosis.recommendations import NAMES
from llama_index_gap.diagnosis.report import Report
from llama_index_gap.gap.estimates import LEVEL, Estimate
from llama_index_gap.gap.measure import GapReport
from llama_index_gap.text import visible


def print_report(report: Report, console: Console) -> None:
    """Print the main figures, the recommendations and the notes; page and JSON have all figures.

    Args:
        report: the report.
        console: where to print it.
    """

    def heading(words: str) -> None:
        console.print(Text(f"\n{words}", "bold"))

    figures, found = report.figures, report.figures.before_after
    texts, images = figures.stored["text"], figures.stored["image"]
    held = f"{report.name} in {report.database}: {texts:,} texts, {images:,} images"
    console.print(Text(visible(held)))
    console.print(Text(visible(report.models), "dim"))
    if figures.gap is not None:
        heading("The gap")
        console.print(_gap(figures.gap))
    if any(
        each.bias for mitigation in found.mitigations.values() for each in mitigation.asked.values()
    ):
        heading(f"Share of the query's own modality in the first {found.k} hits")
        console.print(_shares(found))
        if any(mitigation.only_means for mitigation in found.mitigations.values()):
            console.print("* moves only the means: most of the bias remains", style="dim")
    for modality in found.labelled:
        heading(f"What {found.queries[modality]:,} labelled {modality} queries find")
        table = _table("", f"recall@{found.k}", f"nDCG@{found.k}")
        for name, mitigation in found.mitigations.items():
            asked = mitigation.asked[modality]
            table.add_row(NAMES[name], _interval(asked.recall), _interval(asked.ndcg))
        console.print(table)
    if figures.scorers:
        heading("Scores of the texts and the images among the same hits")
        console.print(_scorers(report))
    heading("What to do")
    for number, recommendation in enumerate(report.recommendations, 1):
        console.print(Text(f"{number}. ").append(visible(recommendation.title), "bold"))
        _print_hanging(console, "   ", recommendation.because)
        _print_hanging(console, " → ", recommendation.do)
    if not report.recommendations:
        console.print("The figures support no change.")
    heading("How it was measured")
    for note in report.notes:
        _print_hanging(console, "– ", note)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _gap(gap: GapReport) -> Table:
    table = _table("", "figure", f"{LEVEL:.0%} interval", "")
    table.columns[-1].justify = "left"
    rows: Iterable[tuple[str, Estimate | None, str]] = (
        ("distance of the means", gap.distance, ""),
        ("separation", gap.separation, "above 1, it dominates raw scores"),
        ("relative modality gap", gap.rmg, "at 0.5, pairs are no nearer"),
        ("spread within / across", gap.spread_ratio, "at 1, centring is enough"),
        ("overlap, text queries", gap.overlap["text"], "at 1, both share a scale"),
        ("overlap, image queries", gap.overlap["image"], "at 1, both share a scale"),
    )
    for name, value, meaning in rows:
        if value is not None:
            interval = f"{value.low:.3f} to {value.high:.3f}"
            table.add_row(name, f"{value.value:.3f}", interval, Text(meaning, "dim"))
    return table


def _shares(found: BeforeAfter) -> Table:
    table = _table("", *(f"{modality} queries" for modality in found.queries), "means apart")
    shares = (f"{found.corpus_share[modality]:.0%}" for modality in found.queries)
    table.add_row("share in the corpus", *shares, "")
    for name, mitigation in found.mitigations.items():
        biases = (mitigation.asked[modality].bias for modality in found.queries)
        apart = "" if mitigation.gap is None else f"{mitigation.gap.distance.value:.2f}"
        mark = " *" if mitigation.only_means else ""
        table.add_row(NAMES[name] + mark, *(_interval(bias, ".0%") for bias in biases), apart)
    return table


def _scorers(report: Report) -> Table:
    table = _table("", "texts", "images", "overlap", "apart")
    for name, scored in report.figures.scorers.items():
        table.add_row(
            Text(visible(name)),
            f"{scored.text_mean.value:.2f} ± {scored.text_std.value:.2f}",
            f"{scored.image_mean.value:.2f} ± {scored.image_std.value:.2f}",
            _interval(scored.overlap),
            f"{scored.distance.value:.2f} σ",
        )
    return table


def _print_hanging(console: Console, mark: str, words: str) -> None:
    for i, line in enumerate(Text(visible(words)).wrap(console, console.width - len(mark))):
        console.print(Text(mark if i == 0 else " " * len(mark)).append(line))


def _interval(estimate: Estimate | None, form: str = ".2f") -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"
