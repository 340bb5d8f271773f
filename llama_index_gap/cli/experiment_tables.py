"""The results of an experiment for a terminal of 80 columns; nothing is said by colour alone."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llama_index_gap.evaluation.examples import Example
from llama_index_gap.evaluation.experiment import DEFAULT, DEFAULT_RERANKED, ExperimentResult
from llama_index_gap.evaluation.metrics import SIGNIFICANT, Comparison
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.text import visible

_KINDS_ABREAST = 4
_SIDES = {"text": "texts", "image": "images"}
_ASKED = {"text": "a text", "image": "an image"}


def result_tables(result: ExperimentResult) -> Iterator[RenderableType]:
    """What an experiment found, part by part."""
    yield Text(
        visible(
            f"{result.dataset}: {result.documents:,} documents, {result.queries:,} queries\n"
            f"{result.models}{f', reranked by {result.reranker}' if result.reranker else ''}"
        )
    )
    yield _methods(result)
    yield Text(how_to_read(result), style="dim")
    kinds = list(result.kinds)
    for start in range(0, len(kinds), _KINDS_ABREAST):
        yield _kinds(result, kinds[start : start + _KINDS_ABREAST])
    yield _legs(result)
    yield from map(Text, own_modality_in_words(result))
    yield from (Text(visible(f"note: {note}")) for note in result.notes)


def example_in_words(example: Example) -> RenderableType:
    """A query, and what was put first: right or wrong, by which methods."""
    query = example.query.text or f"image {example.query.image_path}"
    grid = Table.grid(padding=(0, 2, 0, 0))
    kind = "" if example.kind is None else f" ({example.kind})"
    for place in example.first:
        first = Text(visible(place.title or "nothing found"))
        first.append(f"\nfirst by {'; '.join(place.methods)}", style="dim")
        grid.add_row("  ✓ right" if place.right else "  ✗ wrong", first)
    return Group(Text.assemble((visible(f"“{query}”"), "bold"), visible(kind)), grid)


def how_to_read(result: ExperimentResult) -> str:
    """What stands in the table of methods."""
    reranked = f"; of the reranked, from “{DEFAULT_RERANKED}”" if result.reranker else ""
    return (
        "32 by text: 32 hits of the text leg alone. 16+16: 16 of each leg, fused; raw scores are "
        "what one mixed index goes by. In brackets: 95 % intervals. Difference: in recall@10 from "
        f"“{DEFAULT}”{reranked}; lower or higher where chance does not explain it (paired "
        f"randomisation, p < {SIGNIFICANT}), else unclear."
    )


def own_modality_in_words(result: ExperimentResult) -> list[str]:
    """What one mixed index prefers, a sentence for each modality of queries."""
    return [
        f"One mixed index: of the first 10 hits of a query by {_ASKED[own.modality]}, "
        f"{own.share.value:.0%} are {_SIDES[own.modality]}, where {own.corpus_share:.0%} of all "
        "rows are."
        for own in result.own_modality
    ]


def difference(comparison: Comparison | None) -> str:
    """A difference with its verdict; nothing for what others are compared with."""
    if comparison is None:
        return ""
    return f"{comparison.difference.value:+.3f} {comparison.verdict}".replace("-", "−")


def leg_rows(result: ExperimentResult) -> Iterator[tuple[str, list[str]]]:
    """For each modality of queries, recall@10 among texts and among images by themselves."""
    for asked, words in _ASKED.items():
        found = [result.legs.get(f"{asked}_to_{side}") for side in _SIDES]
        yield f"asked with {words}", ["–" if recall is None else str(recall) for recall in found]


def _methods(result: ExperimentResult) -> Table:
    table = _table("method", "recall@10", "nDCG@10", "MRR@10", "difference")
    for number, method in enumerate(result.methods):
        if method.reranked and not result.methods[number - 1].reranked:
            table.add_row()
        metrics = method.metrics
        table.add_row(
            method.name,
            str(metrics["recall@10"]),
            _mean(metrics["ndcg@10"]),
            _mean(metrics["mrr@10"]),
            difference(method.against_default.get("recall@10")),
        )
    return table


def _kinds(result: ExperimentResult, kinds: list[str]) -> Table:
    table = _table(
        "recall@10 by kind", *(visible(f"{kind} ({len(result.kinds[kind]):,})") for kind in kinds)
    )
    for method in result.methods:
        table.add_row(method.name, *(_mean(method.by_kind[kind]["recall@10"]) for kind in kinds))
    return table


def _legs(result: ExperimentResult) -> Table:
    table = _table("recall@10 of each leg by itself", *_SIDES.values())
    for name, cells in leg_rows(result):
        table.add_row(name, *cells)
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _mean(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}"
