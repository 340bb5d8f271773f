from __future__ import annotations

from pathlib import Path

import pytest
import pytrec_eval

from llama_index_gap.evaluation.trec import read_qrels, read_run, write_qrels, write_run

RUN = {"q1": ["b", "a", "c"], "q2": ["a"]}
QRELS = {"q1": {"a": 2, "b": 0}, "q2": {"c": 1}}


def test_a_run_comes_back(tmp_path: Path) -> None:
    write_run(RUN, tmp_path / "run.txt", tag="mine")

    assert read_run(tmp_path / "run.txt") == RUN
    assert (tmp_path / "run.txt").read_text().splitlines()[0] == "q1 Q0 b 1 3 mine"


def test_judgements_come_back(tmp_path: Path) -> None:
    write_qrels(QRELS, tmp_path / "qrels.txt")

    assert read_qrels(tmp_path / "qrels.txt") == QRELS


def test_pytrec_eval_reads_the_same(tmp_path: Path) -> None:
    write_run(RUN, tmp_path / "run.txt")
    write_qrels(QRELS, tmp_path / "qrels.txt")

    with (tmp_path / "run.txt").open() as file:
        scored = pytrec_eval.parse_run(file)
    assert {q: sorted(found, key=found.get, reverse=True) for q, found in scored.items()} == RUN
    with (tmp_path / "qrels.txt").open() as file:
        assert pytrec_eval.parse_qrel(file) == QRELS


def test_a_run_is_ordered_by_score_and_not_by_rank(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("q Q0 a 1 0.5 x\nq Q0 b 2 0.7 x\n\nq Q0 c 3 0.5 x\n")

    assert read_run(tmp_path / "run.txt") == {"q": ["b", "c", "a"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 a 1 0.5", "run.txt:2: has 5 columns, not 6"),
        ("q Q0 a 1 high x", "'high' is no number"),
        ("q Q0 a 1 nan x", "'nan' is no number"),
        ("q Q0 b 2 0.1 x", "b is in the ranking of q already"),
    ],
)
def test_a_broken_run_says_where(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run.txt").write_text(f"q Q0 b 1 0.9 x\n{line}\n")

    with pytest.raises(ValueError, match=message):
        read_run(tmp_path / "run.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [("q 0 b 2", "b is judged twice for q"), ("q 0 a 0.5", "0.5 is no whole number")],
)
def test_broken_judgements_say_where(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "qrels.txt").write_text(f"q 0 b 1\n{line}\n")

    with pytest.raises(ValueError, match=message):
        read_qrels(tmp_path / "qrels.txt")


@pytest.mark.parametrize("identifier", ["a b", "", " a", "a\n"])
def test_an_id_with_white_space_is_refused(tmp_path: Path, identifier: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a TREC file"):
        write_run({"q": [identifier]}, tmp_path / "run.txt")
    assert not (tmp_path / "run.txt").exists()
