"""A separate collection for image queries: a third leg, with a model that compares images."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import CountingEmbedding
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import (
    ImageNode,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from named_vectors import NamedVectors

from llama_index_gap import DualEncoderEmbedding, MilvusStore
from llama_index_gap.demo.tiny import make_tiny_dinov2
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex, IndexReport
from llama_index_gap.search.fusion import ScoredLeg, fuse


class Table(NamedVectors):
    """Vectors set by hand, one for each text and each image's name."""

    table: dict[str, list[float]]
    dimension: int = 2
    asked: list[str] = []

    def vector_of(self, name: str) -> list[float]:
        self.asked.append(name)
        return self.table[name]


# The query's photo shows the ferry from the bridge. To the dual encoder both boats are "a boat in a
# harbour", the trawler a little more than the ferry; the image encoder can tell them apart.
DUAL = {
    "ferry.png": [0.8, 0.6],
    "trawler.png": [1.0, 0.0],
    "from-the-bridge.png": [1.0, 0.0],
    "on ferries": [0.3, 0.954],
    "on fishing": [0.3, 0.954],
    "a boat": [0.6, 0.8],
}
ALONE = {
    "ferry.png": [0.9, 0.436],
    "trawler.png": [0.1, 0.995],
    "from-the-bridge.png": [1.0, 0.0],
}
PHOTO = QueryBundle("", image_path="/images/from-the-bridge.png")


def of(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


BOATS = [
    TextNode(id_="f1", text="on ferries", relationships=of("ferry")),
    ImageNode(id_="f2", image_path="/images/ferry.png", relationships=of("ferry")),
    TextNode(id_="t1", text="on fishing", relationships=of("trawler")),
    ImageNode(id_="t2", image_path="/images/trawler.png", relationships=of("trawler")),
]


def dual() -> Table:
    return Table(model_name="dual", table=DUAL)


def alone() -> Table:
    return Table(model_name="alone", table=ALONE)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualIndex]:
    uri = str(tmp_path_factory.mktemp("boats") / "gap.db")
    with DualIndex(uri, embed_model=dual(), image_query_embed_model=alone()) as opened:
        opened.insert_nodes(BOATS)
        yield opened


def search(index: DualIndex, query: QueryBundle | str, **settings: Any) -> list[Any]:
    settings = {"normalize": "none", "combine": "sum", "image_queries": "also_texts", **settings}
    return index.as_retriever(**settings).retrieve(query)


def ids(hits: list[Any]) -> list[str]:
    return [hit.node_id for hit in hits]


# --- searching ----------------------------------------------------------------------------------


def test_an_image_asks_the_model_that_compares_images(index: DualIndex, tmp_path: Path) -> None:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=dual()) as two:
        two.insert_nodes(BOATS)
        assert ids(search(two, PHOTO)) == ["t1", "t2", "f1", "f2"]

    hits = search(index, PHOTO)

    assert ids(hits) == ["f1", "f2", "t1", "t2"]
    assert hits[0].scores == pytest.approx(
        {
            "text_by_image": 0.3,
            "image_by_image": 0.9,
            "text_by_image_evidence": 0.3,
            "image_by_image_evidence": 0.9,
        },
        abs=1e-3,
    )
    assert [hit.score for hit in hits] == pytest.approx([1.2, 1.2, 0.4, 0.4], abs=1e-3)


def test_a_text_asks_the_dual_encoder(index: DualIndex) -> None:
    index.image_query_embed_model.asked.clear()

    hits = search(index, "a boat")

    assert hits[0].scores.keys() == {"text", "image", "text_evidence", "image_evidence"}
    # 0.6 × 0.3 + 0.8 × 0.954 for either text, 0.6 × 0.8 + 0.8 × 0.6 and 0.6 for the images
    assert [hit.score for hit in hits] == pytest.approx([1.903, 1.903, 1.543, 1.543], abs=1e-3)
    assert index.image_query_embed_model.asked == []


def test_a_text_and_an_image_ask_four_times(index: DualIndex) -> None:
    both = QueryBundle("a boat", image_path=PHOTO.image_path)
    models = [index.embed_model, index.image_query_embed_model]
    for model in models:
        model.asked.clear()

    hits = search(index, both)

    assert [hit.score for hit in hits] == pytest.approx([3.103, 3.103, 1.943, 1.943], abs=1e-3)
    assert len(hits[0].scores) == 2 * 4
    assert [model.asked for model in models] == [
        ["a boat", "from-the-bridge.png"],
        ["from-the-bridge.png"],
    ]


def test_the_dual_encoder_is_not_asked_for_what_is_not_searched(index: DualIndex) -> None:
    index.embed_model.asked.clear()

    assert ids(search(index, PHOTO, similarity_top_k=0)) == ["f2", "t2"]
    assert index.embed_model.asked == []


def test_the_weight_of_images_counts(index: DualIndex) -> None:
    hits = search(index, PHOTO, weights={"image": 10})

    assert hits[0].score == pytest.approx(0.3 + 9, abs=1e-3)
    with pytest.raises(
        ValueError, match="weights name 'image_query'; the modalities are text, image"
    ):
        index.as_retriever(weights={"image_query": 2})


def test_complete_fetches_the_image_that_only_the_text_found(index: DualIndex) -> None:
    hits = search(index, PHOTO, image_similarity_top_k=1, complete=True)

    assert ids(hits) == ["f1", "f2", "t1", "t2"]
    assert hits[2].scores == pytest.approx(
        {"text_by_image": 0.3, "text_by_image_evidence": 0.3, "image_by_image": 0.1}, abs=1e-3
    )


def test_every_setting_holds_for_it(index: DualIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="none", value="such")])
    assert search(index, PHOTO, filters=only) == []
    assert ids(search(index, PHOTO, group_by="node"))[0] == "f2"
    retriever = index.as_retriever()
    assert ids(asyncio.run(retriever.aretrieve(PHOTO))) == ids(retriever.retrieve(PHOTO))

    query = MilvusStore.query_hits

    def broken(store: MilvusStore, asked: Any, **others: Any) -> Any:
        if store.collection_name.endswith("image_query"):
            raise RuntimeError("the disk is on fire")
        return query(store, asked, **others)

    monkeypatch.setattr(MilvusStore, "query_hits", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        search(index, PHOTO)
    assert ids(search(index, PHOTO, on_leg_error="degrade")) == ["f1", "t1"]


def test_its_background_is_its_own(tmp_path: Path) -> None:
    """For one model the crowd surrounds the photo; for the other it is beside the photo."""
    names = [f"{number}.png" for number in range(60)]
    angles = dict(zip(names, np.linspace(0, np.pi, 60), strict=True))
    crowd = {name: [np.cos(angle), np.sin(angle)] for name, angle in angles.items()}
    models = (
        Table(model_name="dual", table=DUAL | {name: [0.0, 1.0] for name in names}),
        Table(model_name="alone", table=ALONE | crowd),
    )
    with DualIndex(
        str(tmp_path / "gap.db"), embed_model=models[0], image_query_embed_model=models[1]
    ) as index:
        nodes = [ImageNode(id_=name, image_path=f"/images/{name}") for name in names]
        index.insert_nodes([*nodes, BOATS[1]])
        hits = index.as_retriever(similarity_top_k=0, hubs=False).retrieve(PHOTO)

    background = [*(x for x, _ in crowd.values()), 0.9]
    expected = fuse(
        {"image_by_image": ScoredLeg(["0.png", "ferry"], [1.0, 0.9], background, 61, [0, 60])}
    )
    scores = {hit.node.ref_doc_id or hit.node_id: hit.score for hit in hits}
    assert {document.key: document.score for document in expected.documents} == pytest.approx(
        {key: scores[key] for key in ("0.png", "ferry")}, abs=0.01
    )


def test_a_calibrator_is_fitted_on_its_scores(index: DualIndex, tmp_path: Path) -> None:
    labelled = {"image_to_image": ([0.1, 0.9] * 20, [0, 1] * 20)}
    calibrator = RelevanceCalibrator.fit(labelled, source=index.models())
    settings = {"calibrator": calibrator, "min_probability": 0.5, "similarity_top_k": 0}

    (hit,) = search(index, PHOTO, **settings)

    assert (hit.node_id, hit.scores["image_by_image_probability"]) == (
        "f2",
        pytest.approx(0.95, abs=0.01),
    )
    with DualIndex(str(tmp_path / "gap.db"), embed_model=dual()) as two:
        two.insert_nodes(BOATS)
        with pytest.raises(ValueError, match=r"'alone', .*\) for image queries, but"):
            two.as_retriever(**settings)


# --- writing ------------------------------------------------------------------------------------


@pytest.fixture
def clip(tiny_clip: Path) -> CountingEmbedding:
    return CountingEmbedding(model_name=tiny_clip, dtype="float32")


@pytest.fixture
def dinov2(tiny_dinov2: Path) -> CountingEmbedding:
    return CountingEmbedding(model_name=tiny_dinov2, dtype="float32")


@pytest.fixture
def nodes(noise_files: list[str]) -> list[TextNode]:
    """A document with a text and a captioned image, and one with a bare image."""
    return [
        TextNode(id_="a1", text="a red bicycle", relationships=of("a")),
        ImageNode(id_="a2", text="a caption", image_path=noise_files[0], relationships=of("a")),
        ImageNode(id_="b1", image_path=noise_files[1], relationships=of("b")),
    ]


def test_every_image_has_a_row_there_as_long_as_it_is_one(
    clip: CountingEmbedding,
    dinov2: CountingEmbedding,
    nodes: list[TextNode],
    noise_files: list[str],
    tmp_path: Path,
) -> None:
    with DualIndex(
        str(tmp_path / "gap.db"), embed_model=clip, image_query_embed_model=dinov2
    ) as index:
        report = index.insert_nodes(nodes)
        assert report == IndexReport(text_rows=2, image_rows=2, image_query_rows=2)
        assert report.summary() == (
            "2 texts and 2 images written, 2 for image queries, 0 unchanged, 0 skipped"
        )
        assert index.count() == {"text": 2, "image": 2, "image_query": 2}
        assert dinov2.embedded == noise_files[:2]

        assert index.insert_nodes(nodes).unchanged == 6
        assert dinov2.embedded == noise_files[:2]

        other = nodes[2].model_copy(update={"image_path": noise_files[2]})
        assert index.upsert_nodes([other]) == IndexReport(image_rows=1, image_query_rows=1)
        (hit,) = search(index, QueryBundle("", image_path=noise_files[2]), top_k=1)
        assert (hit.node_id, hit.scores["image_by_image"]) == ("b1", pytest.approx(1, abs=1e-5))

        index.upsert_nodes([TextNode(id_="a2", text="only a text now", relationships=of("a"))])
        assert index.count() == {"text": 2, "image": 1, "image_query": 1}
        index.refresh_ref_docs([nodes[1]])
        assert index.count() == {"text": 1, "image": 2, "image_query": 2}
        index.delete_nodes(["a2"])
        assert index.count() == {"text": 0, "image": 1, "image_query": 1}
        index.delete_ref_doc("b")
        assert index.count() == {"text": 0, "image": 0, "image_query": 0}
        index.insert_nodes(nodes)
        index.clear()
        assert index.count() == {"text": 0, "image": 0, "image_query": 0}
        assert index.insert_nodes(nodes).image_query_rows == 2


def test_an_image_that_came_as_base64_goes_with_its_rows(
    clip: CountingEmbedding, dinov2: CountingEmbedding, noise_files: list[str], tmp_path: Path
) -> None:
    node = ImageNode(id_="a", image=base64.b64encode(Path(noise_files[0]).read_bytes()).decode())
    with DualIndex(
        str(tmp_path / "gap.db"), embed_model=clip, image_query_embed_model=dinov2
    ) as index:
        assert index.insert_nodes([node]).image_query_rows == 1
        (stored,) = index.get_nodes(["a"])
        (found,) = search(index, QueryBundle("", image_path=noise_files[0]))
        assert found.node.image_path == stored.image_path

        index.delete_nodes(["a"])
        assert not Path(stored.image_path).exists()


def test_an_image_that_cannot_be_opened_is_reported_once(
    clip: CountingEmbedding, dinov2: CountingEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    gone = ImageNode(id_="gone", image_path="/no/such.png")
    with DualIndex(
        str(tmp_path / "gap.db"), embed_model=clip, image_query_embed_model=dinov2
    ) as index:
        report = index.insert_nodes([gone, *nodes])

        assert [skip.source for skip in report.skipped] == ["node gone"]
        assert index.count() == {"text": 2, "image": 2, "image_query": 2}


def test_an_interrupted_build_goes_on_where_it_stopped(
    clip: CountingEmbedding,
    dinov2: CountingEmbedding,
    noise_files: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri = str(tmp_path / "gap.db")
    many = [ImageNode(id_=str(i), image_path=noise_files[i % 5]) for i in range(12)]
    dinov2.embed_batch_size = 1
    embed = CountingEmbedding.get_image_embedding_batch

    def stops(self: CountingEmbedding, images: list[Any], *args: Any) -> Any:
        if self is dinov2 and len(self.embedded) == 8:
            raise KeyboardInterrupt
        return embed(self, images, *args)

    with (
        DualIndex(uri, embed_model=clip, image_query_embed_model=dinov2) as index,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
    ):
        patch.setattr(CountingEmbedding, "get_image_embedding_batch", stops)
        index.insert_nodes(many)

    with DualIndex(uri, embed_model=clip, image_query_embed_model=dinov2) as index:
        index.as_retriever()
        assert "image queries find only 8 of 12 images; insert the images again" in caplog.text
        report = index.insert_nodes(many)
        assert report == IndexReport(image_query_rows=4, unchanged=20)
        assert len(dinov2.embedded) == 8  # the other four have the same files: their vectors stay


# --- opening ------------------------------------------------------------------------------------


def test_an_index_gains_it_and_fills_it_with_the_next_insert(
    clip: CountingEmbedding,
    dinov2: CountingEmbedding,
    nodes: list[TextNode],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=clip) as index:
        index.insert_nodes(nodes)
    clip.embedded.clear()

    with DualIndex(uri, image_query_embed_model=dinov2) as index:  # the stored dual encoder is used
        assert index.count() == {"text": 2, "image": 2, "image_query": 0}
        photo = QueryBundle("", image_path=nodes[2].image_path)
        assert "image_by_image" not in search(index, photo)[0].scores
        assert "image queries find only 0 of 2 images; insert the images again" in caplog.text

        caplog.clear()
        assert index.insert_nodes(nodes) == IndexReport(image_query_rows=2, unchanged=4)
        assert search(index, photo, similarity_top_k=0)[0].node_id == "b1"
        assert caplog.text == ""
    assert clip.embedded == []


def test_it_is_not_lost_where_it_is_not_named(
    clip: CountingEmbedding, dinov2: CountingEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=clip, image_query_embed_model=dinov2) as index:
        index.insert_nodes(nodes[:2])

    with DualIndex(uri, embed_model=clip) as index:
        assert index.image_query_embed_model.model_name == dinov2.model_name
        assert index.insert_nodes(nodes).image_query_rows == 1


@pytest.mark.slow
def test_another_process_opens_it_by_its_path(
    clip: CountingEmbedding, dinov2: CountingEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=clip, image_query_embed_model=dinov2) as index:
        index.insert_nodes(nodes)
    script = (
        "import sys; from llama_index_gap import DualIndex; "
        "from llama_index.core.schema import QueryBundle\n"
        "index = DualIndex(sys.argv[1])\n"
        "(hit,) = index.as_retriever(similarity_top_k=0, top_k=1)"
        ".retrieve(QueryBundle('', image_path=sys.argv[2]))\n"
        "print(hit.node_id, hit.scores['image_by_image'] > 0.999)"
    )
    command = [sys.executable, "-c", script, uri, nodes[2].image_path]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == "b1 True\n"


def test_overwritten_without_it_it_is_gone(
    clip: CountingEmbedding, dinov2: CountingEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=clip, image_query_embed_model=dinov2) as index:
        index.insert_nodes(nodes)

    with DualIndex(uri, embed_model=clip, overwrite=True) as index:
        assert index.count() == {"text": 0, "image": 0}
    with pytest.raises(ValueError, match="there is no such collection"):
        MilvusStore(uri=uri, collection_name="gap_image_query")
    with DualIndex(uri, image_query_embed_model=dinov2) as index:
        assert index.count() == {"text": 0, "image": 0, "image_query": 0}


def test_another_model_is_refused(
    clip: CountingEmbedding, dinov2: CountingEmbedding, tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    other = DualEncoderEmbedding(model_name=make_tiny_dinov2(tmp_path / "other", seed=1))
    DualIndex(uri, embed_model=clip, image_query_embed_model=dinov2).close()

    for models in ({"embed_model": clip}, {}):
        with pytest.raises(
            ValueError, match=rf"made with .*{dinov2.model_name}.* not with .*other"
        ):
            DualIndex(uri, **models, image_query_embed_model=other)
    with pytest.raises(ValueError, match=r"not with .*dimensions=8"):
        DualIndex(
            uri,
            image_query_embed_model=DualEncoderEmbedding(
                model_name=dinov2.model_name, dimensions=8
            ),
        )


def test_a_model_of_one_s_own_must_be_passed_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "gap.db")
    DualIndex(uri, embed_model=dual(), image_query_embed_model=alone()).close()

    with pytest.raises(ValueError, match=r"\('alone', .*\), which .*: pass it as image_query_"):
        DualIndex(uri, embed_model=dual())
    DualIndex(uri, embed_model=dual(), image_query_embed_model=alone()).close()


def test_models_that_do_not_fit_their_place(
    clip: CountingEmbedding, dinov2: CountingEmbedding, tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    with pytest.raises(ValueError, match=r"embeds no texts, so .* as image_query_embed_model"):
        DualIndex(uri, embed_model=clip, image_embed_model=dinov2)
    with pytest.raises(ValueError, match=r"unknown embeds no images.* as image_query_embed_model"):
        DualIndex(uri, embed_model=clip, image_query_embed_model=MockEmbedding(embed_dim=4))
