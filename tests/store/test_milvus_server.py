"""MilvusStore on a real server: it must behave as on Milvus Lite, where Milvus differs."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.milvus import MilvusVectorStore

from llama_index_gap.nodes import CaptionedImageNode
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import to_row

pytestmark = pytest.mark.server
DIM = 4


@pytest.fixture(scope="session")
def shared(milvus_url: str) -> Iterator[MilvusStore]:
    with MilvusStore(uri=milvus_url, collection_name="nodes", dim=DIM) as opened:
        yield opened


@pytest.fixture
def store(shared: MilvusStore) -> MilvusStore:
    """The shared collection, empty. Dropping it for each test would take seconds."""
    shared.delete_nodes([node.node_id for node in shared.get_nodes()])
    return shared


def vector(seed: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(size=DIM)]


def node(node_id: str, seed: int = 0, *, source: str | None = None, **metadata: Any) -> TextNode:
    related = {} if source is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)}
    return TextNode(
        id_=node_id, text="t", embedding=vector(seed), metadata=metadata, relationships=related
    )


def search(store: MilvusStore, seed: int = 0, k: int = 10, **query: Any) -> list[str]:
    found = store.query(VectorStoreQuery(query_embedding=vector(seed), similarity_top_k=k, **query))
    return list(found.ids or [])


def where(key: str, operator: str, value: Any, condition: str = "and") -> MetadataFilters:
    one = MetadataFilter(key=key, operator=FilterOperator(operator), value=value)
    return MetadataFilters(filters=[one], condition=FilterCondition(condition))


def test_a_search_finds_what_was_just_added(store: MilvusStore) -> None:
    for seed in range(5):
        store.add([node(str(seed), seed)])
        assert search(store, seed, k=1) == [str(seed)]
    store.delete_nodes(["0"])
    assert "0" not in search(store, 0)


def test_adding_again_leaves_one_row_with_the_new_content(store: MilvusStore) -> None:
    store.add([node("a", 0, old=1)])
    store.add([node("a", 1, new=2), node("a", 2, newest=3)])
    assert store.count() == 1
    assert store.get_nodes(["a"])[0].metadata == {"newest": 3}
    assert search(store, 2) == ["a"]
    assert store.get_nodes(filters=where("old", "==", 1)) == []


def test_a_search_with_metadata_and_sources(store: MilvusStore) -> None:
    store.add(
        [
            node("a", 1, source="d", n=1),
            node("b", 2, source="d", n=2),
            node("None", 3, source="None"),
        ]
    )
    assert search(store, filters=where("n", "==", 2), node_ids=["a", "b"]) == ["b"]
    assert set(search(store, doc_ids=["d"])) == {"a", "b"}
    assert len(search(store, k=3, node_ids=[])) == 3
    store.delete("None")
    store.delete("unknown")
    assert store.existing_ids(["a", "b", "None"]) == {"a", "b"}
    store.delete("d")
    assert store.count() == 0


def test_delete_none_leaves_nodes_without_a_source(store: MilvusStore) -> None:
    theirs = MilvusVectorStore(uri=store.uri, collection_name="nodes", use_async_client=False)
    theirs.add([node("theirs")])
    store.add([node("ours"), node("really", source="None")])
    store.delete("None")
    assert store.existing_ids(["theirs", "ours", "really"]) == {"theirs", "ours"}
    theirs.client.close()


@pytest.mark.parametrize(
    ("operator", "value", "condition", "expected"),
    [
        ("!=", 1, "and", {"two", "text", "none", "lacks"}),
        ("==", 1, "not", {"two", "text", "none", "lacks"}),
        ("nin", [1, 2], "and", {"text", "none", "lacks"}),
        ("in", [1, 5], "and", {"one", "true"}),
        ("in", list(range(1000)), "and", {"one", "two", "true"}),
        (">", 1, "and", {"two"}),
        (">", 1, "not", {"one", "none", "lacks"}),
        (">=", "1", "and", {"text"}),
        ("is_empty", None, "and", {"none", "lacks"}),
        ("is_empty", None, "not", {"one", "two", "true", "text"}),
    ],
)
def test_filters_mean_what_they_mean_on_lite(
    store: MilvusStore, operator: str, value: Any, condition: str, expected: set[str]
) -> None:
    values = {"one": 1, "two": 2, "true": True, "text": "1", "none": None}
    store.add([node(name, n=value) for name, value in values.items()] + [node("lacks")])
    assert set(search(store, filters=where("n", operator, value, condition))) == expected


def test_lists_texts_and_nested_filters(store: MilvusStore) -> None:
    store.add([node("a", tags=["x", 'q"'], s="ship"), node("b", tags=["y"], s="sheep"), node("c")])
    for operator, value, expected in [
        ("contains", 'q"', {"a"}),
        ("any", ["x", "y"], {"a", "b"}),
        ("any", [], set()),
        ("all", ["x", 'q"'], {"a"}),
        ("all", ["x", "y"], set()),
    ]:
        assert set(search(store, filters=where("tags", operator, value))) == expected
    inner = MetadataFilters(
        filters=[where("s", "==", "ship"), where("tags", "contains", "y")],
        condition=FilterCondition.OR,
    )
    neither = MetadataFilters(filters=[inner], condition=FilterCondition.NOT)
    assert set(search(store, filters=inner)) == {"a", "b"}
    assert search(store, filters=neither) == ["c"]
    # In Milvus 2.3, `like` matches only the beginning of a text.
    with pytest.raises(NotImplementedError, match=r"Milvus 2\.4 and later"):
        search(store, filters=where("s", "text_match", "hip"))


@pytest.mark.parametrize(
    "text", ['"', "\\", '\\"', '"] or id != "', "it's", "a\nb\t\r", "é漢🚢", "\x01"]
)
def test_quotes_and_backslashes_are_only_characters(store: MilvusStore, text: str) -> None:
    key = text if text.isprintable() else "k"
    store.add([node(text, 1, source=text, s=text, **{key: "x"}), node("other", 2, s="x")])
    assert search(store, filters=where("s", "==", text)) == [text]
    assert search(store, filters=where(key, "==", "x")) == [text]
    assert search(store, node_ids=[text]) == search(store, doc_ids=[text]) == [text]
    assert [read.node_id for read in store.get_nodes([text])] == [text]
    store.delete_nodes([text])
    assert store.existing_ids([text, "other"]) == {"other"}


def test_the_limits_of_a_row(store: MilvusStore) -> None:
    longest = node("a" * 60_000).model_copy(update={"text": "é" * 32_767})
    store.add([longest])
    assert store.get_nodes([longest.node_id]) == [longest.model_copy(update={"embedding": None})]

    def with_metadata(length: int) -> TextNode:
        return node("b", long="x" * length)

    short, long = 0, 65_536  # bisect to the last byte that the store accepts
    while long - short > 1:
        middle = (short + long) // 2
        try:
            to_row(with_metadata(middle), store._collection.max_lengths)
            short = middle
        except ValueError:
            long = middle
    store.add([with_metadata(short)])
    assert len(json.dumps(store.get_nodes(["b"])[0].metadata)) == short + len('{"long": ""}')


def test_more_rows_than_fit_into_one_message(store: MilvusStore) -> None:
    rows = [node(str(i), i, long="x" * 30_000) for i in range(1200)]
    store.add([row.model_copy(update={"text": "y" * 60_000}) for row in rows])
    ids = [row.node_id for row in rows]
    assert store.existing_ids(ids) == set(ids)
    assert [read.node_id for read in store.get_nodes(ids)] == ids
    assert len(store.get_vectors(ids)) == 1200
    assert len(search(store, 5, k=200)) == 200
    assert 200 < len(store.sample(300)) < 400
    assert len(store.sample(10_000)) == 1200


def test_images_and_metadata_come_back(store: MilvusStore) -> None:
    image = ImageNode(
        id_="a",
        text="a ship",
        image_path="ship.png",
        embedding=vector(0),
        metadata={"n": np.float32(1.5), "deep": {"k": [1, None, math.nan]}},
    )
    store.add([image])
    [read] = store.query(VectorStoreQuery(vector(0), similarity_top_k=1)).nodes or []
    assert isinstance(read, CaptionedImageNode)
    assert (read.text, read.image_path) == ("a ship", "ship.png")
    assert read.metadata == {"n": 1.5, "deep": {"k": [1, None, None]}}


def test_reopening_with_properties(store: MilvusStore) -> None:
    text = 'clip/ü "quoted" \\ \n'
    store.set_properties({"model": text, "dim": "3"})
    store.set_properties({"dim": "4"})
    store.add([node("a")])
    with MilvusStore(uri=store.uri, collection_name="nodes") as second:
        assert second.dim == DIM
        assert second.properties() == {"model": text, "dim": "4"}
        assert second.existing_ids(["a"]) == {"a"}
    for clone in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
        with clone:
            assert clone.count() == 1
    for settings, message in [
        ({"dim": 8}, "4 dimensions, not 8"),
        ({"similarity_metric": "IP"}, "'COSINE', not 'IP'"),
        ({"index_config": {"index_type": "FLAT"}}, "type HNSW, not FLAT"),
    ]:
        with pytest.raises(ValueError, match=message):
            MilvusStore(uri=store.uri, collection_name="nodes", **settings)
    with pytest.raises(ValueError, match="no such collection"):
        MilvusStore(uri=store.uri, collection_name="unknown")


def test_clear_keeps_the_properties_and_finish_flushes_only_on_request(milvus_url: str) -> None:
    with MilvusStore(
        uri=milvus_url, collection_name="cleared", dim=DIM, similarity_metric="L2", overwrite=True
    ) as store:
        store.set_properties({"model": "clip"})
        store.add([node("a")])
        store.clear()
        assert (store.count(), search(store), store.properties()) == (0, [], {"model": "clip"})
        store.add([node("b", 1), node("c", 2)])
        store.finish()
        store.finish(flush=True, timeout=60)
        found = store.query(VectorStoreQuery(vector(1), similarity_top_k=2))
        assert found.ids == ["b", "c"]
        assert found.similarities == pytest.approx(
            [0, -float(np.square(np.subtract(vector(1), vector(2))).sum())], abs=1e-4
        )


def test_threads(store: MilvusStore) -> None:
    def work(thread: int) -> bool:
        seeds = range(100 * thread, 100 * thread + 5)
        for seed in seeds:
            store.add([node(str(seed), seed)])
        return all(search(store, seed, k=1) == [str(seed)] for seed in seeds)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert store.count() == 40


def test_what_the_server_refuses_is_an_error_of_one_line(store: MilvusStore) -> None:
    with pytest.raises(
        StoreError, match=r"collection 'nodes' in http://127.*query failed"
    ) as caught:
        store._collection.find_ids("nonsense ==")
    assert "\n" not in str(caught.value)


def test_documents_and_unchanged_nodes(store: MilvusStore) -> None:
    nodes = [node("a", 1, source="d", n=1), node("b", 2, source="d", n=2), node("c", 3)]
    store.add([*nodes, node("x", 4, source="e")])

    found = {read.node_id: tuple(got) for read, got in store.nodes_of_documents(["d", "c", "?"])}
    assert found == {name: tuple(np.float32(vector(i))) for i, name in enumerate("abc", start=1)}
    pairs = store.nodes_of_documents(["d", "c"], where("n", "==", 2))
    assert [read.node_id for read, _ in pairs] == ["b"]
    changed = node("c", 3, new=1)
    assert store.unchanged_ids([*nodes[:2], changed, node("?")]) == {"a", "b"}
