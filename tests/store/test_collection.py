from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_nodes import DIM, node, search

from llama_index_gap.store.milvus import MilvusStore


def test_a_collection_is_loaded_when_it_is_opened_again(uri: str) -> None:
    with MilvusStore(uri=uri, collection_name="nodes", dim=DIM) as store:
        store.add([node("a"), node("b", 1)])
    with MilvusStore(uri=Path(uri), collection_name="nodes") as store:
        assert store.dim == DIM
        assert search(store, 1, k=1) == ["b"]


def test_a_collection_that_was_released_is_loaded_again(store: MilvusStore) -> None:
    store.add([node("a")])
    store.client.release_collection("nodes")
    assert search(store) == ["a"]


def test_overwrite_starts_anew(store: MilvusStore, uri: str) -> None:
    store.add([node("a")])
    with MilvusStore(uri=uri, collection_name="nodes", dim=2, overwrite=True) as second:
        assert (second.count(), second.dim) == (0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 8}, "holds vectors of 4 dimensions, not 8"),
        ({"similarity_metric": "L2"}, "similarity_metric='COSINE', not 'L2'"),
        ({"index_config": {"index_type": "FLAT"}}, "type HNSW, not FLAT"),
    ],
)
def test_another_dimension_metric_or_index_than_the_stored_one(
    store: MilvusStore, uri: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MilvusStore(uri=uri, collection_name="nodes", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity_metric": "dot"}, "'DOT': must be one of COSINE, IP, L2"),
        ({"index_config": {"index_type": "HSNW"}}, "'HSNW': must be one of AUTOINDEX, FLAT, HNSW"),
        ({"index_config": {"M": 8}}, "must have an index_type"),
        ({"dim": None}, "no such collection; check the name, or pass dim"),
        ({"dim": 0}, "between 1 and 32,768"),
        ({"collection_name": "my-nodes"}, "letters, digits and underscores"),
        ({"uri": "index.sqlite"}, r"ends in \.db"),
        ({"batch_size": 0}, "at least 1"),
        ({"uri": "http://me:secret@host"}, r"'http://\*\*\*@host': .* pass it as the token"),
    ],
)
def test_settings_that_cannot_be(uri: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MilvusStore(**{"uri": uri, "collection_name": "nodes", "dim": DIM, **settings})


@pytest.mark.parametrize("kind", ["FLAT", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8", "AUTOINDEX"])
def test_the_other_indexes(uri: str, kind: str) -> None:
    config = {"index_type": kind} | ({"nlist": 4} if kind.startswith("IVF") else {})
    for _ in range(2):
        with MilvusStore(uri=uri, collection_name="nodes", dim=DIM, index_config=config) as store:
            store.add([node(str(i), i) for i in range(10)])
            store.finish()
            assert search(store, 3, k=1) == ["3"]


def test_a_collection_of_something_else(uri: str, store: MilvusStore) -> None:
    store.client.create_collection("other", dimension=DIM)
    with pytest.raises(ValueError, match="has the columns id, vector"):
        MilvusStore(uri=uri, collection_name="other", dim=DIM)


def test_clear_then_add(store: MilvusStore) -> None:
    store.add([node("a")])
    store.set_properties({"model": "clip"})
    store.clear()
    assert (store.count(), search(store)) == (0, [])
    store.add([node("b")])
    assert search(store) == ["b"]
    assert store.properties() == {"model": "clip"}


def test_finish_leaves_a_searchable_store(
    store: MilvusStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llama_index_gap")
    store.add([node(str(i), i) for i in range(50)])
    stop = threading.Event()

    def searching() -> bool:
        while not stop.is_set():
            if search(store, 3, k=1) != ["3"]:
                return False
        return True

    with ThreadPoolExecutor(1) as pool:
        always_found = pool.submit(searching)
        store.finish()
        store.finish()
        stop.set()
        assert always_found.result()
    assert "indexed in" in caplog.text
    store.finish(flush=False)


def test_finish_flushes_and_indexes_on_lite(uri: str, store: MilvusStore) -> None:
    store.add([node(str(i), i) for i in range(50)])
    assert not list(Path(uri).rglob("*.parquet"))
    store.finish()
    assert list(Path(uri).rglob("*.parquet"))
    assert list(Path(uri).rglob("*.hnsw.idx"))


def test_properties_survive_reopening(uri: str) -> None:
    text = 'clip/ü "quoted" \\ \n'
    with MilvusStore(uri=uri, collection_name="nodes", dim=DIM) as store:
        assert store.properties() == {}
        store.set_properties({"model": text, "dim": "4"})
        store.set_properties({"dim": "5"})
        store.set_properties({})
    with MilvusStore(uri=uri, collection_name="nodes") as store:
        assert store.properties() == {"model": text, "dim": "5"}


def test_a_property_that_would_spoil_a_server_s_collection_is_refused(store: MilvusStore) -> None:
    """A server accepts a property of 1 MB, and then can neither alter nor drop the collection."""
    store.set_properties({"long": "ä" * 65_536})
    with pytest.raises(ValueError, match="property 'long': 131,073 bytes, more than"):
        store.set_properties({"long": "ä" * 65_536 + "a"})


@pytest.mark.parametrize("properties", [{"dim": 4}, {"": "x"}, {1: "x"}])
def test_properties_are_text(store: MilvusStore, properties: Any) -> None:
    with pytest.raises(ValueError, match="must be strings"):
        store.set_properties(properties)
