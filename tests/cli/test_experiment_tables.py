from __future__ import annotations

from io import StringIO

from results import dataset, method, result
from rich.console import Console, RenderableType

from llama_index_gap.cli.experiment_tables import example_in_words, result_tables
from llama_index_gap.evaluation.examples import pick_examples
from llama_index_gap.evaluation.experiment_result import ExperimentResult
from llama_index_gap.evaluation.metrics import Comparison
from llama_index_gap.gap.estimates import Estimate


def printed(*parts: RenderableType) -> str:
    """The output on a terminal of 80 columns without colours."""
    console = Console(file=StringIO(), width=80, highlight=False)
    for part in parts:
        console.print(part)
    lines = console.file.getvalue()
    assert max(map(len, lines.splitlines())) <= 80
    return lines


def words(found: ExperimentResult) -> str:
    return " ".join(printed(*result_tables(found)).split())


def test_all_figures_are_there() -> None:
    shown = words(result())

    for part in (
        "ten: 1,234 documents, 4 queries DualEncoderEmbedding('clip')",
        "method recall@10 difference nDCG@10",
        "32 by text 0.250 (0.150–0.350) −0.250 lower 0.200 higher",
        "16+16, RRF 0.450 (0.350–0.550) −0.050 unclear 0.200 higher",
        "16+16, default 0.500 (0.400–0.600) 0.200 32 by text:",
        "recall@10 by kind headline (2) image (2) 32 by text 0.250 0.250",
        "text queries 0.250 (0.200–0.300) – image queries – –",
        "97% of the first 10 hits for a text are texts, and 50% of all rows.",
        "note: something to know",
    ):
        assert part in shown


def test_reranked_rows_are_set_apart() -> None:
    better = Comparison(Estimate(0.1, 0.05, 0.2), 0.001)
    rows = [method("16+16, default", 0.5), method("32 by text, reranked", 0.6, better)]

    lines = printed(*result_tables(result(methods=rows, reranker="jina-m0"))).splitlines()

    at = next(number for number, line in enumerate(lines) if line.startswith("32 by text, rer"))
    assert lines[at].split()[-2:] == ["0.200", "higher"]
    assert not lines[at - 1].strip()
    assert "reranked by jina-m0" in lines[1]


def test_many_kinds_are_shown_four_abreast() -> None:
    kinds = {f"kind number {number}": ["1"] for number in range(6)}
    rows = [method("16+16, default", 0.5)]
    metrics = rows[0].metrics
    rows[0].by_kind.update(dict.fromkeys(kinds, metrics))

    shown = words(result(kinds=kinds, methods=rows))

    assert shown.count("recall@10 by kind") == 2
    assert all(f"kind number {number}" in shown for number in range(4))


def test_one_kind_needs_no_table() -> None:
    assert "by kind" not in words(result(kinds={}))


def test_examples_say_right_and_wrong() -> None:
    example, _ = pick_examples(result(), dataset(), 2)

    lines = printed(example_in_words(example)).splitlines()
    assert [line.rstrip() for line in lines] == [
        "“words of query 2” (headline)",
        "  ✓ right  words of b",
        "           first by 16+16, default",
        "  ✗ wrong  The title of a",
        "           first by 32 by text",
        "  ✗ wrong  words of c",
        "           first by 16+16, RRF",
    ]


def test_texts_of_others_cannot_steer_the_terminal() -> None:
    evil = "\x1b[31m[bold]{}\u202e"
    found = result(dataset=evil, notes=(evil,), kinds={evil: ["1", "2"]})
    for row in found.methods:
        row.by_kind[evil] = row.metrics

    shown = printed(
        *result_tables(found), *map(example_in_words, pick_examples(found, dataset(evil)))
    )

    assert not {"\x1b", "\u202e"} & set(shown)
    # Name, kind and note; in an example, the query, its kind and two titles.
    assert shown.count("\\x1b[31m[bold]") == 3 + 4
