from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from index_nodes import as_base64, labelled, of_document
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    QueryBundle,
    TextNode,
)

from llama_index_gap import DualEncoderEmbedding, read_corpus
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.writing import IndexReport
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.store.collection import Collection

# --- writing and reading ------------------------------------------------------------------------


def test_each_collection_holds_what_is_its_own(index: DualIndex, nodes: list[TextNode]) -> None:
    report = index.insert_nodes(nodes)

    assert report == IndexReport(text_rows=2, image_rows=2)
    assert index.count() == {"text": 2, "image": 2}
    found = index.get_nodes(["b1", "a1", "nothing", "a2"])
    assert [node.node_id for node in found] == ["b1", "a1", "a2"]
    assert isinstance(found[2], ImageNode)
    assert (found[2].text, found[2].image_path) == ("a caption", nodes[1].image_path)
    assert [node.ref_doc_id for node in found] == ["b", "a", "a"]


def test_inputs_stay_as_they_are(
    index: DualIndex, nodes: list[TextNode], noise_files: list[str]
) -> None:
    nodes.append(ImageNode(id_="c", image=as_base64(noise_files[2])))
    before = [node.model_dump() for node in nodes]

    index.insert_nodes(nodes)

    assert [node.model_dump() for node in nodes] == before


def test_deleting(index: DualIndex, nodes: list[TextNode]) -> None:
    index.insert_nodes(nodes)

    index.delete_nodes(["a2", "nothing"])
    assert index.count() == {"text": 1, "image": 1}
    index.delete_ref_doc("b")
    assert index.count() == {"text": 1, "image": 0}
    index.delete_ref_doc("nothing")
    index.delete_nodes([])
    assert index.count() == {"text": 1, "image": 0}


def test_refreshing_documents(index: DualIndex, nodes: list[TextNode]) -> None:
    index.insert_nodes(nodes)

    report = index.refresh_ref_docs(
        [nodes[0], TextNode(id_="a3", text="new", relationships=of_document("a"))]
    )

    assert (report.text_rows, report.unchanged) == (1, 1)
    assert [node.node_id for node in index.get_nodes(["a1", "a2", "a3", "b1"])] == [
        "a1",
        "a3",
        "b1",
    ]


def test_one_document_is_inserted_as_by_insert_nodes(index: DualIndex) -> None:
    document = Document(id_="letter", text="A sentence of a letter. " * 300)

    report = index.insert(document)

    assert report.text_rows > 1
    assert {node.ref_doc_id for node in index._stores["text"].get_nodes()} == {"letter"}
    again = asyncio.run(index.ainsert(document))
    assert (again, again.unchanged) == (index.insert_nodes([document]), report.text_rows)
    assert index.insert(TextNode(id_="note", text="a note")) == IndexReport(text_rows=1)


def test_clear_then_insert(index: DualIndex, nodes: list[TextNode]) -> None:
    index.insert_nodes(nodes)

    index.clear()
    assert index.count() == {"text": 0, "image": 0}
    assert index.as_retriever().retrieve("anything") == []
    index.insert_nodes(nodes)
    assert index.count() == {"text": 2, "image": 2}


def test_async_forms_in_two_event_loops(index: DualIndex, nodes: list[TextNode]) -> None:
    async def first() -> None:
        assert (await index.ainsert_nodes(nodes)).text_rows == 2
        assert (await index.aupsert_nodes(nodes)).unchanged == 4
        assert len(await index.aget_nodes(["a1", "a2"])) == 2

    async def second() -> dict[Any, int]:
        await index.adelete_nodes(["a1"])
        await index.adelete_ref_doc("b")
        await index.arefresh_ref_docs([nodes[1]])
        return await index.acount()

    asyncio.run(first())
    assert asyncio.run(second()) == {"text": 1, "image": 1}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, index.aclear()).result()
    assert index.count() == {"text": 0, "image": 0}


# --- opening again ------------------------------------------------------------------------------


def test_a_wrong_setting_is_not_taken_for_a_missing_collection(
    clip: DualEncoderEmbedding, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="index_type 'HSNW': must be one of"):
        DualIndex(str(tmp_path / "gap.db"), embed_model=clip, index_config={"index_type": "HSNW"})


def test_each_collection_is_opened_and_described_once(
    clip: DualEncoderEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "gap.db")
    DualIndex(uri, embed_model=clip).close()
    described: list[str] = []
    call = Collection.call

    def counted(self: Collection, method: str, **arguments: Any) -> Any:
        if method == "describe_collection":
            described.append(self.name)
        return call(self, method, **arguments)

    monkeypatch.setattr(Collection, "call", counted)
    DualIndex(uri).close()
    assert described == ["gap_text", "gap_image"]


def test_overwriting_by_uri_alone_keeps_the_models(
    clip: DualEncoderEmbedding, tmp_path: Path, nodes: list[TextNode]
) -> None:
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=clip) as index:
        index.insert_nodes(nodes)
        models = index.models()
    with DualIndex(uri, overwrite=True) as again:
        assert (again.count(), again.models()) == ({"text": 0, "image": 0}, models)


# --- its calibrator -----------------------------------------------------------------------------


def test_a_calibrator_stays_with_the_index(
    clip: DualEncoderEmbedding, tmp_path: Path, nodes: list[TextNode]
) -> None:
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=clip) as index:
        assert index.calibrator() is None
        first = RelevanceCalibrator.fit(labelled(), "logistic", source=index.models())
        index.save_calibrator(first)
        calibrator = RelevanceCalibrator.fit(labelled(), source=index.models())
        asyncio.run(index.asave_calibrator(calibrator))
        assert index.calibrator() == calibrator

    with DualIndex(uri) as again:
        assert again.calibrator() == calibrator
        again.insert_nodes(nodes)
        (hit, *_) = again.as_retriever(min_probability=0).retrieve("a bicycle")
        assert 0 < hit.scores["text_probability"] < 1


def test_a_calibrator_for_other_models_is_refused(index: DualIndex, tiny_clip: Path) -> None:
    assert index.models() == f"DualEncoderEmbedding({str(tiny_clip.resolve())!r})"

    for source in ("DualEncoderEmbedding('another')", ""):
        with pytest.raises(ValueError, match=r"these scores are of DualEncoderEmbedding\('/"):
            index.save_calibrator(RelevanceCalibrator.fit(labelled(), source=source))
    assert index.calibrator() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "my index"}, "name='my index': Milvus allows letters"),
        ({"embed_model": MockEmbedding(embed_dim=4)}, "unknown embeds no images"),
        (
            {"image_embed_model": MockEmbedding(embed_dim=4)},
            "image_embed_model without embed_model",
        ),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        DualIndex(str(tmp_path / "gap.db"), **settings)


def test_several_indexes_in_one_database(
    clip: DualEncoderEmbedding, tmp_path: Path, nodes: list[TextNode]
) -> None:
    uri = str(tmp_path / "gap.db")
    with (
        DualIndex(uri, "one", embed_model=clip) as one,
        DualIndex(uri, "two", embed_model=clip) as two,
    ):
        one.insert_nodes(nodes)
        assert two.count() == {"text": 0, "image": 0}


def test_threads_may_write_and_search_at_once(index: DualIndex) -> None:
    def write(part: int) -> None:
        index.insert_nodes(
            [TextNode(id_=f"{part}-{i}", text=f"text {part} {i}") for i in range(20)]
        )

    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(write, part) for part in range(4)]
        searches = [pool.submit(index.as_retriever().retrieve, "text") for _ in range(8)]
        for future in [*writes, *searches]:
            future.result()

    assert index.count()["text"] == 80
    assert len(index.as_retriever(similarity_top_k=50).retrieve("text")) == 50


# --- a real corpus ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blog(gap_shared: Path) -> Corpus:
    """The blog's documents; each passage is cut to what the tiny model can read."""
    read = read_corpus(gap_shared / "data" / "18f_blog")
    return replace(read, nodes=[beginning(node) for node in read.nodes])


def beginning(node: BaseNode) -> BaseNode:
    without_title = {"excluded_embed_metadata_keys": list(node.metadata)}
    return node.model_copy(update={"text": node.get_content()[:70], **without_title})


@pytest.fixture(scope="module")
def blog_index(
    blog: Corpus, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    uri = str(tmp_path_factory.mktemp("blog") / "gap.db")
    model = DualEncoderEmbedding(model_name=tiny_clip, dtype="float32")
    with DualIndex.from_documents(blog, uri=uri, embed_model=model) as index:
        yield index


def test_the_whole_blog_is_indexed_once(blog: Corpus, blog_index: DualIndex) -> None:
    captions = sum(bool(node.text) for node in blog.image_nodes)

    assert blog_index.count() == {"text": len(blog.text_nodes) + captions, "image": 390}
    again = blog_index.insert_nodes(blog.nodes)
    assert (again.text_rows, again.image_rows, again.skipped) == (0, 0, [])


def test_the_blog_is_searched_in_every_way(blog: Corpus, blog_index: DualIndex) -> None:
    retriever = blog_index.as_retriever(top_k=5)
    image = str(blog.image_nodes[0].image_path)
    for query in (
        QueryBundle("open source government"),
        QueryBundle("", image_path=image),
        QueryBundle("open source government", image_path=image),
    ):
        sync = [(hit.node_id, hit.score) for hit in retriever.retrieve(query)]
        assert len({hit.node.ref_doc_id for hit in retriever.retrieve(query)}) == 5
        for _ in range(2):  # two event loops
            hits = asyncio.run(retriever.aretrieve(query))
            assert [(hit.node_id, hit.score) for hit in hits] == sync


def test_each_image_of_the_blog_finds_itself(blog: Corpus, blog_index: DualIndex) -> None:
    retriever = blog_index.as_retriever(
        similarity_top_k=0, image_similarity_top_k=1, normalize="none", combine="max"
    )
    contents = {str(n.image_path): Path(str(n.image_path)).read_bytes() for n in blog.image_nodes}
    for path in dict.fromkeys(contents):
        (hit,) = retriever.retrieve(QueryBundle("", image_path=path))
        if hit.node.image_path != path:  # a tie: files with the same vector
            assert hit.scores["image_by_image"] == pytest.approx(1, abs=1e-5)
        assert hit.score == pytest.approx(1, abs=2e-5)  # no hub correction of its own vector


def test_another_process_opens_it_by_its_path(
    blog: Corpus, tiny_clip: Path, tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    model = DualEncoderEmbedding(model_name=tiny_clip)
    with DualIndex.from_documents(blog.nodes[:40], uri=uri, embed_model=model) as index:
        index.save_calibrator(RelevanceCalibrator.fit(labelled(), source=index.models()))
    code = (
        "import sys; from llama_index_gap.index.dual_index import DualIndex\n"
        "retriever = DualIndex(sys.argv[1]).as_retriever(top_k=3, min_probability=0)\n"
        "hits = retriever.retrieve('government')\n"
        "assert 'text_probability' in hits[0].scores\n"
        "print(len(hits))"
    )

    shown = subprocess.run(
        [sys.executable, "-c", code, uri], capture_output=True, text=True, check=True
    )

    assert int(shown.stdout) >= 3
