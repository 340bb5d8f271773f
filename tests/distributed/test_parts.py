from __future__ import annotations

from collections.abc import Iterator

import pytest
from index_nodes import of_document
from llama_index.core.schema import TextNode

from llama_index_gap.distributed.parts import KnownIds, cut_into_parts, digest, ids_of


def nodes_of(*documents: str) -> list[TextNode]:
    return [
        TextNode(id_=f"{document}{number}", text="x" * 10, relationships=of_document(document))
        for number, document in enumerate(documents)
    ]


@pytest.mark.parametrize(
    ("documents", "size", "parts"),
    [
        ("", 2, []),
        ("a", 2, [1]),
        ("abc", 2, [2, 1]),
        ("aaab", 2, [3, 1]),  # no document is split
        ("aabbcc", 3, [4, 2]),
    ],
)
def test_parts_end_between_documents(documents: str, size: int, parts: list[int]) -> None:
    assert [len(part) for part in cut_into_parts(nodes_of(*documents), size)] == parts


def test_long_texts_make_small_parts() -> None:
    long = [TextNode(id_=str(number), text="x" * 5_000_000) for number in range(4)]

    assert [ids_of(part) for part in cut_into_parts(long, 100)] == [["0", "1"], ["2", "3"]]


def test_nodes_are_read_as_they_are_needed() -> None:
    read: list[str] = []

    def reading() -> Iterator[TextNode]:
        for node in nodes_of(*"abcdef"):
            read.append(node.node_id)
            yield node

    next(cut_into_parts(reading(), 2))
    assert len(read) == 3


def test_ids_that_come_again() -> None:
    known = KnownIds()
    for part in (["a", "b", "a"], ["c", "b"], ["d", "a", "b"]):
        known.add(part)

    later, several = known.again()
    assert later == {0: {digest("a"), digest("b")}, 1: {digest("b")}}
    assert several == {digest("a"), digest("b")}
    assert all(name in known for name in "abcd")
    assert "e" not in known


def test_many_ids_that_come_once() -> None:
    known = KnownIds()
    for part in range(10):
        known.add(f"{part}-{number}" for number in range(300))

    assert known.again() == ({}, frozenset())
    assert "9-299" in known
    assert "9-300" not in known


def test_no_ids() -> None:
    assert KnownIds().again() == ({}, frozenset())
    assert "a" not in KnownIds()


def test_ids_of_any_letters() -> None:
    known = KnownIds()
    known.add(["\ud800", ""])

    assert "\ud800" in known
    assert "" in known
