"""Small nodes, and searches in a store."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
from llama_index.core.schema import (
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_gap.store.milvus import MilvusStore

DIM = 4


def vector(seed: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(size=DIM)]


def node(node_id: str, seed: int = 0, *, source: str | None = None, **metadata: Any) -> TextNode:
    related = {} if source is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)}
    return TextNode(
        id_=node_id,
        text=f"text of {node_id}",
        embedding=vector(seed),
        metadata=metadata,
        relationships=related,
    )


def search(store: MilvusStore, seed: int = 0, k: int = 10, **query: Any) -> list[str]:
    found = store.query(VectorStoreQuery(query_embedding=vector(seed), similarity_top_k=k, **query))
    return list(found.ids or [])


def equal(key: str, value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value)])


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
