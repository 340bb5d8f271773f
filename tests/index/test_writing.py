from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import CountingEmbedding
from demo_corpus import write_demo_corpus
from gate import Gate
from index_nodes import finished
from llama_index.core import SimpleDirectoryReader
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, read_corpus
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.writing import IndexReport, as_nodes
from llama_index_gap.readers.image_files import ImageFileReader


def test_a_second_run_embeds_only_what_is_new_or_changed(
    tiny_clip: Path, tmp_path: Path, nodes: list[TextNode], noise_files: list[str]
) -> None:
    model = CountingEmbedding(model_name=tiny_clip)
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        index.insert_nodes(nodes)
        model.embedded.clear()

        assert index.insert_nodes(nodes) == IndexReport(unchanged=4)
        assert model.embedded == []

        changed = nodes[0].model_copy(update={"text": "a blue bicycle"})
        new = ImageNode(id_="c", image_path=noise_files[2])
        assert index.insert_nodes([changed, *nodes[1:], new]).unchanged == 3
        assert model.embedded == ["a blue bicycle", noise_files[2]]
        assert index.get_nodes(["a1"])[0].get_content() == "a blue bicycle"


def test_a_cancelled_insert_stops_at_the_next_batch(tmp_path: Path) -> None:
    """For any model, even a LlamaIndex model that cannot be cancelled."""
    gate = Gate(at=9)  # the first pass of the third batch

    class Gated(MockMultiModalEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            gate.pass_through()
            return [[1.0] * self.embed_dim for _ in texts]

    model = Gated(embed_dim=4, embed_batch_size=10)
    many = [TextNode(id_=str(number), text=f"text {number}") for number in range(2_000)]

    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        asyncio.run(gate.cancel(index.ainsert_nodes(many)))  # ends when its threads end
        written = index.count()["text"]
        assert 0 < written <= 120
        assert index.insert_nodes(many) == IndexReport(text_rows=2_000 - written, unchanged=written)


def test_metadata_that_is_no_json_does_not_look_changed(index: DualIndex) -> None:
    metadata = {"when": datetime(2024, 5, 1), "where": Path("a"), "n": np.float32(0.5), "x": (1, 2)}
    node = TextNode(id_="a", text="a text", metadata=metadata)

    assert index.insert_nodes([node]).text_rows == 1
    assert index.insert_nodes([node]).unchanged == 1
    assert index.insert_nodes([node.model_copy(update={"metadata": {"n": 1}})]).text_rows == 1


def test_the_same_id_twice_leaves_one_row_in_each_collection(
    index: DualIndex, nodes: list[TextNode]
) -> None:
    index.insert_nodes(nodes)
    other = ImageNode(id_="a2", text="another", image_path=nodes[2].image_path, metadata={"x": 1})

    index.upsert_nodes([other])

    assert index.count() == {"text": 2, "image": 2}
    (found,) = index.get_nodes(["a2"])
    assert (found.get_content(), found.metadata, found.ref_doc_id) == ("another", {"x": 1}, None)


def test_an_upsert_that_takes_a_modality_away_deletes_its_row(
    index: DualIndex, nodes: list[TextNode]
) -> None:
    index.insert_nodes(nodes)

    index.upsert_nodes([nodes[1].model_copy(update={"text": ""})])
    assert index.count() == {"text": 1, "image": 2}
    index.upsert_nodes([TextNode(id_="a2", text="only a text now")])
    assert index.count() == {"text": 2, "image": 1}


def test_one_id_twice_in_a_call(index: DualIndex) -> None:
    report = index.insert_nodes([TextNode(id_="a", text="one"), TextNode(id_="a", text="two")])

    assert index.get_nodes(["a"])[0].get_content() == "two"
    assert [skip.reason for skip in report.skipped] == [
        "a later node has the same id and replaces it"
    ]


def test_documents_and_nodes_of_every_class(
    clip: DualEncoderEmbedding, tmp_path: Path, noise_files: list[str]
) -> None:
    image = Path(noise_files[0])
    documents = [
        Document(text="word " * 1000, id_="long"),
        ImageDocument(image_path=str(image), id_="image"),
        Node(
            id_="new",
            text_resource=MediaResource(text="a caption"),
            image_resource=MediaResource(path=image),
        ),
        Node(id_="plain", text_resource=MediaResource(text="a text")),
        TextNode(id_="text", text="a text"),
    ]
    with DualIndex.from_documents(
        documents, uri=str(tmp_path / "gap.db"), embed_model=clip
    ) as index:
        ids = [*(f"long#text-{i}" for i in range(3)), "image#image", "new", "plain", "text"]
        found = index.get_nodes(ids)

        assert [node.node_id for node in found] == ids
        # The model reads 77 tokens, so the three passages are split further.
        assert index.report.cut_texts == 3
        assert index.count() == {"text": 3 + index.report.cut_into, "image": 2}
        assert [node.ref_doc_id for node in found[:4]] == ["long", "long", "long", "image"]
        before = index.count()
        assert index.insert_nodes(found).unchanged == 8
        assert index.count() == before  # inserting a read first part again keeps the others


def test_a_corpus_with_a_broken_image(clip: DualEncoderEmbedding, tmp_path: Path) -> None:
    corpus = read_corpus(write_demo_corpus(tmp_path / "corpus"))

    with DualIndex.from_documents(corpus, uri=str(tmp_path / "gap.db"), embed_model=clip) as index:
        assert index.count() == {"text": 12 + 11, "image": 11}
        assert (index.report.text_rows, index.report.image_rows) == (23, 11)
        assert [skip.source for skip in index.report.skipped] == [
            "docs.jsonl:12, image images/budget.png"
        ]


def test_what_cannot_go_in_is_skipped_and_the_rest_goes_on(
    index: DualIndex, nodes: list[TextNode], noise_files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(Path(noise_files[0]).read_bytes()[:70])
    bad = [
        ImageNode(id_="gone", image_path="/no/such.png"),
        ImageNode(id_="broken", image_path=str(tmp_path / "broken.png"), text="its caption"),
        TextNode(id_="empty", text=" "),
        ImageNode(id_="bare"),
        ImageNode(id_="no base64", image="@@@"),
        ImageNode(id_="url", image_url="https://example.com/a.png"),
    ]
    report = index.insert_nodes([*bad, *nodes])

    reasons = {skip.source.removeprefix("node "): skip.reason for skip in report.skipped}
    assert set(reasons) == {"gone", "broken", "empty", "bare", "no base64", "url"}
    assert "no such file" in reasons["gone"]
    assert "truncated or damaged" in reasons["broken"]
    assert reasons["empty"] == reasons["bare"] == "has neither a text nor an image"
    assert "unless allow_urls=True" in reasons["url"]
    assert index.count() == {"text": 3, "image": 2}  # the broken image's caption is found
    assert "6 skipped" in report.summary()


SEEN = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(256)) * 40


def test_a_file_s_bytes_are_no_text(index: DualIndex) -> None:
    """LlamaIndex's reader decodes bytes of unknown files as text."""
    decoded = SEEN.decode(errors="ignore")
    documents = [
        Document(id_="a.jpg", text=decoded),
        Document(id_="b.jpg", text=SEEN.decode("latin-1").replace("\0", "")),
        Document(id_="c.jpg", text=SEEN.decode(errors="replace")),
        Document(id_="d.txt", text="A red boat.\n\tOn\fa lake, with \x1b[1mcolours\x1b[0m."),
    ]
    nodes = list(as_nodes(documents, None))

    report = index.insert_nodes(nodes)

    assert report.text_rows == 1
    assert len(report.skipped) == len(nodes) - 1
    reasons = {skip.reason for skip in report.skipped}
    assert any("holds a NUL character: it is binary data" in reason for reason in reasons)
    assert any("it is binary data, such as an image file" in reason for reason in reasons)
    with pytest.raises(ValueError, match=r"NUL.*strict=True"):
        index.insert_nodes(nodes, strict=True)


def test_a_nul_in_one_passage_costs_that_one(index: DualIndex) -> None:
    document = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d")}
    report = index.insert_nodes(
        [
            TextNode(id_="1", text="A page of a report, as a PDF has it.", relationships=document),
            TextNode(id_="2", text="Another page, with a \0.", relationships=document),
        ]
    )

    assert report.text_rows == 1
    assert [skip.source for skip in report.skipped] == ["node 2"]


def test_llama_index_s_reader_of_folders(index: DualIndex, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.jpg")
    (tmp_path / "b.txt").write_text("A red boat.")
    (tmp_path / "broken.png").write_text("no image")
    reader = SimpleDirectoryReader(
        tmp_path, filename_as_id=True, file_extractor=ImageFileReader.by_suffix()
    )

    first = index.insert_nodes(as_nodes(reader.load_data(), None))
    again = index.insert_nodes(as_nodes(reader.load_data(), None))

    assert (first.text_rows, first.image_rows, first.skipped) == (1, 1, [])
    assert (again.text_rows, again.image_rows, again.unchanged) == (0, 0, 2)


def test_a_filter_compares_the_numbers_of_a_table(index: DualIndex, tmp_path: Path) -> None:
    rows = "id,text,year,price\na,one,1999,$5.00\nb,two,2005,$12.50\nc,three,2010,$7.00\n"
    (tmp_path / "a.csv").write_text(rows)
    index.insert_nodes(read_corpus(tmp_path / "a.csv").nodes)

    def found(key: str, value: float) -> set[str]:
        at_least = MetadataFilter(key=key, value=value, operator=FilterOperator.GTE)
        hits = index.search("one", top_k=5, filters=MetadataFilters(filters=[at_least]))
        return {document.key for document in hits}

    assert found("year", 2005) == {"b", "c"}
    assert found("price", 7.5) == {"b"}


@pytest.mark.parametrize("depth", [300, 3_000])
def test_metadata_nested_too_deep_skips_its_node_only(index: DualIndex, depth: int) -> None:
    """At 300 levels it can be embedded but not stored; at 3,000 it cannot even be written out."""
    deep: dict[str, Any] = {}
    for _ in range(depth):
        deep = {"k": deep}
    bad = TextNode(id_="bad", text="a text", metadata={"deep": deep})

    for _ in range(2):
        report = index.insert_nodes([TextNode(id_="a", text="a text"), bad])
        (skipped,) = report.skipped
        assert skipped.source == "node bad"
        assert re.search("nested too deep|is not JSON", skipped.reason)
        assert index.count()["text"] == 1


def test_strict_stops_at_the_first(index: DualIndex, nodes: list[TextNode]) -> None:
    with pytest.raises(ValueError, match=r"node x: .*no such file .*strict=True"):
        index.insert_nodes([*nodes, ImageNode(id_="x", image_path="/no.png")], strict=True)


BUILD = """
import sys
from llama_index.core.schema import TextNode
from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.index.dual_index import DualIndex

class Killed(DualEncoderEmbedding):
    # At its 20th batch it says so, and waits to be killed.

    def _get_text_embeddings(self, texts):
        self.__dict__["batch"] = self.__dict__.get("batch", 0) + 1
        if self.__dict__["batch"] == 20:
            print("20 batches", flush=True)
            sys.stdin.read()
        return super()._get_text_embeddings(texts)


kind = Killed if "killed" in sys.argv else DualEncoderEmbedding
model = kind(model_name=sys.argv[2], embed_batch_size=4)
index = DualIndex(sys.argv[1], embed_model=model)
nodes = [TextNode(id_=str(i), text=f"text number {i}") for i in range(400)]
print(index.insert_nodes(nodes).summary(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_build_run_again_is_complete(tiny_clip: Path, tmp_path: Path) -> None:
    uri = tmp_path / "gap.db"
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(uri), str(tiny_clip)]
    with subprocess.Popen(
        [*command, "killed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "20 batches\n"
        os.kill(build.pid, signal.SIGKILL)

    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with DualIndex(str(uri)) as index:
        assert index.count() == {"text": 400, "image": 0}
        texts = index.get_nodes([str(i) for i in range(400)])
        assert [node.get_content() for node in texts] == [f"text number {i}" for i in range(400)]
        hits = index.as_retriever(similarity_top_k=3, normalize="none", combine="max").retrieve(
            "text number 7"
        )
        assert hits[0].node_id == "7"
    unchanged = int(again.split(" unchanged")[0].split()[-1])
    assert 0 < unchanged < 400  # it was killed before the end


def test_only_what_was_written_is_flushed(
    clip: DualEncoderEmbedding,
    tmp_path: Path,
    nodes: list[TextNode],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = str(tmp_path / "gap.db")
    flushed = finished(monkeypatch)
    with DualIndex(uri, embed_model=clip) as index:
        index.insert_nodes(nodes)
        assert flushed == ["gap_text", "gap_image"]
        index.insert_nodes(nodes)
        index.insert_nodes([TextNode(id_="new", text="a text")])
        assert flushed == ["gap_text", "gap_image", "gap_text"]
    with DualIndex(uri) as again:
        again.insert_nodes(nodes)
        assert len(flushed) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_a_killed_build_left_unflushed_is_flushed(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had written all rows, so the second run writes none."""
    uri = tmp_path / "gap.db"
    kill = "import os; from llama_index_gap.store.milvus import MilvusStore\n"
    kill += "MilvusStore.finish = lambda store: os.kill(os.getpid(), 9)\n"
    command = [sys.executable, "-c", kill + BUILD, str(uri), str(tiny_clip)]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=False).returncode == -9
    assert not list(uri.rglob("*.parquet"))
    flushed = finished(monkeypatch)

    with DualIndex(str(uri)) as index:
        nodes = [TextNode(id_=str(i), text=f"text number {i}") for i in range(400)]
        assert index.insert_nodes(nodes) == IndexReport(unchanged=400)
        assert flushed == ["gap_text"]
        assert list(uri.rglob("*.hnsw.idx"))
