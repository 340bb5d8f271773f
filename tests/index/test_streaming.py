"""Nodes that come one by one, from any iterable."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from content_vectors import ContentVectors
from index_nodes import of_document
from llama_index.core.schema import Document, ImageNode, TextNode

from llama_index_gap import read_corpus
from llama_index_gap.index import ledger, windows, writing
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.writing import IndexReport

Insert = Callable[[DualIndex, Any], IndexReport]
WAYS: dict[str, Insert] = {
    "insert": lambda index, nodes: index.insert_nodes(nodes),
    "refresh": lambda index, nodes: index.refresh_ref_docs(nodes, source="s"),
    "sync": lambda index, nodes: index.sync(nodes, source="s").written,
    "async": lambda index, nodes: asyncio.run(index.ainsert_nodes(nodes)),
}


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ledger, writing):
        monkeypatch.setattr(module, "WINDOW", 10)
    monkeypatch.setattr(windows.windows, "__defaults__", (10,))


@pytest.fixture
def model() -> ContentVectors:
    return ContentVectors()


@pytest.fixture
def index(model: ContentVectors, tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as opened:
        yield opened


def node(number: int, text: str = "", document: str = "") -> TextNode:
    source = of_document(document or f"d{number}")
    return TextNode(id_=f"n{number}", text=text or f"text {number}", relationships=source)


def nodes(count: int) -> Iterator[TextNode]:
    return map(node, range(count))


def texts(index: DualIndex) -> dict[str, str]:
    return {each.node_id: each.get_content() for each in index._stores["text"].get_nodes()}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_gives_nodes_is_taken(index: DualIndex, way: Insert) -> None:
    listed = list(nodes(25))
    keyed = {each.node_id: each for each in listed}
    array = np.empty(25, dtype=object)
    array[:] = listed

    assert way(index, (each for each in listed)).text_rows == 25
    for again in (listed, tuple(listed), keyed.values(), array, iter(listed)):
        assert (way(index, again).unchanged, index.count()["text"]) == (25, 25)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_gives_no_nodes_is_refused(index: DualIndex, way: Insert) -> None:
    used_up = (each for each in [node(1)])
    list(used_up)

    async def later() -> AsyncIterator[TextNode]:
        yield node(1)

    for wrong, why in (
        (used_up, "used up"),
        (node(1), r"single node.*pass a list"),
        ({"a": node(1)}, r"\.values\(\)"),
        ("n1", "pass an iterable"),
        (None, "pass an iterable"),
        (["n1"], r"nodes\[0\] is str 'n1'"),
        (later(), "asynchronous"),
    ):
        with pytest.raises(ValueError, match=why):
            way(index, wrong)
    assert index.count()["text"] == 0


def test_no_nodes_are_no_rows(index: DualIndex) -> None:
    assert index.insert_nodes(iter(())) == index.insert_nodes([]) == IndexReport()
    with pytest.raises(ValueError, match="an empty corpus"):
        index.sync(iter(()), source="s")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_few_windows_are_in_memory(index: DualIndex, way: Insert) -> None:
    given: list[weakref.ref[TextNode]] = []
    most = 0

    def counted() -> Iterator[TextNode]:
        nonlocal most
        for number in range(200):
            made = node(number)
            given.append(weakref.ref(made))
            yield made
            del made
            if number % 10 == 0:
                most = max(most, sum(each() is not None for each in given))

    assert way(index, counted()).text_rows == 200
    assert most <= 40


@pytest.mark.parametrize("way", ["insert", "refresh", "async"])
def test_what_came_before_an_error_stays(index: DualIndex, way: str) -> None:
    def broken() -> Iterator[TextNode]:
        yield from nodes(25)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        WAYS[way](index, broken())
    assert index.count()["text"] == 25
    assert WAYS[way](index, nodes(30)).unchanged == 25


def test_a_sync_of_what_breaks_off_changes_nothing(index: DualIndex) -> None:
    index.sync(nodes(5), source="s")

    def broken() -> Iterator[TextNode]:
        yield node(100)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        index.sync(broken(), source="s")
    assert set(texts(index)) == {f"n{number}" for number in range(5)}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_last_of_an_id_counts_however_far_apart(index: DualIndex, way: Insert) -> None:
    doubled = [node(0, "first"), *map(node, range(1, 25)), node(0, "last")]

    for _ in range(2):  # the second time with "last" and without "first"
        report = way(index, iter(doubled))
        assert texts(index)["n0"] == "last"
        assert [skip.source for skip in report.skipped] == ["node n0"]
    assert index.count()["text"] == 25


def test_a_node_that_gets_its_text_back_keeps_it(index: DualIndex) -> None:
    bare = ImageNode(id_="n0", text="", image_url="https://example.org/a.png")
    captioned = ImageNode(id_="n0", text="caption", image_url="https://example.org/a.png")
    index._stores["image"].add([bare.model_copy(update={"embedding": [1.0] * 16})])
    index._stores["text"].add([captioned.model_copy(update={"embedding": [1.0] * 16})])

    index.insert_nodes(iter([bare, *map(node, range(1, 12)), captioned]))

    assert texts(index)["n0"] == "caption"


@pytest.mark.parametrize("way", ["refresh", "sync"])
def test_a_document_across_windows_loses_what_it_has_no_longer(
    index: DualIndex, model: ContentVectors, way: str
) -> None:
    WAYS[way](index, (node(number, document="d") for number in range(35)))
    model.embedded.clear()

    shorter = [*range(12), *range(20, 33)]
    report = WAYS[way](index, (node(number, document="d") for number in shorter))

    assert (report.unchanged, report.deleted) == (25, 10)
    assert set(texts(index)) == {f"n{number}" for number in shorter}
    assert model.embedded == []


def test_a_sync_in_windows_is_as_one_in_one(index: DualIndex, model: ContentVectors) -> None:
    index.sync(nodes(50), source="s")
    index.insert_nodes([node(1000)])
    model.embedded.clear()

    def changed() -> Iterator[TextNode]:
        for number in range(5, 50):  # the first five are renamed, and come last
            yield node(number, "another text" if number == 30 else "")
        for number in range(5):
            yield TextNode(
                id_=f"m{number}", text=f"text {number}", relationships=of_document(f"e{number}")
            )
        yield node(100)

    plan = index.sync(changed(), source="s", dry_run=True)
    report = index.sync(changed(), source="s")

    assert plan.new == report.new == ["d100", *(f"e{number}" for number in range(5))]
    assert plan.changed == report.changed == ["d30"]
    assert plan.vanished == report.vanished == [f"d{number}" for number in range(5)]
    assert report.renamed == {f"e{number}": f"d{number}" for number in range(5)}
    assert (report.unchanged, report.others) == (44, 1)
    assert (report.written.text_rows, report.written.unchanged) == (7, 44)
    assert sorted(model.embedded) == ["another text", "text 100"]
    assert len(texts(index)) == 52


def test_most_of_a_stream_may_not_vanish(index: DualIndex) -> None:
    index.sync(nodes(60), source="s")

    with pytest.raises(ValueError, match=r"45 of the 60 documents .* Nothing was written"):
        index.sync((node(number, "new") for number in range(15)), source="s")
    assert texts(index) == {each.node_id: each.text for each in nodes(60)}


def test_a_binary_document_across_windows_leaves_nothing(index: DualIndex) -> None:
    parts = [node(number, document="b") for number in range(15)]
    parts[12] = node(12, "\x01\x02" * 40, document="b")

    report = index.insert_nodes(iter([*parts, node(99)]))

    assert set(texts(index)) == {"n99"}
    assert len(report.skipped) == 15


def test_documents_are_cut_as_they_come(model: ContentVectors, tmp_path: Path) -> None:
    documents = (Document(id_=str(number), text=f"text {number}") for number in range(25))
    uri = str(tmp_path / "a.db")

    with DualIndex.from_documents(documents, uri, embed_model=model) as index:
        assert index.report.text_rows == index.count()["text"] == 25


def test_a_corpus_is_indexed_as_it_is_read(model: ContentVectors, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"d{number}", "text": f"text {number}"}) for number in range(35)]
    lines[17] = "broken"
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    corpus = read_corpus(file)

    with DualIndex.from_documents(corpus, str(tmp_path / "a.db"), embed_model=model) as index:
        assert index.report.text_rows == len(corpus) == 34
        assert [skip.source for skip in index.report.skipped] == ["a.jsonl:18"]
        assert corpus._nodes is None  # were never in memory
        file.write_text("\n".join([*lines[5:], json.dumps({"id": "new", "text": "new"})]))
        report = index.sync(read_corpus(file))
        assert report.new == ["new"]
        assert len(report.kept) == 5  # the broken line may be any of these documents
        lines.pop(17)
        file.write_text("\n".join(lines[5:]))
        assert len(index.sync(corpus).vanished) == 6  # read again


def test_ids_are_taken_from_anything(index: DualIndex) -> None:
    index.insert_nodes(nodes(4))
    store = index._stores["text"]
    ids = [f"n{number}" for number in range(4)]

    assert [each.node_id for each in index.get_nodes(iter(ids))] == ids
    assert [each.node_id for each in index.get_nodes(np.array(ids))] == ids
    assert [each.node_id for each in store.get_nodes(iter(ids))] == ids
    assert set(store.get_vectors(iter(ids))) == set(ids)
    index.delete_nodes(each for each in ids[:2])
    store.delete_nodes(dict.fromkeys(ids[2:3]))
    assert set(texts(index)) == {"n3"}
    for call in (index.delete_nodes, index.get_nodes, store.delete_nodes, store.get_nodes):
        with pytest.raises(ValueError, match=r"='n3': is one string; pass a list"):
            call("n3")
    embedded = [each.model_copy(update={"embedding": [1.0] * 16}) for each in nodes(3)]
    assert store.add(iter(embedded)) == ["n0", "n1", "n2"]
