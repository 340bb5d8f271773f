"""What an evaluation says about learning from queries; it never learns from those it judges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compass import Compass, four_nodes

from llama_index_gap.evaluation.datasets import Dataset, LabelledQuery
from llama_index_gap.evaluation.experiment import Experiment
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.readers.corpus import Corpus


def dataset(queries: int) -> Dataset:
    """Queries for the documents at 0 and 90 degrees, alternating; two are equal."""
    asked = [
        LabelledQuery(f"{number}", f"{90 * (number % 2)} degrees, {max(number, 1)}")
        for number in range(queries)
    ]
    qrels = {query.id: {query.text.split()[0]: 1} for query in asked}
    return Dataset("compass", Corpus(four_nodes(), []), asked, qrels)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Compass(embedded=[])) as opened:
        opened.insert_nodes(four_nodes())
        yield opened


def learning_note(result: Any) -> str:
    (note,) = (note for note in result.notes if "learnt from" in note)
    return note


def test_each_half_is_judged_with_the_other_as_its_sample(
    index: DualIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves: list[list[str]] = []
    learn = DualIndex.as_if_learnt

    def recorded(self: DualIndex, queries: Any) -> Any:
        halves.append(list(queries))
        return learn(self, queries)

    monkeypatch.setattr(DualIndex, "as_if_learnt", recorded)
    data, file = dataset(61), tmp_path / "results.jsonl"

    note = learning_note(Experiment(data, index).run(file))

    assert not {*halves[0]} & {*halves[1]}
    assert {*halves[0], *halves[1]} == {query.text for query in data.queries}
    assert "With a sample of them, nDCG@10 of the default is 1.000 instead of 1.000" in note
    assert "unclear) on 61 text queries" in note
    assert note.endswith(
        "let it learn from 100 to 300 queries that are not judged: llama-gap learn"
    )
    assert index.query_sample().texts == 0
    again = Experiment(data, index).run(file)
    assert (len(halves), learning_note(again)) == (2, note)  # everything came from the file


def test_a_query_is_never_its_own_sample(index: DualIndex) -> None:
    experiment = Experiment(dataset(80), index)
    trial = experiment._trial

    for query in dataset(80).queries:
        mine = trial._half[query.text]
        assert query.text not in trial._halves[1 - mine]


def test_few_queries_are_not_tried(index: DualIndex, tmp_path: Path) -> None:
    note = learning_note(Experiment(dataset(59), index).run(tmp_path / "results.jsonl"))

    assert note == (
        "the index has learnt from no queries; let it learn from 100 to 300 queries that "
        "are not judged: llama-gap learn"
    )


def test_a_learnt_sample_is_named_and_belongs_to_the_experiment(
    index: DualIndex, tmp_path: Path
) -> None:
    without = Experiment(dataset(61), index)
    index.learn_queries([f"{number} degrees" for number in range(40)])
    others = Experiment(dataset(61), index)
    notes = others.run(tmp_path / "others.jsonl").notes
    index.learn_queries([query.text for query in dataset(61).queries])
    judged = Experiment(dataset(61), index)

    assert "the index has learnt from 40 text queries: “16+16, default” uses them" in notes
    assert len({each.file_name for each in (without, others, judged)}) == 3
    assert any(
        note.startswith("the index has learnt from 61 of the labelled queries")
        for note in judged.run(tmp_path / "judged.jsonl").notes
    )
