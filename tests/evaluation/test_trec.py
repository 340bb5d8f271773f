from __future__ import annotations

from pathlib import Path

import pytest
import pytrec_eval

from llama_index_gap.evaluation.trec import write_qrels, write_run

RUN = {"q1": ["b", "a", "c"], "q2": ["a"]}
QRELS = {"q1": {"a": 2, "b": 0}, "q2": {"c": 1}}


def test_pytrec_eval_reads_the_same(tmp_path: Path) -> None:
    write_run(RUN, tmp_path / "run.txt", tag="mine")
    write_qrels(QRELS, tmp_path / "qrels.txt")

    assert (tmp_path / "run.txt").read_text().splitlines()[0] == "q1 Q0 b 1 3 mine"
    with (tmp_path / "run.txt").open() as file:
        scored = pytrec_eval.parse_run(file)
    assert {q: sorted(found, key=found.get, reverse=True) for q, found in scored.items()} == RUN
    with (tmp_path / "qrels.txt").open() as file:
        assert pytrec_eval.parse_qrel(file) == QRELS


@pytest.mark.parametrize("identifier", ["a b", "", " a", "a\n"])
def test_an_id_with_white_space_is_refused(tmp_path: Path, identifier: str) -> None:
    with pytest.raises(ValueError, match="cannot be written to a TREC file"):
        write_run({"q": [identifier]}, tmp_path / "run.txt")
    assert not (tmp_path / "run.txt").exists()
