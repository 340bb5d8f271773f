"""The results of an experiment on a terminal of 80 columns, readable without colours."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llama_index_gap.evaluation.examples import Example
from llama_index_gap.evaluation.experiment import (
    BOTH_LEARNT,
    BOTH_STAGES,
    DEFAULT,
    DEFAULT_RERANKED,
)
from llama_index_gap.evaluation.experiment_result import ExperimentResult, MethodResult
from llama_index_gap.evaluation.metrics import SIGNIFICANT, Comparison
from llama_index_gap.modality import MODALITIES, PLURAL
from llama_index_gap.text import visible

_KINDS_PER_TABLE = 4
_ASKED = {"text": "a text", "image": "an image"}


def result_tables(result: ExperimentResult) -> Iterator[RenderableType]:
    """The results of an experiment, part by part."""
    yield Text(
        visible(
            f"{result.dataset}: {result.documents:,} documents, {result.queries:,} queries\n"
            f"{result.models}{f', reranked by {result.reranker}' if result.reranker else ''}"
        )
    )
    methods = _table("method", "recall@10", "difference", "nDCG@10")
    methods.columns[-1].justify = "left"  # figures stay in line where one has no verdict
    for number, method in enumerate(result.methods):
        if method.reranked and not result.methods[number - 1].reranked:
            methods.add_row()
        methods.add_row(
            Text(visible(method.name)),
            str(method.metrics["recall@10"]),
            difference(method.against_default.get("recall@10")),
            with_verdict(method, "ndcg@10"),
        )
    yield methods
    yield Text(how_to_read(result), style="dim")
    kinds = list(result.kinds)
    for start in range(0, len(kinds), _KINDS_PER_TABLE):
        shown = kinds[start : start + _KINDS_PER_TABLE]
        titles = (visible(f"{kind} ({len(result.kinds[kind]):,})") for kind in shown)
        by_kind = _table("recall@10 by kind", *titles)
        for method in result.methods:
            recall = (method.by_kind[kind]["recall@10"] for kind in shown)
            by_kind.add_row(Text(visible(method.name)), *(f"{each.value:.3f}" for each in recall))
        yield by_kind
    legs = _table("recall@10 of each leg alone", *(PLURAL[target] for target in MODALITIES))
    for name, cells in leg_rows(result):
        legs.add_row(name, *cells)
    yield legs
    yield from map(Text, own_modality_in_words(result))
    yield from (Text(visible(f"note: {note}")) for note in result.notes)


def example_in_words(example: Example) -> RenderableType:
    """A query, and for each document ranked first: right or wrong, and by which methods."""
    query = example.query.text or f"image {example.query.image_path}"
    grid = Table.grid(padding=(0, 2, 0, 0))
    kind = "" if example.kind is None else f" ({example.kind})"
    for place in example.first:
        first = Text(visible(place.title or "nothing found"))
        first.append(f"\nfirst by {'; '.join(place.methods)}", style="dim")
        grid.add_row("  ✓ right" if place.right else "  ✗ wrong", first)
    return Group(Text.assemble((visible(f"“{query}”"), "bold"), visible(kind)), grid)


def how_to_read(result: ExperimentResult) -> str:
    """The legend of the table of methods."""
    reranked = f", for reranked methods from “{DEFAULT_RERANKED}”" if result.reranker else ""
    names = {method.name for method in result.methods}
    both = (
        " Both stages: the first stage's log odds, weighted, are added to the reranker's; learnt: "
        "by a weight that other queries teach."
        if names & {BOTH_STAGES, BOTH_LEARNT}
        else ""
    )
    return (
        "32 by text: 32 hits of the text leg alone. 16+16: 16 hits of each leg, fused. One mixed "
        "index ranks by raw scores. In brackets: 95 % intervals. Difference: in recall@10 from "
        f"“{DEFAULT}”{reranked}; lower or higher if it is significant (paired randomisation, "
        f"p < {SIGNIFICANT}), else unclear. The word after nDCG@10 says the same of it.{both}"
    )


def own_modality_in_words(result: ExperimentResult) -> list[str]:
    """Which modality one mixed index prefers: a sentence for each modality of queries."""
    return [
        f"One mixed index: {own.share.value:.0%} of the first 10 hits for {_ASKED[own.modality]} "
        f"are {PLURAL[own.modality]}, and {own.corpus_share:.0%} of all rows."
        for own in result.own_modality
    ]


def difference(comparison: Comparison | None) -> str:
    """A difference with its verdict; empty for the methods that serve as the reference."""
    if comparison is None:
        return ""
    return f"{comparison.difference.value:+.3f} {comparison.verdict}".replace("-", "−")


def with_verdict(method: MethodResult, metric: str) -> str:
    """A figure, and whether it is higher or lower than that of the method's reference."""
    compared = method.against_default.get(metric)
    return f"{method.metrics[metric].value:.3f}" + (f" {compared.verdict}" if compared else "")


def leg_rows(result: ExperimentResult) -> Iterator[tuple[str, list[str]]]:
    """For each modality of queries, the recall@10 of each leg alone."""
    for query in _ASKED:
        found = [result.legs.get(f"{query}_to_{target}") for target in MODALITIES]
        yield f"{query} queries", ["–" if recall is None else str(recall) for recall in found]


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table
