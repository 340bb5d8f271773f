from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from compass import Compass
from index_nodes import of_document
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

from llama_index_gap.pickling import why_not_sent_whole

LOCK = "TypeError: cannot pickle '_thread.lock' object"


class Locked(Compass):
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


def test_what_arrives_whole() -> None:
    node = TextNode(text="a text", metadata={"a": 1}, relationships=of_document("d"))

    assert why_not_sent_whole([node, {"model": Compass()}, None]) is None
    assert pickle.loads(pickle.dumps(node)) == node


@pytest.mark.parametrize(
    "thing",
    [
        TextNode(text="a text", metadata={"lock": threading.Lock()}),
        TextNode(
            text="a text",
            relationships={
                NodeRelationship.SOURCE: RelatedNodeInfo(
                    node_id="d", metadata={"lock": threading.Lock()}
                )
            },
        ),
        Locked(),
    ],
    ids=["metadata", "those of a relation", "a private attribute"],
)
def test_what_llama_index_would_leave_out_is_said_and_stays(thing: Any) -> None:
    before = vars(thing).copy()

    assert why_not_sent_whole([thing]) == LOCK
    assert vars(thing) == before


def test_what_is_nested_too_deep() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"in": deep}

    assert str(why_not_sent_whole(TextNode(text="a", metadata=deep))).startswith("RecursionError")
