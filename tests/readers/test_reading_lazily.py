"""A corpus that is read as it is consumed."""

from __future__ import annotations

import copy
import csv
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode

from llama_index_gap import Corpus, read_corpus
from llama_index_gap.readers.corpus import CorpusError, corpus_from_records
from llama_index_gap.readers.records import Skipped
from llama_index_gap.readers.taken_ids import TakenIds


def records(count: int) -> Iterator[dict[str, Any]]:
    return ({"id": f"d{number}", "text": f"text {number}"} for number in range(count))


def write(file: Path, count: int, broken: int | None = None) -> Path:
    lines = [json.dumps(each) for each in records(count)]
    if broken is not None:
        lines[broken] = "broken"
    file.write_text("\n".join(lines))
    return file


def ids(corpus: Corpus) -> list[str]:
    return [str(node.ref_doc_id) for node in corpus]


def test_it_is_read_as_it_is_consumed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", 1_000)
    corpus = read_corpus(file)
    first = next(iter(corpus))
    file.write_text("")

    assert first.ref_doc_id == "d0"
    with pytest.raises(CorpusError, match="no document could be read"):
        read_corpus(file)
    write(file, 3)
    assert ids(corpus) == ["d0", "d1", "d2"]
    write(file, 5)
    assert ids(corpus) == ["d0", "d1", "d2", "d3", "d4"]


def test_what_a_reading_tells_is_known_afterwards(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "a.jsonl", 5, broken=3))

    with pytest.raises(TypeError, match=r"len\(corpus.nodes\)"):
        len(corpus)
    assert len(list(corpus)) == len(corpus) == 4
    assert [skip.source for skip in corpus.skipped] == ["a.jsonl:4"]
    assert corpus.summary().startswith("4 documents: 4 passages, 0 images")
    assert corpus.places == {f"d{n}": f"a.jsonl:{n + 1}" for n in (0, 1, 2, 4)}


@pytest.mark.parametrize("most", [10_000, 3])
def test_what_is_skipped_is_read_through_where_nothing_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(Corpus._read_through, "__defaults__", (most,))
    corpus = read_corpus(write(tmp_path / "a.jsonl", 5, broken=3))

    assert len(corpus.skipped) == 1
    assert (corpus._nodes is None) is (most == 3)
    assert len(corpus) == len(corpus.nodes) == len(ids(corpus)) == 4


def test_nodes_are_read_once_and_stay(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "a.jsonl", 3))
    corpus.nodes[0].metadata["desk"] = "local"

    assert next(iter(corpus)).metadata == {"desk": "local"}
    assert corpus.nodes is corpus.nodes
    assert bool(corpus)
    assert replace(corpus, nodes=corpus.nodes[:1]).document_ids == ["d0"]
    for other in (copy.deepcopy(corpus), pickle.loads(pickle.dumps(corpus))):
        assert (ids(other), other.path, other.places) == (ids(corpus), corpus.path, corpus.places)


def test_what_is_wrong_is_known_early(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,one\n")
    with pytest.raises(CorpusError, match="no such file"):
        read_corpus(tmp_path / "none")
    with pytest.raises(CorpusError, match="body"):
        read_corpus(tmp_path / "a.csv", text_field="body")
    with pytest.raises(CorpusError, match="is not JSON"):
        read_corpus(write(tmp_path / "a.jsonl", 5, broken=3), strict=True)


def test_two_tables_can_be_read_by_turns(tmp_path: Path) -> None:
    before, long = csv.field_size_limit(), "x " * 70_000
    for name in "ab":
        rows = "".join(f"{number},{long}\n" for number in range(3))
        (tmp_path / f"{name}.csv").write_text(f"id,text\n{rows}")
    two = [read_corpus(tmp_path / f"{name}.csv") for name in "ab"]

    assert csv.field_size_limit() == before
    first, second = (iter(corpus.documents()) for corpus in two)
    for number in range(3):
        assert next(first).id == next(second).id == str(number)
    assert csv.field_size_limit() == before


def test_records_of_a_list_are_read_again_and_of_an_iterator_once(tmp_path: Path) -> None:
    again = corpus_from_records(list(records(3)), tmp_path)
    once = corpus_from_records(records(3), tmp_path)

    assert ids(again) == ids(again) == ids(once) == ["d0", "d1", "d2"]
    assert len(once) == 3
    with pytest.raises(CorpusError, match=r"once; read corpus.nodes first"):
        ids(once)
    kept = corpus_from_records(records(3), tmp_path)
    assert kept.summary().startswith("3 documents")
    assert ids(kept) == ids(kept) == ["d0", "d1", "d2"]
    with pytest.raises(CorpusError, match="pass an iterable of mappings"):
        corpus_from_records({"id": "a"}, tmp_path)


def test_a_corpus_of_one_s_own(tmp_path: Path) -> None:
    nodes = [TextNode(id_="a", text="one"), TextNode(id_="b", text="two")]
    skipped = [Skipped("c", "is broken")]

    for given in (nodes, tuple(nodes), iter(nodes), dict.fromkeys("ab", nodes[0]).values()):
        corpus = Corpus(given, skipped, tmp_path)
        assert len(corpus.nodes) == 2
        assert (corpus.skipped, corpus.root) == (skipped, tmp_path)
    assert not Corpus([], [])


def test_ids_are_taken_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_gap.readers.taken_ids._IN_MEMORY", 3)
    taken = TakenIds()

    for number in range(10):
        assert f"d{number}" not in taken
        taken.add([f"d{number}", f"d{number}\ud800"])
    assert all(f"d{number}" in taken for number in range(10))
    assert "d3\ud800" in taken


def test_an_id_that_is_taken_far_back_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_gap.readers.taken_ids._IN_MEMORY", 3)
    file = write(tmp_path / "a.jsonl", 9)
    file.write_text(file.read_text() + "\n" + json.dumps({"id": "d1", "text": "again"}))

    corpus = read_corpus(file)

    assert len(corpus.nodes) == 9
    assert corpus.skipped == [Skipped("a.jsonl:10", "the id 'd1' is already taken")]
