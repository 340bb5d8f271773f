from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import CountingEmbedding
from demo_corpus import write_demo_corpus
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

from llama_index_gap import DualEncoderEmbedding, open_image, read_corpus
from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex, IndexReport
from llama_index_gap.readers.corpus import Corpus


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(model_name=tiny_clip, dtype="float32")


@pytest.fixture
def index(clip: DualEncoderEmbedding, tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=clip) as opened:
        yield opened


def of_document(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


@pytest.fixture
def nodes(noise_files: list[str]) -> list[TextNode]:
    """A document with a text and a captioned image, and one with a bare image."""
    return [
        TextNode(id_="a1", text="a red bicycle", relationships=of_document("a")),
        ImageNode(
            id_="a2", text="a caption", image_path=noise_files[0], relationships=of_document("a")
        ),
        ImageNode(id_="b1", image_path=noise_files[1], relationships=of_document("b")),
    ]


def as_base64(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


# --- writing and reading ------------------------------------------------------------------------


def test_each_side_holds_what_is_its_own(index: DualIndex, nodes: list[TextNode]) -> None:
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


def test_metadata_that_is_no_json_does_not_look_changed(index: DualIndex) -> None:
    metadata = {"when": datetime(2024, 5, 1), "where": Path("a"), "n": np.float32(0.5), "x": (1, 2)}
    node = TextNode(id_="a", text="a text", metadata=metadata)

    assert index.insert_nodes([node]).text_rows == 1
    assert index.insert_nodes([node]).unchanged == 1
    assert index.insert_nodes([node.model_copy(update={"metadata": {"n": 1}})]).text_rows == 1


def test_the_same_id_twice_leaves_one_row_per_side(index: DualIndex, nodes: list[TextNode]) -> None:
    index.insert_nodes(nodes)
    other = ImageNode(id_="a2", text="another", image_path=nodes[2].image_path, metadata={"x": 1})

    index.upsert_nodes([other])

    assert index.count() == {"text": 2, "image": 2}
    (found,) = index.get_nodes(["a2"])
    assert (found.get_content(), found.metadata, found.ref_doc_id) == ("another", {"x": 1}, None)


def test_an_upsert_that_takes_a_side_away_deletes_its_row(
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
        "the same id comes again; the last one is taken"
    ]


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


# --- what goes in -------------------------------------------------------------------------------


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
        assert index.count() == {"text": 6, "image": 2}
        assert [node.ref_doc_id for node in found[:4]] == ["long", "long", "long", "image"]
        assert index.insert_nodes(found).unchanged == 8


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
        TextNode(id_="long", text="ä" * 40_000),
        TextNode(id_="empty", text=" "),
        ImageNode(id_="bare"),
        ImageNode(id_="no base64", image="@@@"),
        ImageNode(id_="url", image_url="https://example.com/a.png"),
    ]
    report = index.insert_nodes([*bad, *nodes])

    reasons = {skip.source.removeprefix("node "): skip.reason for skip in report.skipped}
    assert set(reasons) == {"gone", "broken", "long", "empty", "bare", "no base64", "url"}
    assert "no such file" in reasons["gone"]
    assert "truncated or damaged" in reasons["broken"]
    assert "65,535" in reasons["long"]
    assert reasons["empty"] == reasons["bare"] == "has neither a text nor an image"
    assert "unless allow_urls=True" in reasons["url"]
    assert index.count() == {"text": 3, "image": 2}  # the broken image's caption is found
    assert "7 skipped" in report.summary()


def test_strict_stops_at_the_first(index: DualIndex, nodes: list[TextNode]) -> None:
    with pytest.raises(ValueError, match=r"node x: .*no such file .*strict=True"):
        index.insert_nodes([*nodes, ImageNode(id_="x", image_path="/no.png")], strict=True)


# --- images as base64 -------------------------------------------------------------------------


def test_base64_images_are_kept_once_and_go_with_their_last_node(
    clip: DualEncoderEmbedding, tmp_path: Path, noise_files: list[str]
) -> None:
    storage = tmp_path / "images"
    data = as_base64(noise_files[0])
    with DualIndex(str(tmp_path / "gap.db"), embed_model=clip, storage_dir=storage) as index:
        index.insert_nodes([ImageNode(id_=name, image=data) for name in ("a", "b")])

        found = index.get_nodes(["a", "b"])
        paths = {node.image_path for node in found}
        assert len(paths) == 1
        (path,) = map(Path, paths)
        assert path.parent == storage
        assert path.read_bytes() == Path(noise_files[0]).read_bytes()
        assert [node.image for node in found] == [None, None]
        assert index.insert_nodes([ImageNode(id_="a", image=data)]).unchanged == 1

        index.delete_nodes(["a"])
        assert path.exists()
        index.upsert_nodes([ImageNode(id_="b", image=as_base64(noise_files[1]))])  # another image
        assert not path.exists()
        (other,) = index.get_nodes(["b"])
        assert Path(other.image_path).exists()
        index.upsert_nodes([ImageNode(id_="b", image_path=noise_files[2])])  # one of its own
        assert [path for path in storage.rglob("*") if path.is_file()] == []
        assert Path(noise_files[2]).exists()


def test_images_lie_beside_a_lite_file(
    index: DualIndex, tmp_path: Path, noise_files: list[str]
) -> None:
    index.insert_nodes(
        [ImageNode(id_="a", image=f"data:image/png;base64,{as_base64(noise_files[0])}")]
    )

    (node,) = index.get_nodes(["a"])
    assert Path(node.image_path).parent == tmp_path / "gap.db.images" / "gap"
    assert open_image(node).tobytes() == open_image(noise_files[0]).tobytes()
    precious = Path(node.image_path).with_name("precious.txt")
    precious.write_text("not ours")
    index.clear()
    assert not Path(node.image_path).exists()
    assert precious.exists()


# --- opening again ------------------------------------------------------------------------------


def test_reopening_by_uri_alone_builds_the_stored_model(
    tiny_clip: Path, tmp_path: Path, nodes: list[TextNode]
) -> None:
    uri = str(tmp_path / "gap.db")
    model = DualEncoderEmbedding(model_name=tiny_clip, dimensions=8, query_prompt="q: ")
    with DualIndex(uri, embed_model=model) as index:
        index.insert_nodes(nodes)
        expected = [hit.node_id for hit in index.as_retriever().retrieve("a bicycle")]

    with DualIndex(uri) as again:
        assert again.embed_model.dimensions == 8
        assert again.embed_model.query_prompt == "q: "
        assert again.image_embed_model is again.embed_model
        assert [hit.node_id for hit in again.as_retriever().retrieve("a bicycle")] == expected


def test_two_models_are_stored(
    tiny_clip: Path, tiny_siglip: Path, tmp_path: Path, nodes: list[TextNode]
) -> None:
    uri = str(tmp_path / "gap.db")
    text, image = (DualEncoderEmbedding(model_name=folder) for folder in (tiny_siglip, tiny_clip))
    with DualIndex(uri, embed_model=text, image_embed_model=image) as index:
        index.insert_nodes(nodes)
        hits = index.as_retriever().retrieve("a bicycle")
        assert {hit.node.ref_doc_id for hit in hits} == {"a", "b"}

    with DualIndex(uri) as again:
        assert (again.embed_model.dimension, again.image_embed_model.dimension) == (32, 16)
        # The text side's model does not share the space of the images: only they are asked.
        hits = again.as_retriever().retrieve(QueryBundle("", image_path=nodes[1].image_path))
        assert [hit.node_id for hit in hits] == ["a2", "b1"]


def test_a_new_index_needs_a_model_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such database; pass embed_model to make one"):
        DualIndex(str(tmp_path / "mistyped.db"))
    assert not [*tmp_path.iterdir()]


def test_another_model_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "gap.db")
    DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)).close()
    other = make_tiny_clip(tmp_path / "other", seed=1)

    with pytest.raises(ValueError, match=rf"made with .*{tiny_clip}.* not with .*{other}"):
        DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=other))
    with pytest.raises(ValueError, match=r"not with .*dimensions=8"):
        DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip, dimensions=8))
    DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=other), overwrite=True).close()
    # Where and how fast it runs does not make it another model.
    model = DualEncoderEmbedding(model_name=other, dtype="bfloat16", embed_batch_size=3)
    DualIndex(uri, embed_model=model).close()


# --- its calibrator -----------------------------------------------------------------------------


def labelled() -> dict[str, Any]:
    """Hits with higher scores are better, on either side."""
    scores, labels = np.linspace(-1, 1, 40), [0] * 15 + [1, 0] * 5 + [1] * 15
    return {"text_to_text": (scores, labels), "text_to_image": (scores, labels)}


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
        ({"name": "my index"}, "name='my index': Milvus takes letters"),
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


def test_a_foreign_text_model_must_be_passed_again(
    clip: DualEncoderEmbedding, tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    mock = MockEmbedding(embed_dim=4)
    DualIndex(uri, embed_model=mock, image_embed_model=clip).close()

    with pytest.raises(ValueError, match=r"MockEmbedding.* cannot be built from its name alone"):
        DualIndex(uri)
    DualIndex(uri, embed_model=mock, image_embed_model=clip).close()


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


# --- an interrupted build -----------------------------------------------------------------------

BUILD = """
import sys, time
from llama_index.core.schema import TextNode
from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.index.dual_index import DualIndex

model = DualEncoderEmbedding(model_name=sys.argv[2], embed_batch_size=4)
index = DualIndex(sys.argv[1], embed_model=model)
nodes = [TextNode(id_=str(i), text=f"text number {i}") for i in range(400)]
print("begin", flush=True)
print(index.insert_nodes(nodes).summary(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_build_run_again_is_complete(tiny_clip: Path, tmp_path: Path) -> None:
    uri = tmp_path / "gap.db"
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(uri), str(tiny_clip)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "begin\n"
        time.sleep(0.25)
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
    assert unchanged < 400  # it was killed before it was done


# --- a real corpus ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blog(gap_shared: Path) -> Corpus:
    return read_corpus(gap_shared / "data" / "18f_blog")


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
        if hit.node.image_path != path:  # a tie: files that look the same to the model
            assert hit.scores["image_by_image"] == pytest.approx(1, abs=1e-5)
        assert hit.score == pytest.approx(1, abs=1e-5)


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
