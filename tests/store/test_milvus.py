from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from socket import socket
from typing import Any

import grpc
import numpy as np
import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from llama_index.vector_stores.milvus import MilvusVectorStore
from milvus_lite.server_manager import server_manager_instance
from PIL import Image
from pymilvus import MilvusClient

from llama_index_gap.images.opening import ImageError
from llama_index_gap.nodes import CaptionedImageNode
from llama_index_gap.store.collection import Collection
from llama_index_gap.store.connection import StoreError
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


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "index.db")


@pytest.fixture
def store(uri: str) -> Iterator[MilvusStore]:
    with MilvusStore(uri=uri, collection_name="nodes", dim=DIM) as opened:
        yield opened


# --- opening ------------------------------------------------------------------------------------


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
        ({"dim": 8}, "holds vectors of 4 dimensions, and dim=8"),
        ({"similarity_metric": "L2"}, "similarity_metric='COSINE', and 'L2'"),
        ({"index_config": {"index_type": "FLAT"}}, "type HNSW, and FLAT"),
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
        ({"similarity_metric": "dot"}, "'DOT': is none of COSINE, IP, L2"),
        ({"index_config": {"index_type": "HSNW"}}, "'HSNW': is none of AUTOINDEX, FLAT, HNSW"),
        ({"index_config": {"M": 8}}, "names no index_type"),
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


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no folder"):
        MilvusStore(uri=tmp_path / "none" / "index.db", collection_name="nodes", dim=DIM)


def test_a_file_that_another_process_holds(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    code = f"""
        from llama_index_gap.store.milvus import MilvusStore
        MilvusStore(uri={uri!r}, collection_name="nodes", dim=4)
        print("open", flush=True)
        input()
    """
    holder = python(code)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="is open in another process") as caught:
            MilvusStore(uri=uri, collection_name="nodes", dim=DIM)
        assert "\n" not in str(caught.value)
        assert not caplog.records
    finally:
        holder.communicate("\n", timeout=30)
    with MilvusStore(uri=uri, collection_name="nodes") as store:
        assert store.count() == 0


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_gap.store.connection._CONNECT_SECONDS", 1.0)
    with closing(socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(StoreError, match=r"http://127.*does not answer") as caught:
            MilvusStore(
                uri=f"http://127.0.0.1:{port}", collection_name="nodes", dim=DIM, token="me:secret"
            )
    assert time.monotonic() - start < 10
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_old_milvus_lite(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnimplementedError(grpc.RpcError, grpc.Call):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNIMPLEMENTED

    def get_server_version(*args: Any, **kwargs: Any) -> str:
        raise UnimplementedError

    with monkeypatch.context() as patched:
        patched.setattr(MilvusClient, "get_server_version", get_server_version)
        with pytest.raises(StoreError, match="too old"):
            MilvusStore(uri=uri, collection_name="nodes", dim=DIM)
    assert uri not in server_manager_instance._servers


def test_a_collection_of_something_else(uri: str, store: MilvusStore) -> None:
    store.client.create_collection("other", dimension=DIM)
    with pytest.raises(ValueError, match="has the columns id, vector"):
        MilvusStore(uri=uri, collection_name="other", dim=DIM)


# --- closing, copies, threads, loops ------------------------------------------------------------


def test_a_closed_store_says_so(store: MilvusStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="was closed; open a new"):
        store.count()


def test_closing_one_store_leaves_the_others_on_the_same_file(uri: str, store: MilvusStore) -> None:
    second = MilvusStore(uri=uri, collection_name="others", dim=2)
    second.close()
    store.add([node("a")])
    assert search(store) == ["a"]


def test_a_failed_opening_frees_the_file(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such collection"):
        MilvusStore(uri=uri, collection_name="nodes")
    opened = python(
        f"""
        from llama_index_gap.store.milvus import MilvusStore
        MilvusStore(uri={uri!r}, collection_name="nodes", dim=4).close()
        """
    )
    assert opened.communicate(timeout=60)[1] == ""
    assert opened.returncode == 0


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


def test_opening_one_file_from_eight_threads(uri: str) -> None:
    names = [f"nodes_{i % 4}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        stores = list(
            pool.map(lambda name: MilvusStore(uri=uri, collection_name=name, dim=DIM), names[:4])
        )
    for opened in stores:
        opened.add([node("a")])
        opened.close()


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


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_writer_that_is_killed_loses_nothing_acknowledged(uri: str) -> None:
    writer = python(
        f"""
        from llama_index.core.schema import TextNode
        from llama_index_gap.store.milvus import MilvusStore
        store = MilvusStore(uri={uri!r}, collection_name="nodes", dim=4)
        for batch in range(10_000):
            ids = [f"{{batch}}-{{i}}" for i in range(50)]
            store.add([TextNode(id_=i, text=i, embedding=[1, 2, 3, batch]) for i in ids])
            print(batch, flush=True)
        """
    )
    assert writer.stdout is not None
    for line in writer.stdout:
        if line == "20\n":
            break
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate(timeout=30)[0].split()
    last = int(rest[-1]) if rest else 20
    with MilvusStore(uri=uri, collection_name="nodes") as store:
        ids = {f"{batch}-{i}" for batch in range(last + 1) for i in range(50)}
        assert store.existing_ids(ids) == ids
        assert store.query(VectorStoreQuery([1, 2, 3, 20], similarity_top_k=1)).ids


# --- writing ------------------------------------------------------------------------------------


def test_a_node_comes_back_as_it_was(store: MilvusStore) -> None:
    original = TextNode(
        id_="a",
        text="A ship.",
        embedding=vector(0),
        metadata={"title": "Harbour", "year": 2024, "tags": ["x", "y"], "deep": {"k": [1, None]}},
        excluded_embed_metadata_keys=["year"],
        excluded_llm_metadata_keys=["title"],
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"z": 1}, hash="h"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="b"),
        },
        start_char_idx=3,
        end_char_idx=10,
    )
    before = original.model_copy(deep=True)
    assert store.add([original]) == ["a"]
    assert original == before

    [read] = store.get_nodes(["a"])
    found = store.query(VectorStoreQuery(vector(0), similarity_top_k=1))
    for result in (read, (found.nodes or [])[0]):
        assert type(result) is TextNode
        assert result == original.model_copy(update={"embedding": None})
        assert result.ref_doc_id == "doc"
    assert found.similarities == pytest.approx([1.0])


def test_an_image_node_comes_back_with_its_caption(store: MilvusStore, tmp_path: Path) -> None:
    path = tmp_path / "ship.png"
    Image.new("RGB", (4, 3)).save(path)
    original = ImageNode(
        id_="a",
        text="a white ship",
        image_path=str(path),
        image_mimetype="image/png",
        metadata={"title": "Harbour"},
        embedding=vector(0),
    )
    store.add([original])
    [read] = store.get_nodes(["a"])

    assert isinstance(read, CaptionedImageNode)
    assert read.to_dict() == {**original.to_dict(), "embedding": None}
    text, image = read.get_content_blocks()
    assert isinstance(text, TextBlock)
    assert text.text == "a white ship"
    assert isinstance(image, ImageBlock)
    assert image.path == path
    assert len(read.get_content_blocks(MetadataMode.LLM)) == 3
    again = metadata_dict_to_node(node_to_metadata_dict(read))
    assert again.to_dict() == read.to_dict()


def test_an_image_node_without_caption_and_one_by_url() -> None:
    assert CaptionedImageNode(id_="a").get_content_blocks() == []
    remote = CaptionedImageNode(id_="a", image_url="http://example.org/ship.png")
    [block] = remote.get_content_blocks()
    assert isinstance(block, ImageBlock)
    assert str(block.url) == "http://example.org/ship.png"
    with pytest.raises(ImageError, match="its URL is not fetched here"):
        remote.resolve_image()
    with pytest.raises(ImageError, match="no such file"):
        CaptionedImageNode(id_="a", image_path="gone.png").get_content_blocks()


@pytest.mark.parametrize("name", ["ship.jpeg", "ship.JPG", "ship"])
def test_an_image_says_what_it_is_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    """LlamaIndex knows ``.jpg`` alone, and a query engine then takes the image for a path."""
    Image.new("RGB", (4, 4)).save(tmp_path / name, format="JPEG")
    [block] = CaptionedImageNode(image_path=str(tmp_path / name)).get_content_blocks()

    assert isinstance(block, ImageBlock)
    assert block.inline_url().startswith("data:image/jpeg;base64,")
    (tmp_path / name).write_text("no image")
    with pytest.raises(ImageError, match=f"{name}.*not an image"):
        CaptionedImageNode(image_path=str(tmp_path / name)).get_content_blocks()


def test_base64_in_a_captioned_image_node() -> None:
    encoded = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"  # noqa: E501
    [block] = CaptionedImageNode(image=encoded).get_content_blocks()
    assert isinstance(block, ImageBlock)
    assert Image.open(block.resolve_image()).size == (1, 1)


def test_the_newer_node_class(store: MilvusStore) -> None:
    original = Node(
        id_="a",
        text_resource=MediaResource(text="hello", mimetype="text/markdown"),
        image_resource=MediaResource(path=Path("ship.png")),
        embedding=vector(0),
    )
    store.add([original, Node(id_="b", embedding=vector(1))])
    read, bare = store.get_nodes(["a", "b"])
    assert read == original.model_copy(update={"embedding": None})
    assert bare.get_content() == ""


def test_an_index_node(store: MilvusStore) -> None:
    store.add([IndexNode(id_="a", text="t", index_id="i", embedding=vector(0))])
    [read] = store.get_nodes(["a"])
    assert isinstance(read, IndexNode)
    assert (read.text, read.index_id) == ("t", "i")


def test_numpy_dates_and_other_metadata(store: MilvusStore) -> None:
    metadata = {
        "float": np.float32(1.5),
        "int": np.int64(7),
        "array": np.arange(3),
        "day": date(2024, 5, 1),
        "time": datetime(2024, 5, 1, 12, 30),
        "day64": np.datetime64("2024-05-01"),
        "price": Decimal("1.50"),
        "path": Path("a/b"),
        "set": {"x"},
        "nan": float("nan"),
    }
    original = node("a", **metadata)
    original.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(
        node_id="d", metadata={"float": np.float32(2)}
    )
    store.add([original])
    assert original.metadata == metadata

    [read] = store.get_nodes(filters=equal("int", 7))
    assert read.metadata == {
        "float": 1.5,
        "int": 7,
        "array": [0, 1, 2],
        "day": "2024-05-01",
        "time": "2024-05-01T12:30:00",
        "day64": "2024-05-01",
        "price": "1.50",
        "path": "a/b",
        "set": ["x"],
        "nan": None,
    }
    assert store.get_nodes(filters=equal("day", "2024-05-01")) == [read]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("bad").model_copy(update={"embedding": None}), "has no embedding"),
        (node("bad").model_copy(update={"embedding": [1, 2]}), r"shape \(2,\).* of 4 dimensions"),
        (node("bad").model_copy(update={"embedding": [1, 2, 3, np.nan]}), "NaN or infinity"),
        (node("bad").model_copy(update={"embedding": [1, 2, 3, 1e39]}), "NaN or infinity"),
        (node("bad").model_copy(update={"embedding": [0] * DIM}), "is zero"),
        (node("bad").model_copy(update={"text": "é" * 32_768}), r"its text: 65,536 bytes"),
        (node("bad").model_copy(update={"text": "\ud800"}), "no valid Unicode"),
        (node("bad", long="x" * 40_000), "its metadata and relationships: 80,"),
        (node("bad" * 30_000), "its id: 90,000 bytes"),
        (node("bad", source="d" * 70_000), "its doc_id: 70,000 bytes"),
        (node("bad", big=[{"n": 2**63}]), "more than 64 bits"),
        (node("bad", thing=object()), "is not JSON"),
        (node("bad", text="x"), "key 'text' is a field of the collection's own"),
        (node("bad", doc_id="x"), "key 'doc_id' is a field"),
        (node("bad", gap_bucket=1), "key 'gap_bucket' is a field"),
        (node("bad", gap_fingerprint="x"), "key 'gap_fingerprint' is a field"),
        (ImageNode(id_="bad", image="aGVsbG8=", embedding=vector(0)), "pixels are never stored"),
        (
            Node(id_="bad", image_resource=MediaResource(data=b"aGVsbG8="), embedding=vector(0)),
            "pixels are never stored",
        ),
    ],
)
def test_a_node_that_cannot_be_stored_is_named_and_nothing_is_written(
    store: MilvusStore, bad: BaseNode, message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s)^node 'bad.*{message}"):
        store.add([node("good"), bad])
    assert store.count() == 0


def test_an_empty_id(store: MilvusStore) -> None:
    with pytest.raises(ValueError, match="has an empty id"):
        store.add([node("")])


def test_the_longest_text_and_metadata_fit(store: MilvusStore) -> None:
    store.add([node("a").model_copy(update={"text": "x" * 65_535}), node("b", long="x" * 32_000)])
    first, second = store.get_nodes(["a", "b"])
    assert (len(first.get_content()), len(second.metadata["long"])) == (65_535, 32_000)


def test_metadata_that_repeats_the_source_is_no_clash(store: MilvusStore) -> None:
    store.add([node("a", source="d", doc_id="d", document_id="d")])
    assert store.get_nodes(ref_doc_ids=["d"])[0].metadata == {"doc_id": "d", "document_id": "d"}


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
        with pytest.raises(ValueError, match="without ids or filters"):
            store.delete_nodes(filters=filters)


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
    monkeypatch.setattr(MilvusStore, "_read_nodes", recording(MilvusStore._read_nodes, read))

    assert store.unchanged_ids([node("a", n=1), node("b", n=2), node("new")]) == {"a", "new"}
    assert read == [["a", "b"]]


def recording(method: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The method, whose first argument is noted."""

    def recorded(self: Any, first: Any) -> Any:
        calls.append(sorted(first))
        return method(self, first)

    return recorded


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


# --- properties ---------------------------------------------------------------------------------


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
    """A server takes one of 1 MB, and can then neither alter nor drop the collection."""
    store.set_properties({"long": "ä" * 65_536})
    with pytest.raises(ValueError, match="property 'long': 131,073 bytes, more than"):
        store.set_properties({"long": "ä" * 65_536 + "a"})


@pytest.mark.parametrize("properties", [{"dim": 4}, {"": "x"}, {1: "x"}])
def test_properties_are_text(store: MilvusStore, properties: Any) -> None:
    with pytest.raises(ValueError, match="must be text"):
        store.set_properties(properties)


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
