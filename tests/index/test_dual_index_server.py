"""DualIndex on a real server, end to end, with one index that the tests share."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import CountingEmbedding
from llama_index.core.schema import (
    ImageNode,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.writing import IndexReport

pytestmark = pytest.mark.server
TOPICS = ["bridge", "harvest", "election", "concert", "regatta"]


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> CountingEmbedding:
    return CountingEmbedding(model_name=tiny_clip, dtype="float32")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def shared(milvus_url: str, model: CountingEmbedding, storage: Path) -> Iterator[DualIndex]:
    with DualIndex(milvus_url, "news", model, storage_dir=storage) as opened:
        yield opened


@pytest.fixture
def nodes(noise_files: list[str]) -> list[TextNode]:
    """Five documents, each a text and an image; the first image has a caption."""
    made: list[TextNode] = []
    for number, (topic, path) in enumerate(zip(TOPICS, noise_files, strict=True)):
        common: dict[str, Any] = {
            "relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=topic)},
            "metadata": {"year": 2000 + number, "topic": topic},
            "excluded_embed_metadata_keys": ["year", "topic"],
        }
        caption = "a caption" if number == 0 else ""
        made.append(TextNode(id_=f"{topic}-text", text=f"news of the {topic}", **common))
        made.append(ImageNode(id_=f"{topic}-image", text=caption, image_path=path, **common))
    return made


@pytest.fixture
def index(shared: DualIndex, nodes: list[TextNode]) -> DualIndex:
    """The shared index with only the five documents; clearing it takes seconds."""
    ours = {node.node_id for node in nodes}
    for store in shared._stores.values():
        strangers = [node.node_id for node in store.get_nodes() if node.node_id not in ours]
        shared.delete_nodes(strangers)
    shared.insert_nodes(nodes)
    shared.embed_model.embedded.clear()
    return shared


def best(index: DualIndex, query: QueryBundle | str, **settings: Any) -> str | None:
    """The first document."""
    return index.as_retriever(**settings).retrieve(query)[0].node.ref_doc_id


def as_base64(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# --- writing -------------------------------------------------------------------------------------


def test_build_count_and_read(index: DualIndex, nodes: list[TextNode]) -> None:
    assert index.count() == {"text": 6, "image": 5}  # a caption counts as a text
    found = index.get_nodes(["harvest-image", "nothing", "bridge-image"])
    assert [node.node_id for node in found] == ["harvest-image", "bridge-image"]
    assert isinstance(found[1], ImageNode)
    assert (found[1].text, found[1].image_path) == ("a caption", nodes[1].image_path)
    assert found[1].metadata == nodes[1].metadata


def test_a_second_run_embeds_nothing(index: DualIndex, nodes: list[TextNode]) -> None:
    assert index.insert_nodes(nodes) == IndexReport(unchanged=11)
    assert index.embed_model.embedded == []


def test_a_sync_deletes_what_vanished_and_nothing_else(
    index: DualIndex, model: CountingEmbedding, nodes: list[TextNode]
) -> None:
    index.sync(nodes, source="news")
    index.insert_nodes([TextNode(id_="note", text="a note")])
    model.embedded.clear()
    kept = [node for node in nodes if node.ref_doc_id != "bridge"]

    report = index.sync(kept, source="news")

    assert (report.vanished, report.unchanged, report.others) == (["bridge"], 4, 1)
    assert index.count() == {"text": 5, "image": 4}
    renamed = [
        node.model_copy(update={"id_": f"{node.node_id}2"}) if "concert" in node.node_id else node
        for node in kept
    ]
    assert index.sync(renamed, source="news").changed == ["concert"]
    assert model.embedded == []
    assert index.get_nodes(["concert-text2", "concert-text"])[0].node_id == "concert-text2"
    for store in index._stores.values():
        store.rename_source(list(store.rows_from("news")), "other")
    assert index.sync(renamed, source="other", dry_run=True).unchanged == 4


def test_an_upsert_leaves_one_row_in_each_collection(
    index: DualIndex, nodes: list[TextNode]
) -> None:
    changed = nodes[1].model_copy(update={"text": "another caption"})

    assert index.upsert_nodes([changed]) == IndexReport(text_rows=1, image_rows=1)
    assert index.count() == {"text": 6, "image": 5}
    assert index.get_nodes(["bridge-image"])[0].get_content() == "another caption"


def test_an_upsert_that_takes_a_modality_away_deletes_its_row(
    index: DualIndex, nodes: list[TextNode]
) -> None:
    index.upsert_nodes([nodes[1].model_copy(update={"text": ""})])
    assert index.count() == {"text": 5, "image": 5}

    index.upsert_nodes([TextNode(id_="bridge-image", text="no image any more")])
    assert index.count() == {"text": 6, "image": 4}


def test_deleting(index: DualIndex) -> None:
    index.delete_nodes(["bridge-image", "harvest-text", "nothing"])
    assert index.count() == {"text": 4, "image": 4}

    index.delete_ref_doc("concert")
    assert index.count() == {"text": 3, "image": 3}
    assert index.get_nodes(["concert-text", "concert-image"]) == []


def test_images_that_do_not_fit_into_a_row(index: DualIndex, storage: Path) -> None:
    """A server rejects rows with more than 65,536 bytes of metadata."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    data = as_base64(Image.fromarray(pixels))
    assert len(data) > 65_536

    assert index.insert_nodes([ImageNode(id_="large", image=data)]) == IndexReport(image_rows=1)
    stored = index.get_nodes(["large"])[0]
    assert isinstance(stored, ImageNode)
    assert (stored.image, Path(stored.image_path or "").parent) == (None, storage)
    with Image.open(stored.image_path or "") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)

    index.delete_nodes(["large"])
    assert [path for path in storage.rglob("*") if path.is_file()] == []


def test_what_a_server_refuses_is_skipped_and_the_rest_goes_in(index: DualIndex) -> None:
    added = [
        TextNode(id_="before", text="before it"),
        TextNode(id_="metadata", text="a text", metadata={"notes": "x" * 70_000}),
        TextNode(id_="after", text="after it"),
    ]
    report = index.insert_nodes(added)

    assert [skipped.source for skipped in report.skipped] == ["node metadata"]
    assert "65,536" in report.skipped[0].reason
    assert report.text_rows == 2
    assert len(index.get_nodes(["before", "after"])) == 2
    assert index.count() == {"text": 8, "image": 5}


# --- searching -----------------------------------------------------------------------------------


def test_a_text_finds_itself(index: DualIndex) -> None:
    for topic in TOPICS:
        assert best(index, f"news of the {topic}", image_similarity_top_k=0) == topic


def test_an_image_finds_itself(index: DualIndex, noise_files: list[str]) -> None:
    for topic, path in zip(TOPICS, noise_files, strict=True):
        query = QueryBundle("", image_path=path)
        assert best(index, query, similarity_top_k=0) == topic


def test_text_and_image_together(index: DualIndex, noise_files: list[str]) -> None:
    query = QueryBundle("news of the election", image_path=noise_files[2])
    found = index.as_retriever().retrieve(query)  # five documents give little evidence

    hits = [hit for hit in found if hit.node.ref_doc_id == "election"]
    assert [hit.node_id for hit in hits] == ["election-text", "election-image"]
    legs = {"text", "image", "text_by_image", "image_by_image"}
    assert legs <= hits[0].scores.keys()
    assert hits[0].scores["text"] == pytest.approx(1, abs=1e-5)
    assert hits[0].scores["image_by_image"] == pytest.approx(1, abs=1e-5)


def test_what_was_just_written_is_found(index: DualIndex) -> None:
    """Scores are compared with a background too, once a collection has 50 rows."""
    many = [TextNode(id_=f"t{number}", text=f"text {number}") for number in range(60)]
    index.insert_nodes(many)

    hits = index.as_retriever(image_similarity_top_k=0).retrieve("text 7")
    assert hits[0].node_id == "t7"
    assert hits[0].scores["text_evidence"] == hits[0].score > 1  # not 1/61 for the first rank


def test_filters_hold_in_both_collections(index: DualIndex) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="year", value=2003, operator=">=")])
    hits = index.as_retriever(filters=filters).retrieve("news of the bridge")

    assert {hit.node_id for hit in hits} == {
        "concert-text",
        "concert-image",
        "regatta-text",
        "regatta-image",
    }


def test_two_event_loops(index: DualIndex) -> None:
    async def write_search_delete(number: int) -> str:
        node = TextNode(id_=f"loop-{number}", text=f"loop {number}")
        await index.ainsert_nodes([node])
        hits = await index.as_retriever(image_similarity_top_k=0).aretrieve(f"loop {number}")
        await index.adelete_nodes([node.node_id])
        return hits[0].node_id

    for number in range(2):
        assert asyncio.run(write_search_delete(number)) == f"loop-{number}"
    assert index.count() == {"text": 6, "image": 5}


# --- opening -------------------------------------------------------------------------------------


def test_reopening_by_address_and_name_builds_the_stored_model(
    index: DualIndex, milvus_url: str, tiny_clip: Path
) -> None:
    hits = np.linspace(-1, 1, 40), [0] * 20 + [1] * 20
    calibrator = RelevanceCalibrator.fit({"text_to_text": hits}, source=index.models())
    index.save_calibrator(calibrator)

    with DualIndex(milvus_url, "news") as again:
        assert again.calibrator() == calibrator
        assert type(again.embed_model) is DualEncoderEmbedding
        assert again.embed_model.model_name == str(tiny_clip)
        assert again.count() == index.count()
        assert best(again, "news of the harvest", image_similarity_top_k=0) == "harvest"


def test_another_model_is_refused(index: DualIndex, milvus_url: str, tiny_clip: Path) -> None:
    other = DualEncoderEmbedding(model_name=tiny_clip, query_prompt="find: ")

    with pytest.raises(ValueError, match=r"news was made with .*, not with .*find: "):
        DualIndex(milvus_url, "news", other)
    assert index.count() == {"text": 6, "image": 5}


def test_a_collection_for_image_queries_joins(
    milvus_url: str, model: CountingEmbedding, tiny_dinov2: Path, noise_files: list[str]
) -> None:
    images = [ImageNode(id_=path, image_path=path) for path in noise_files]
    with DualIndex(milvus_url, "photos", model) as index:
        index.insert_nodes(images)

    dinov2 = DualEncoderEmbedding(model_name=tiny_dinov2, dtype="float32")
    with DualIndex(milvus_url, "photos", image_query_embed_model=dinov2) as index:
        report = index.insert_nodes(images)
        assert report == IndexReport(image_query_rows=5, unchanged=5)
        (hit,) = index.as_retriever(top_k=1).retrieve(QueryBundle("", image_path=noise_files[3]))
        assert (hit.node_id, hit.scores["image_by_image"]) == (noise_files[3], pytest.approx(1))


def test_queries_are_learnt_by_every_process(index: DualIndex, milvus_url: str) -> None:
    index.learn_queries([f"news of the {topic}, {n}" for topic in TOPICS for n in range(8)])
    known = index.query_sample()

    with DualIndex(milvus_url, "news") as again:
        assert again.query_sample() == known
        assert again.search("news of the bridge").fusion.sample_queries == known.texts == 40
        again.forget_queries()
    with DualIndex(milvus_url, "news") as again:
        assert again.query_sample().texts == 0


def test_clear_then_insert(index: DualIndex, nodes: list[TextNode], milvus_url: str) -> None:
    index.clear()
    assert index.count() == {"text": 0, "image": 0}
    assert index.as_retriever().retrieve("news of the bridge") == []

    assert index.insert_nodes(nodes) == IndexReport(text_rows=6, image_rows=5)
    assert best(index, "news of the bridge", image_similarity_top_k=0) == "bridge"
    with DualIndex(milvus_url, "news") as again:
        assert again.count() == {"text": 6, "image": 5}
