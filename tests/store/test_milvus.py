from __future__ import annotations

import asyncio
import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.schema import (
    ImageNode,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.milvus import MilvusVectorStore
from store_nodes import DIM, equal, node, search, vector

from llama_index_gap.nodes import CaptionedImageNode
from llama_index_gap.store.collection import Collection
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import PLACE_KEY, SOURCE_KEY

# --- closing, copies, threads, loops ------------------------------------------------------------


def test_a_closed_store_says_so(store: MilvusStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="was closed; open a new"):
        store.count()


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, copy.copy, lambda store: pickle.loads(pickle.dumps(store))]
)
def test_copies_are_stores_of_their_own(
    store: MilvusStore, clone: Callable[[MilvusStore], MilvusStore]
) -> None:
    store.add([node("a")])
    with clone(store) as second:
        assert search(second) == ["a"]
    assert search(store) == ["a"]


def test_a_copy_overwrites_nothing(uri: str) -> None:
    with MilvusStore(uri=uri, collection_name="nodes", dim=DIM, overwrite=True) as store:
        store.add([node("a")])
        with copy.deepcopy(store) as second:
            assert second.count() == 1


def test_two_event_loops_and_no_asynchronous_client(store: MilvusStore) -> None:
    async def use(seed: int) -> list[str]:
        await store.async_add([node(str(seed), seed)])
        query = VectorStoreQuery(query_embedding=vector(seed), similarity_top_k=1)
        assert [n.node_id for n in await store.aget_nodes([str(seed)])] == [str(seed)]
        await store.async_add([node("extra"), node("more", source="d")])
        await store.adelete_nodes(["extra"])
        await store.adelete("d")
        return list((await store.aquery(query)).ids or [])

    assert asyncio.run(use(1)) == ["1"]
    assert asyncio.run(use(2)) == ["2"]
    assert store.aclient is None
    asyncio.run(store.aclear())
    assert store.count() == 0


def test_eight_threads_add_and_search(store: MilvusStore) -> None:
    def work(thread: int) -> list[bool]:
        found = []
        for i in range(10):
            seed = 100 * thread + i
            store.add([node(str(seed), seed)])
            found.append(search(store, seed, k=1) == [str(seed)])
        return found

    with ThreadPoolExecutor(8) as pool:
        found = [hit for hits in pool.map(work, range(8)) for hit in hits]
    assert all(found)
    assert store.count() == 80


def test_nothing_is_printed_and_nothing_warned(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with MilvusStore(uri=uri, collection_name="nodes", dim=DIM) as store:
            store.add([node("a")])
            store.finish()
            search(store)
            store.client.release_collection("nodes")
            search(store)
    assert capfd.readouterr() == ("", "")


# --- writing ------------------------------------------------------------------------------------


def test_adding_again_replaces_the_row_and_its_old_keys(store: MilvusStore) -> None:
    store.add([node("a", 0, old=1)])
    store.finish()
    store.add([node("a", 1, new=2), node("a", 2, newest=3)])

    assert store.count() == 1
    assert store.get_nodes(["a"])[0].metadata == {"newest": 3}
    assert (
        store.get_nodes(filters=equal("old", 1)) == store.get_nodes(filters=equal("new", 2)) == []
    )
    assert store.get_vectors(["a"])["a"] == pytest.approx(np.float32(vector(2)))


def test_batches_of_many_rows(uri: str) -> None:
    with MilvusStore(uri=uri, collection_name="nodes", dim=DIM, batch_size=7) as store:
        store.add([node(str(i), i) for i in range(30)])
        assert store.count() == 30
        assert store.add([]) == []


def test_delete_by_source(store: MilvusStore) -> None:
    store.add([node("a", source="d"), node("b", source="d"), node("c", source='"] or id != ["')])
    store.delete('"] or id != ["')
    assert store.existing_ids("abc") == {"a", "b"}
    store.delete("d")
    assert store.count() == 0


def test_delete_none_leaves_nodes_without_a_source(uri: str, store: MilvusStore) -> None:
    theirs = MilvusVectorStore(uri=uri, collection_name="nodes", use_async_client=False)
    theirs.add([node("theirs")])
    store.add([node("ours"), node("really", source="None")])
    store.delete("None")
    assert store.existing_ids(["theirs", "ours", "really"]) == {"theirs", "ours"}
    theirs.client.close()


def test_delete_nodes(store: MilvusStore) -> None:
    quoted = 'it\'s "q" \\'
    store.add([node("a", n=1), node("b", n=1), node("c", n=2), node(quoted, n=3)])
    store.delete_nodes([])
    store.delete_nodes(["a", "c", "unknown"], equal("n", 1))
    assert store.existing_ids(["a", "b", "c"]) == {"b", "c"}
    store.delete_nodes(filters=equal("n", 2))
    store.delete_nodes([quoted])
    assert [n.node_id for n in store.get_nodes()] == ["b"]
    for filters in (None, MetadataFilters(filters=[])):
        with pytest.raises(ValueError, match="needs ids or filters"):
            store.delete_nodes(filters=filters)


@pytest.mark.parametrize("method", ["add", "query", "delete", "delete_nodes", "get_nodes"])
def test_unknown_arguments_are_not_passed_over(store: MilvusStore, method: str) -> None:
    first: Any = {"add": [], "query": VectorStoreQuery(), "delete": "a"}.get(method)
    with pytest.raises(ValueError, match=f"{method}: unknown arguments partition_name"):
        getattr(store, method)(first, partition_name="p")


# --- reading ------------------------------------------------------------------------------------


def test_a_search_finds_what_was_just_added(store: MilvusStore) -> None:
    for seed in range(5):
        store.add([node(str(seed), seed)])
        assert search(store, seed, k=1) == [str(seed)]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("COSINE", [1.0, 0.6]), ("ip", [10.0, 6.0]), ("L2", [-9.0, -13.0])],
)
def test_similarities_are_higher_for_nearer_nodes(
    uri: str, metric: str, expected: list[float]
) -> None:
    with MilvusStore(uri=uri, collection_name="n", dim=2, similarity_metric=metric) as store:
        near = TextNode(id_="near", text="", embedding=[5.0, 0.0])
        far = TextNode(id_="far", text="", embedding=[3.0, 4.0] if metric != "L2" else [4.0, 3.0])
        store.add([far, near])
        found = store.query(VectorStoreQuery([2.0, 0.0], similarity_top_k=2))
        assert found.ids == ["near", "far"]
        assert found.similarities == pytest.approx(expected)


def test_top_k(store: MilvusStore) -> None:
    store.add([node(str(i), i) for i in range(100)])
    assert search(store, k=0) == []
    assert len(search(store, k=90)) == 90  # more than ef
    for k in (-1, 16_385):
        with pytest.raises(ValueError, match=f"similarity_top_k={k}: must be between 0 and 16,384"):
            search(store, k=k)


def test_queries_that_cannot_be_asked(store: MilvusStore) -> None:
    with pytest.raises(ValueError, match="the query: has no embedding"):
        store.query(VectorStoreQuery())
    with pytest.raises(ValueError, match=r"the query: .*shape \(2,\)"):
        store.query(VectorStoreQuery([1.0, 2.0]))
    with pytest.raises(NotImplementedError, match="query mode 'hybrid'"):
        store.query(VectorStoreQuery(vector(0), mode=VectorStoreQueryMode.HYBRID))


def test_filters_ids_and_sources_narrow_a_search(store: MilvusStore) -> None:
    store.add([node("a", 1, source="d", n=1), node("b", 2, source="d", n=2), node("c", 3, n=2)])
    assert search(store, filters=equal("n", 2), node_ids=["a", "b"]) == ["b"]
    assert search(store, filters=MetadataFilters(filters=[]), node_ids=["a"]) == ["a"]
    assert set(search(store, doc_ids=["d"])) == {"a", "b"}
    assert set(search(store, node_ids=[], doc_ids=[])) == {"a", "b", "c"}
    assert search(store, doc_ids=["None"]) == []
    neither = MetadataFilters(
        filters=[MetadataFilter(key="n", value=1)], condition=FilterCondition.NOT
    )
    assert set(search(store, filters=neither)) == {"b", "c"}


@pytest.mark.parametrize("text", ['"', "\\", '\\"', '"] or id != "', "it's", "a\nb"])
def test_quotes_and_backslashes_are_only_characters(store: MilvusStore, text: str) -> None:
    store.add([node(text, 1, source=text, s=text), node("other", 2, source="d", s="x")])
    assert search(store, filters=equal("s", text)) == [text]
    assert search(store, node_ids=[text]) == search(store, doc_ids=[text]) == [text]
    store.delete(text)
    assert store.existing_ids([text, "other"]) == {"other"}


@pytest.mark.parametrize(
    "key", ["two words", "dotted.key", 'qu"ote', "and", "Müller", "a-b", "1", ""]
)
def test_metadata_keys_of_any_kind(store: MilvusStore, key: str) -> None:
    store.add([node("a", 1, **{key: "x"}), node("b", 2, **{key: "y"})])
    assert search(store, filters=equal(key, "x")) == ["a"]


def test_get_nodes(store: MilvusStore) -> None:
    store.add([node(i, n=ord(i), source=i) for i in "abcd"])

    def ids(*args: Any, **kwargs: Any) -> list[str]:
        return [read.node_id for read in store.get_nodes(*args, **kwargs)]

    assert ids([]) == []
    assert ids(["c", "x", "a", "c"]) == ["c", "a"]
    assert ids(["c", "a", "b"], MetadataFilters(filters=[])) == ["c", "a", "b"]
    assert ids(["c", "a"], equal("n", ord("a"))) == ["a"]
    assert ids(filters=equal("n", ord("b"))) == ["b"]
    assert sorted(ids()) == ["a", "b", "c", "d"]
    assert sorted(ids(ref_doc_ids=["a", "b"])) == ["a", "b"]


def test_existing_ids_and_vectors(store: MilvusStore) -> None:
    store.add([node(str(i), i) for i in range(20)])
    assert store.existing_ids(str(i) for i in range(18, 12_000)) == {"18", "19"}
    assert store.existing_ids([]) == set()
    vectors = store.get_vectors(["3", "4", "x"])
    assert set(vectors) == {"3", "4"}
    assert vectors["3"].dtype == np.float32
    assert vectors["3"] == pytest.approx(np.float32(vector(3)))


def test_unchanged_nodes(store: MilvusStore) -> None:
    one, two = node("a", 1, source="d", n=np.int64(1), tags={"x"}), node("b", 2)
    store.add([one, two])

    assert store.unchanged_ids([one, two, node("c")]) == {"a", "b"}
    assert store.unchanged_ids([node("a", 3, source="d", n=1, tags=["x"])]) == {"a"}
    for changed in (
        {"text": "another"},
        {"metadata": {"n": 2}},
        {"relationships": {}},
        {"excluded_embed_metadata_keys": ["n"]},
        {"text_template": "{content}"},
    ):
        assert store.unchanged_ids([one.model_copy(update=changed), two]) == {"b"}, changed


def test_rows_of_an_earlier_version_are_read_to_see_whether_they_changed(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([node("a", 1, n=1), node("b", 2), node("new", 3)])
    for name in ("a", "b"):
        row = store.client.query("nodes", filter=f'id == "{name}"', output_fields=["*"])[0]
        del row["gap_fingerprint"]
        store.client.insert("nodes", [row])
    read: list[Any] = []
    monkeypatch.setattr(
        MilvusStore,
        "_to_node",
        lambda store, row, read_row=MilvusStore._to_node: (
            read.append(row["id"]) or read_row(store, row)
        ),
    )

    assert store.unchanged_ids([node("a", n=1), node("b", n=2), node("new")]) == {"a", "new"}
    assert sorted(read) == ["a", "b"]


def test_rows_know_where_they_were_written_from(store: MilvusStore) -> None:
    nodes = [node("a", source="d"), node("b"), node("c")]
    labels = {"a": {SOURCE_KEY: 'a "corpus"', PLACE_KEY: "a.md"}, "b": {SOURCE_KEY: "other"}}
    store.add(nodes, labels=labels)

    assert store.rows_from('a "corpus"') == store.stored_rows(["a"])
    assert store.stored_rows(["a"])["a"].labels == labels["a"]
    assert store.rows_from("nobody") == {}
    assert set(store.rows_from(None)) == {"a", "b", "c"}
    assert store.rows_from(None)["a"].document == "d"

    before = store.get_nodes(["b"]), store.get_vectors(["b"])["b"].tolist()
    store.rename_source(["b", "no such"], "a new name")
    assert store.stored_rows(["b"])["b"].labels == {SOURCE_KEY: "a new name"}
    assert (store.get_nodes(["b"]), store.get_vectors(["b"])["b"].tolist()) == before
    assert store.count() == 3
    assert store.unchanged_ids(nodes) == {"a", "b", "c"}


def test_a_sample(store: MilvusStore) -> None:
    assert store.sample(10).shape == (0, DIM)
    store.add([node(f"node {i}", i) for i in range(2000)])
    everything = store.sample(5000)
    some, others = store.sample(300), store.sample(300, seed=1)

    assert everything.shape == (2000, DIM)
    assert 230 < len(some) < 370
    assert 230 < len(others) < 370
    assert some.dtype == np.float32
    assert np.linalg.norm(some, axis=1) == pytest.approx(np.ones(len(some)), abs=1e-5)
    assert {tuple(row) for row in some} < {tuple(row) for row in everything}
    assert {tuple(row) for row in some} != {tuple(row) for row in others}
    assert np.array_equal(store.sample(300), some)
    with pytest.raises(ValueError, match="at least 1"):
        store.sample(0)


def test_a_node_is_drawn_from_all_collections_or_none(uri: str, store: MilvusStore) -> None:
    store.add([node(f"node {i}", i) for i in range(1000)])
    with MilvusStore(uri=uri, collection_name="others", dim=DIM) as others:
        others.add([node(f"node {i}", i) for i in range(500, 1500)])
        ours, theirs = (set(each.sample_ids(0.3)) for each in (store, others))
        both = {f"node {i}" for i in range(500, 1000)}

        assert ours & both == theirs & both
        assert 230 < len(ours) < 370
        assert set(store.sample_ids(0.1)) < ours
        assert len(store.sample_ids(1.0)) == len(store.sample_ids(7.0)) == 1000
        assert set(store.sample_ids(0.3, seed=1)) != ours
    with pytest.raises(ValueError, match="share=0: must be above 0"):
        store.sample_ids(0)


def test_the_nodes_of_documents(store: MilvusStore) -> None:
    store.add(
        [
            node("a", 1, source="d", n=1),
            node("b", 2, source="d", n=2),
            node("alone", 3),
            node("other", 4, source="e"),
            node("e", 5, source="f"),  # its id is a key, but it belongs to another document
        ]
    )

    def found(*keys: str, filters: MetadataFilters | None = None) -> dict[str, list[float]]:
        pairs = store.nodes_of_documents(keys, filters)
        assert all(vector.dtype == np.float32 for _, vector in pairs)
        return {read.node_id: vector.tolist() for read, vector in pairs}

    assert found("d", "alone", "d", "unknown") == {
        name: np.float32(vector(seed)).tolist() for name, seed in (("a", 1), ("b", 2), ("alone", 3))
    }
    assert set(found("e")) == {"other"}
    assert set(found("d", "alone", filters=equal("n", 2))) == {"b"}
    assert found() == {}


def test_a_document_with_more_nodes_than_one_message_may_hold(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    call = Collection.call
    monkeypatch.setattr(
        Collection,
        "call",
        lambda self, method, **given: calls.append(method) or call(self, method, **given),
    )
    store.add([node(str(i), i, source="d") for i in range(1000)])

    calls.clear()
    assert len(store.nodes_of_documents(["d"])) == 1000
    assert len(calls) > 3
    store.delete_nodes([str(i) for i in range(300, 1000)])
    calls.clear()
    assert len(store.nodes_of_documents(["d"])) == 300
    assert calls == ["query"]


def test_the_documents_of_nodes(store: MilvusStore) -> None:
    store.add([node("a", source="d"), node("b")])

    assert store.documents_of(["b", "a", "x"]) == {"a": "d", "b": "b"}


def test_a_sample_of_rows_that_another_store_wrote(uri: str, store: MilvusStore) -> None:
    theirs = MilvusVectorStore(uri=uri, collection_name="nodes", use_async_client=False)
    theirs.add([node("a"), node("b")])
    assert store.sample(5).shape == (2, DIM)
    with pytest.raises(StoreError, match="have no 'gap_bucket'"):
        store.sample(1)
    theirs.client.close()


# --- beside LlamaIndex --------------------------------------------------------------------------


def test_llama_index_reads_what_we_write(uri: str, store: MilvusStore) -> None:
    store.add([node("a", 1, source="d", n=1), ImageNode(id_="b", text="c", embedding=vector(2))])
    theirs = MilvusVectorStore(
        uri=uri, collection_name="nodes", similarity_metric="COSINE", use_async_client=False
    )
    found = theirs.query(VectorStoreQuery(vector(1), similarity_top_k=2, filters=equal("n", 1)))
    [read] = found.nodes or []
    assert (read.node_id, read.ref_doc_id, read.metadata) == ("a", "d", {"n": 1})
    assert type(theirs.get_nodes(["b"])[0]) is ImageNode
    theirs.client.close()


def test_we_read_what_llama_index_writes(uri: str, store: MilvusStore) -> None:
    theirs = MilvusVectorStore(uri=uri, collection_name="nodes", use_async_client=False)
    theirs.add([node("a", 1, source="d", n=1), ImageNode(id_="b", text="c", embedding=vector(2))])
    assert search(store, 1, k=1, filters=equal("n", 1), doc_ids=["d"]) == ["a"]
    [image] = store.get_nodes(["b"])
    assert isinstance(image, CaptionedImageNode)
    assert image.text == "c"
    theirs.client.close()


def test_an_index_over_the_store(store: MilvusStore) -> None:
    index = VectorStoreIndex.from_vector_store(store, MockEmbedding(DIM))
    index.insert_nodes([node("a", source="d"), node("b", source="e")])
    assert {hit.node_id for hit in index.as_retriever(similarity_top_k=5).retrieve("x")} == {
        "a",
        "b",
    }
    index.delete_ref_doc("d")
    assert [hit.node_id for hit in asyncio.run(index.as_retriever().aretrieve("x"))] == ["b"]
