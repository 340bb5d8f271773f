"""Databases that are damaged, lost, shared, or left in the middle of work."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate import Gate
from index_nodes import as_base64, labelled, of_document
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import ImageNode, MetadataMode, Node, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from lossy_proxy import LossyProxy
from typer.testing import CliRunner

from llama_index_gap import (
    DualEncoderEmbedding,
    DualIndex,
    MilvusStore,
    MultiModalSearchTool,
    StoreError,
)
from llama_index_gap.cli.app import app
from llama_index_gap.files import write_at_once
from llama_index_gap.gap.align import OffsetAligner
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.gap.background import Background
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.dual_index import CALIBRATOR_PROPERTY
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.index.models import MODELS_PROPERTY
from llama_index_gap.store.connection import Connection
from llama_index_gap.store.rows import to_node
from llama_index_gap.threads import in_thread, stop_if_given_up

NODES = [
    TextNode(id_=str(number), text=f"text {number}", relationships=of_document(f"doc {number}"))
    for number in range(4)
]


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(model_name=tiny_clip)


@pytest.fixture(scope="module")
def built(clip: DualEncoderEmbedding, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of four texts."""
    path = tmp_path_factory.mktemp("built") / "gap.db"
    with DualIndex(str(path), embed_model=clip) as index:
        index.insert_nodes(NODES)
    return path


@pytest.fixture
def uri(built: Path, tmp_path: Path) -> str:
    """A copy of that index."""
    return str(shutil.copytree(built, tmp_path / "gap.db"))


def is_free(uri: str) -> bool:
    """Whether another process could open the database: Milvus Lite locks this file."""
    with Path(uri, "LOCK").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# --- the file is free again after any failure ----------------------------------------------------


def store_property(uri: str, name: str, value: str) -> None:
    with MilvusStore(uri=uri, collection_name="gap_text") as store:
        store.set_properties({name: value})


def another_dimension(uri: str, collection: str) -> None:
    MilvusStore(uri=uri, collection_name=collection, dim=5, overwrite=True).close()


def no_folder(**_: Any) -> None:
    raise OSError("no room on the disk")


GONE = json.dumps({"text": {"class_name": "DualEncoderEmbedding", "model_name": "/gone"}})
FAILURES: dict[str, Callable[[str, DualEncoderEmbedding], Any]] = {
    "a model that cannot be built": lambda uri, _: (
        store_property(uri, MODELS_PROPERTY, GONE),
        DualIndex(uri),
    ),
    "no model is named": lambda uri, _: (store_property(uri, MODELS_PROPERTY, "5"), DualIndex(uri)),
    "another model": lambda uri, clip: DualIndex(
        uri, embed_model=clip.model_copy(update={"max_text_tokens": 5})
    ),
    "the second collection's dimension": lambda uri, clip: (
        another_dimension(uri, "gap_image"),
        DualIndex(uri, embed_model=clip),
    ),
    "a model that embeds no images": lambda uri, clip: DualIndex(
        uri, embed_model=clip, image_query_embed_model=MockEmbedding(4)
    ),
    "a folder of images": lambda uri, clip: DualIndex(uri, embed_model=clip, image_root="/no/such"),
    "search settings": lambda uri, clip: DualIndex(uri, embed_model=clip, search_config=[1]),
    "a node, strictly": lambda uri, clip: DualIndex.from_documents(
        [TextNode(text="")], uri, embed_model=clip, strict=True
    ),
    "a damaged calibrator": lambda uri, _: (
        store_property(uri, CALIBRATOR_PROPERTY, "[]"),
        invoke("search", "a", "--min-probability", "0.5", "--db", uri),
    ),
    "the command line": lambda uri, _: (
        store_property(uri, MODELS_PROPERTY, GONE),
        invoke("measure", "--db", uri),
    ),
}


def invoke(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is not None
    raise result.exception


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_frees_the_file(uri: str, clip: DualEncoderEmbedding, failure: str) -> None:
    with pytest.raises(Exception, match=r".+") as caught:
        FAILURES[failure](uri, clip)
    assert not isinstance(caught.value, AssertionError)
    assert is_free(uri)


def test_a_disk_that_fails_frees_the_file(
    uri: str, clip: DualEncoderEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageStorage, "clear", lambda *_, **__: no_folder())

    with pytest.raises(OSError, match="no room"):
        DualIndex(uri, embed_model=clip, overwrite=True)
    assert is_free(uri)


def test_an_index_is_closed_to_the_last_store(
    uri: str, monkeypatch: pytest.MonkeyPatch, clip: DualEncoderEmbedding
) -> None:
    index = DualIndex(uri, embed_model=clip)
    monkeypatch.setattr(index._stores["text"]._milvusclient, "close", no_folder)

    with pytest.raises(OSError, match="no room"):
        index.close()
    assert is_free(uri)


def test_a_server_that_cannot_show_its_images_frees_the_file(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llama_index_gap.agents.mcp_server.make_server", lambda opened, **_: opened()
    )
    monkeypatch.setattr(DualIndex, "allow_images", lambda *_: no_folder())

    with pytest.raises(OSError, match="no room"):
        invoke("mcp", "--db", uri, "--image-root", str(tmp_path))
    assert is_free(uri)


# --- rows that hold no node ----------------------------------------------------------------------


TEXT = TextNode(id_="a", text="a text").to_dict()
IMAGE = ImageNode(id_="a", image_path="/a.png").to_dict()
DAMAGED: list[tuple[Any, Any]] = [
    ("no JSON", "TextNode"),
    ("[" * 30_000, "TextNode"),
    (5, "TextNode"),
    (None, None),
    ("null", ["a"]),
    (TEXT | {"embedding": {"a": 1}}, "TextNode"),
    (TEXT | {"metadata": [1]}, "os.system"),
    (TEXT | {"id_": "b"}, "TextNode"),
    ({}, "TextNode"),
    (TEXT, "IndexNode"),
    (TEXT | {"relationships": {"1": [{"node_id": "b"}]}}, "TextNode"),
    (TEXT | {"text_template": "{other}"}, "TextNode"),
    (TEXT | {"text_template": "{content:>999999999}"}, "TextNode"),
    (TEXT | {"text_template": "{content.__class__}"}, "TextNode"),
    (TEXT | {"metadata_template": "{0}"}, "TextNode"),
    (TEXT | {"metadata_template": "{"}, "TextNode"),
    (IMAGE | {"image_path": 5}, "ImageNode"),
    (IMAGE | {"text_embedding": "a"}, "ImageNode"),
    (Node(id_="a").model_dump() | {"text_resource": [1]}, "Node"),
]


@pytest.mark.parametrize(("content", "kind"), DAMAGED)
def test_a_row_without_a_node_is_named(content: Any, kind: Any) -> None:
    content = json.dumps(content) if isinstance(content, dict) else content

    with pytest.raises(StoreError, match=r"^row 'a' holds no LlamaIndex node"):
        to_node({"id": "a", "text": "a text", "_node_content": content, "_node_type": kind})


def test_a_template_that_cannot_be_read_again_is_not_written(
    uri: str, clip: DualEncoderEmbedding
) -> None:
    node = TextNode(
        id_="a", text="a text", metadata={"k": 1}, text_template="{content:>9} {metadata_str}"
    )

    with DualIndex(uri, embed_model=clip) as index:
        (skipped,) = index.insert_nodes([node]).skipped
        assert "its text_template may contain only {content} and {metadata_str}" in skipped.reason
        good = node.model_copy(update={"text_template": "{{{metadata_str}}} {content}"})
        assert index.insert_nodes([good]).text_rows == 1
        assert index.get_nodes(["a"])[0].get_content(MetadataMode.LLM) == "{k: 1} a text"


def test_a_damaged_row_is_named_by_what_reads_it_and_stops_nothing_else(
    uri: str, clip: DualEncoderEmbedding
) -> None:
    with DualIndex(uri, embed_model=clip) as index:
        store = index._stores["text"]
        row = store.client.query("gap_text", filter='id == "1"', output_fields=["*"])[0]
        row |= {"_node_content": "no JSON", "gap_fingerprint": 5}
        store.client.insert("gap_text", [row])

        for read in (
            lambda: index.search("text 1"),
            lambda: index.search("text 1", reranker=None, complete=True, top_k=1),
            lambda: index.get_nodes(["0", "1"]),
            store.get_nodes,
            lambda: store.nodes_of_documents(["doc 1"]),
            lambda: store.query(
                VectorStoreQuery(clip.get_query_embedding("a"), similarity_top_k=4)
            ),
        ):
            with pytest.raises(StoreError, match="row '1' holds no LlamaIndex node"):
                read()
        assert index.count()["text"] == 4
        assert store.sample(10).shape[0] == 4
        assert store.documents_of(["1"]) == {"1": "doc 1"}

        assert index.insert_nodes(NODES).text_rows == 1  # it is repaired
        assert len(index.search("text 1")) == 4
        store.client.insert("gap_text", [row])
        index.delete_ref_doc("doc 1")
        assert len(index.search("text 1")) == 3


def test_vectors_that_are_none_are_left_out_and_counted(
    uri: str, clip: DualEncoderEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    with DualIndex(uri, embed_model=clip) as index:
        client = index._stores["text"].client
        row = client.query("gap_text", filter='id == "1"', output_fields=["*"])[0]
        client.insert("gap_text", [row | {"embedding": [float("nan")] * len(row["embedding"])}])

        assert "1" not in [node.node_id for node in index.search("text 1").nodes]
        assert index._stores["text"].sample(9).shape[0] == 3
    assert "left out 1 hits whose vectors are zero, NaN or infinite" in caplog.text
    assert "1 of 4 sampled vectors have no direction" in caplog.text


# --- files that are lost -------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["schema.json", "manifest.json*", "*.parquet"])
@pytest.mark.parametrize("collection", ["gap_text", "gap_image"])
def test_lost_files_are_named(
    uri: str, clip: DualEncoderEmbedding, lost: str, collection: str
) -> None:
    """The collection must not count as missing or empty."""
    files = list(Path(uri, "collections", collection).rglob(lost))
    for file in files:
        file.unlink()
    if not files or (collection, lost) == ("gap_image", "manifest.json*"):
        return  # it was empty

    for model in (None, clip):
        with pytest.raises(StoreError, match=rf"'{collection}' in .* is damaged: .* missing; "):
            DualIndex(uri, embed_model=model)
    assert is_free(uri)
    with DualIndex(uri, embed_model=clip, overwrite=True) as index:
        assert index.insert_nodes(NODES).text_rows == 4


def test_a_collection_that_was_killed_while_it_was_made_is_made(
    tmp_path: Path, clip: DualEncoderEmbedding
) -> None:
    torso = tmp_path / "gap.db" / "collections" / "gap_text"
    (torso / "wal").mkdir(parents=True)
    (torso / "schema.json.tmp").touch()

    with DualIndex(str(tmp_path / "gap.db"), embed_model=clip) as index:
        assert index.count() == {"text": 0, "image": 0}


def test_rows_that_a_killed_process_was_flushing_are_there_once(tmp_path: Path) -> None:
    """Milvus Lite had written the rows, but had not yet deleted its log."""
    path, kept = tmp_path / "gap.db", tmp_path / "log"
    log = path / "collections" / "nodes" / "wal"
    with MilvusStore(uri=path, collection_name="nodes", dim=2) as store:
        store.add([node("a"), node("b")])
        shutil.copytree(log, kept)
    shutil.copytree(kept, log, dirs_exist_ok=True)

    with MilvusStore(uri=path, collection_name="nodes") as store:
        assert store.count() == 2
        assert sorted(store.query(QUERY).ids or []) == ["a", "b"]


@pytest.mark.parametrize("step", ["tidy", "_release"])
def test_a_deletion_that_was_killed_before_its_images_went_is_completed(
    uri: str,
    clip: DualEncoderEmbedding,
    noise_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """The first deletion had deleted the rows, so the second one finds none."""
    image = ImageNode(id_="i", image=as_base64(noise_files[0]), relationships=of_document("d"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with DualIndex(uri, embed_model=clip) as index:
        index.insert_nodes([image])
        kept = Path(str(getattr(index.get_nodes(["i"])[0], "image_path", None)))
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(ImageStorage, step, killed)
            index.delete_ref_doc("d")
        assert kept.exists()
        index.delete_ref_doc("d")
        assert not [file for file in kept.parent.rglob("*") if file.suffix == ".png"]


# --- files that are written whole ----------------------------------------------------------------


def test_a_file_is_written_at_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"before")
    link.symlink_to(file)

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            write_at_once(file, b"after")
    assert file.read_bytes() == b"before"
    write_at_once(link, b"after")
    assert link.is_symlink()
    assert file.read_bytes() == b"after"
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_calibrators_and_aligners_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrator, aligner = tmp_path / "calibrator.json", tmp_path / "aligner.safetensors"
    saves = [
        lambda: RelevanceCalibrator.fit(labelled()).save(calibrator),
        lambda: OffsetAligner.fit(np.eye(2), np.array([[0.6, 0.8], [0.8, 0.6]])).save(aligner),
    ]
    for save in saves:
        save()
    before = calibrator.read_bytes(), aligner.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: no_folder())

    for save in saves:
        with pytest.raises(OSError, match="no room"):
            save()
    assert before == (calibrator.read_bytes(), aligner.read_bytes())
    calibrator.write_bytes(before[0][:100])
    with pytest.raises(ValueError, match=r"calibrator\.json holds no calibrator"):
        RelevanceCalibrator.load(calibrator)


# --- two on one file -----------------------------------------------------------------------------


def test_a_second_index_on_a_file_sees_what_the_first_one_writes(
    uri: str, clip: DualEncoderEmbedding
) -> None:
    with DualIndex(uri, embed_model=clip) as first, DualIndex(uri, embed_model=clip) as second:

        def background(index: DualIndex) -> Background:
            of = index.collections()["text"].background
            assert of is not None
            found = of("text")
            assert found is not None
            return found

        def rows() -> list[int | None]:
            return [background(index).size for index in (first, second)]

        def drawn() -> VectorArray:
            return background(second).sample

        assert rows() == [4, 4]
        before = drawn()
        assert drawn() is before  # nothing is asked again
        first.insert_nodes([TextNode(id_="new", text="another text")])
        assert rows() == [5, 5]
        assert len(drawn()) == 5
        second.delete_ref_doc("doc 1")
        assert rows() == [4, 4]
        first._stores["text"].delete_nodes(["new"])
        assert rows() == [3, 3]
        second.clear()
        assert rows() == [0, 0]


# --- a server that is lost -----------------------------------------------------------------------


def node(node_id: str) -> TextNode:
    return TextNode(id_=node_id, text=node_id, embedding=[1.0, 0.0])


QUERY = VectorStoreQuery([1.0, 0.0], similarity_top_k=9)


@pytest.mark.parametrize("how", ["stopped", "gone"])
def test_a_lost_server_is_an_error_in_time_and_found_again(proxy: LossyProxy, how: str) -> None:
    with MilvusStore(uri=proxy.address, collection_name="nodes", dim=2, timeout=29) as store:
        store.add([node("a")])
        connection = store._collection.connection
        assert connection._timeout == 29
        connection._timeout = 0.5  # until the server is back: a slow machine needs longer
        (proxy.freeze if how == "stopped" else proxy.go)()
        started = time.monotonic()
        for call in (lambda: store.query(QUERY), store.count, lambda: store.add([node("b")])):
            with pytest.raises(StoreError, match=r"'nodes' in http.* is the server running"):
                call()
        assert time.monotonic() - started < 30  # it was three minutes

        (proxy.thaw if how == "stopped" else proxy.listen)()
        connection._timeout = 29
        assert store.query(QUERY).ids == ["a"]
        store.add([node("b")])
        assert store.count() == 2


def test_a_connection_that_broke_off_is_made_again(
    proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MilvusStore(uri=proxy.address, collection_name="nodes", dim=2, timeout=20) as store:
        for number, call in enumerate(
            (lambda: store.query(QUERY), lambda: store.add([node("a")]), store.count)
        ):
            proxy.hang_up()
            call()
            assert store._collection.connection.closed is False, number
        assert store.query(QUERY).ids == ["a"]


def test_a_server_is_told_properties_twice(
    proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus 2.3.5 forgets the last change when it is killed: ``benchmarks/faults.py --server``."""
    told: list[str] = []
    monkeypatch.setattr(
        Connection,
        "call",
        lambda *args, ask=Connection.call, **settings: (
            told.append(args[1]) or ask(*args, **settings)
        ),
    )
    with MilvusStore(uri=proxy.address, collection_name="nodes", dim=2) as store:
        for lite, times in ((True, 1), (False, 2)):
            store._collection.connection.lite = lite
            told.clear()
            store.set_properties({"models": "a"})
            assert told == ["alter_collection_properties"] * times
            assert store.properties() == {"models": "a"}


def test_a_time_out_is_more_than_0(uri: str) -> None:
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"timeout={timeout}: must be more than 0 seconds"):
            DualIndex("http://127.0.0.1:1", embed_model=None, timeout=timeout)
    result = CliRunner().invoke(app, ["info", "--db", uri], env={"MILVUS_TIMEOUT": "soon"})
    assert "MILVUS_TIMEOUT='soon'" in str(result.exception)


# --- tasks that are cancelled --------------------------------------------------------------------


MANY = [TextNode(id_=f"many {i}", text=f"text {i}", embedding=[1.0] * 16) for i in range(40)]
CANCELLED: dict[str, Callable[[DualIndex], Any]] = {
    "ainsert_nodes": lambda index: index.ainsert_nodes(MANY),
    "aupsert_nodes": lambda index: index.aupsert_nodes(MANY),
    "adelete_nodes": lambda index: index.adelete_nodes(["1", "2"]),
    "adelete_ref_doc": lambda index: index.adelete_ref_doc("doc 1"),
    "arefresh_ref_docs": lambda index: index.arefresh_ref_docs(NODES[:1]),
    "async_sync": lambda index: index.async_sync(MANY, source="s"),
    "aget_nodes": lambda index: index.aget_nodes(["1"]),
    "acount": lambda index: index.acount(),
    "asave_calibrator": lambda index: index.asave_calibrator(RelevanceCalibrator.fit(labelled())),
    "asearch": lambda index: index.asearch("a text"),
    "aretrieve": lambda index: index.as_retriever(complete=True).aretrieve("a text"),
    "aquery": lambda index: index.as_query_engine(MockLLM(), multimodal=False).aquery("a text"),
    "acall": lambda index: MultiModalSearchTool(index.as_retriever()).acall("a text"),
    "store.async_add": lambda index: index._stores["text"].async_add(MANY),
    "store.adelete": lambda index: index._stores["text"].adelete("doc 1"),
    "store.adelete_nodes": lambda index: index._stores["text"].adelete_nodes(["1"]),
    "store.aget_nodes": lambda index: index._stores["text"].aget_nodes(),
}


@pytest.fixture(scope="module")
def opened(
    built: Path, clip: DualEncoderEmbedding, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    copy = shutil.copytree(built, tmp_path_factory.mktemp("opened") / "gap.db")
    with DualIndex(str(copy), embed_model=clip) as index:
        for store in index._stores.values():
            store.batch_size = 10
        yield index


@pytest.mark.parametrize("call", CANCELLED)
def test_a_cancelled_call_asks_the_database_nothing_more(
    opened: DualIndex, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    gate = Gate()

    def gated(*args: Any, ask: Callable[..., Any] = Connection.call, **arguments: Any) -> Any:
        gate.pass_through()
        return ask(*args, **arguments)

    monkeypatch.setattr(Connection, "call", gated)
    work = CANCELLED[call](opened)
    asyncio.run(gate.cancel(work))  # ends once its threads have
    assert gate.passes == 1


def test_what_must_not_be_parted_is_done_to_its_end(
    uri: str, clip: DualEncoderEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To clear a collection, it is dropped and created again."""
    gate = Gate(at=2)
    with DualIndex(uri, embed_model=clip) as index:
        with monkeypatch.context() as patched:
            patched.setattr(
                Connection,
                "call",
                lambda *args, ask=Connection.call, **kwargs: (
                    gate.pass_through() or ask(*args, **kwargs)
                ),
            )
            asyncio.run(gate.cancel(index.aclear()))
        assert index.count() == {"text": 0, "image": 0}
        assert index.insert_nodes(NODES).text_rows == 4


def test_a_task_within_a_task_stops_with_it() -> None:
    gate, went_on = Gate(), []

    def inner() -> None:
        gate.pass_through()
        stop_if_given_up()
        went_on.append("inner")

    asyncio.run(gate.cancel(in_thread(lambda: asyncio.run(in_thread(inner)))))
    assert went_on == []
