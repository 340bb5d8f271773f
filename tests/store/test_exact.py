"""Filters on Milvus Lite, whose search may end among nodes that the filter leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, VectorStoreQuery

from llama_index_gap.store.milvus import MilvusStore

D, CROWD, OTHERS = 32, 1500, 20
QUERY = [1.0, *[0.0] * (D - 1)]


def nodes() -> list[TextNode]:
    """A document of many near passages, and 20 documents of one passage, the nearest first."""
    rng = np.random.default_rng(0)
    made: list[TextNode] = []
    for i in range(CROWD + OTHERS):
        crowd = i < CROWD
        cosine = 0.95 - i / (20 * CROWD) if crowd else 0.6 - (i - CROWD) / 100
        rest = rng.normal(size=D)
        rest[0] = 0
        vector = np.sqrt(1 - cosine**2) * rest / np.linalg.norm(rest)
        vector[0] = cosine
        document = "crowd" if crowd else f"other {i - CROWD:02}"
        made.append(
            TextNode(
                id_=f"{document} {i}",
                text="a text",
                embedding=vector.tolist(),
                metadata={"kind": document.partition(" ")[0]},
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)},
            )
        )
    return made


@pytest.fixture(scope="module", params=["COSINE", "IP", "L2"])
def store(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    uri = str(tmp_path_factory.mktemp("store") / "x.db")
    with MilvusStore(
        uri=uri, collection_name="c", dim=D, similarity_metric=request.param
    ) as opened:
        opened.add(nodes())
        opened.finish()
        yield opened


def documents(store: MilvusStore, top_k: int = 5, **settings: Any) -> list[str]:
    others = settings.pop("other_than", ())
    query = VectorStoreQuery(QUERY, similarity_top_k=top_k, **settings)
    return [hit.document for hit in store.query_hits(query, other_than=others)]


NEAREST = [f"other {i:02}" for i in range(OTHERS)]


def test_a_filter_finds_what_lies_behind_a_crowd(store: MilvusStore) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="kind", value="other")])
    assert documents(store, filters=only) == NEAREST[:5]
    assert documents(store, 50, filters=only) == NEAREST
    assert documents(store, other_than=["crowd"]) == NEAREST[:5]
    assert documents(store, 50, other_than=["crowd", *NEAREST[:3]]) == NEAREST[3:]
    assert documents(store) == ["crowd"] * 5
    assert documents(store, other_than=["crowd", *NEAREST]) == []
    result = store.query(VectorStoreQuery(QUERY, similarity_top_k=30, filters=only))
    assert result.similarities == sorted(result.similarities, reverse=True)


def test_what_was_deleted_hides_nothing(tmp_path: Any) -> None:
    with MilvusStore(uri=str(tmp_path / "x.db"), collection_name="c", dim=D) as store:
        store.add(nodes())
        store.finish()
        store.delete("crowd")
        assert documents(store) == NEAREST[:5]
        assert documents(store, 50) == NEAREST
