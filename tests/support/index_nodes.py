"""Nodes for tests of an index, and ways to observe it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import (
    NodeRelationship,
    RelatedNodeInfo,
)

from llama_index_gap.store.collection import Collection


def of_document(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


def as_base64(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def labelled() -> dict[str, Any]:
    """Labelled hits of both collections; higher scores are better."""
    scores, labels = np.linspace(-1, 1, 40), [0] * 15 + [1, 0] * 5 + [1] * 15
    return {"text_to_text": (scores, labels), "text_to_image": (scores, labels)}


def finished(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that records the collections flushed from now on."""
    flushed: list[str] = []
    call = Collection.call

    def counted(self: Collection, method: str, **arguments: Any) -> Any:
        if method == "flush":
            flushed.append(self.name)
        return call(self, method, **arguments)

    monkeypatch.setattr(Collection, "call", counted)
    return flushed
