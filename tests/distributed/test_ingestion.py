"""A real Ray cluster with two workers puts documents into an index on a real server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compass import Compass
from index_nodes import as_base64, of_document
from index_rows import assert_same_rows
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, ImageNode, TextNode
from mortal import MortalEmbedding

from llama_index_gap import DualEncoderEmbedding, EmbeddingService, ingest_with_ray, read_corpus
from llama_index_gap.distributed.cluster import ClusterError, joined
from llama_index_gap.distributed.ingestion import aingest_with_ray
from llama_index_gap.errors import UnsupportedError
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.indexed_images import IMAGES_PROPERTY
from llama_index_gap.index.writing import IndexReport

DOCUMENTS = 12


class Locked(Compass):
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


@pytest.fixture
def corpus_folder(noise_files: list[str], tmp_path: Path) -> Path:
    """Twelve documents, each with a text and an image; the first image has a caption."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for number in range(DOCUMENTS):
        image = folder / f"{number}.png"
        image.write_bytes(Path(noise_files[number % 5]).read_bytes() + bytes([number]))
        caption = {"caption": "a caption"} if number == 0 else {}
        images = [{"path": image.name, **caption}]
        lines.append({"id": f"d{number}", "text": f"text {number}", "images": images})
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def images_folders(index: DualIndex) -> list[str]:
    folders: list[str] = json.loads(index._stores["image"].properties()[IMAGES_PROPERTY])["folders"]
    return folders


@pytest.mark.server
def test_the_index_is_that_of_one_machine_though_a_worker_is_killed(
    milvus_url: str, ray_address: str, tiny_clip: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    corpus = read_corpus(corpus_folder)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    (deaths / "first").touch()
    model = MortalEmbedding(
        model_name=tiny_clip, dtype="float32", deadly="7.png", deaths=str(deaths)
    )
    plain = DualEncoderEmbedding(model_name=tiny_clip, dtype="float32")
    with (
        DualIndex(milvus_url, "by_one", plain) as one,
        DualIndex(milvus_url, "by_many", model) as many,
    ):
        alone = one.refresh_ref_docs(corpus)
        report = ingest_with_ray(many, corpus, address=ray_address, batch_size=4)

        assert list(deaths.iterdir()) == []  # a worker was killed
        assert report == alone == IndexReport(text_rows=13, image_rows=12)
        assert_same_rows(one, many)
        assert many.models() == one.models()
        assert images_folders(many) == images_folders(one) == [str(corpus_folder.resolve())]
        found = many.search("text 3", image_similarity_top_k=0)
        assert found[0].key == "d3"
        (image,) = many.get_nodes(["d3#image-3.png"])
        assert isinstance(image, ImageNode)
        assert image.resolve_image()  # its folder was noted on this machine, so it opens


@pytest.mark.server
def test_nodes_that_need_care(
    milvus_url: str, ray_address: str, tiny_clip: Path, noise_files: list[str], tmp_path: Path
) -> None:
    nested: dict[str, Any] = {}
    for _ in range(5_000):
        nested = {"in": nested}

    def nodes() -> Iterator[BaseNode]:
        yield TextNode(id_="t", text="a text that comes again", relationships=of_document("a"))
        yield ImageNode(id_="own", image=as_base64(noise_files[0]), relationships=of_document("b"))
        yield ImageNode(id_="seen", image_path=noise_files[1])
        yield ImageNode(id_="unseen", image_path=str(tmp_path / "nothing.png"))
        yield TextNode(id_="deep", text="nested", metadata=nested)
        yield TextNode(id_="empty", text=" ")
        yield TextNode(id_="t", text="another text", relationships=of_document("a"))

    model = DualEncoderEmbedding(model_name=tiny_clip, dtype="float32")
    kept = {"one": tmp_path / "one", "many": tmp_path / "many"}
    with (
        DualIndex(milvus_url, "careful", model, storage_dir=kept["one"]) as one,
        DualIndex(milvus_url, "cared", model, storage_dir=kept["many"]) as many,
    ):
        alone = one.insert_nodes(list(nodes()))
        report = asyncio.run(
            aingest_with_ray(many, nodes(), address=ray_address, batch_size=4, actors=1)
        )

        reasons = {each.source: each.reason for each in report.skipped}
        assert reasons.keys() == {each.source for each in alone.skipped}
        assert reasons.keys() == {"node t", "node unseen", "node deep", "node empty"}
        assert "must lie at the same path on all machines" in reasons["node unseen"]
        report.skipped = alone.skipped
        assert report == alone == IndexReport(text_rows=1, image_rows=2, skipped=alone.skipped)
        assert [many.get_nodes([each])[0].text for each in ("t", "own")] == ["another text", ""]
        names = {name: sorted(file.name for file in at.glob("*.png")) for name, at in kept.items()}
        assert len(names["one"]) == 1
        assert names["one"] == names["many"]
        assert not list((kept["many"] / "pending").iterdir())


@pytest.mark.server
def test_llama_indexes_own_pipeline_takes_the_embedding_as_a_step(
    ray_address: str, tiny_clip: Path, noise_files: list[str]
) -> None:
    """docs/ray.md says what only ``ingest_with_ray`` does."""
    from llama_index.ingestion.ray import RayIngestionPipeline, RayTransformComponent

    settings = {"model_name": str(tiny_clip), "dtype": "float32"}
    nodes = [TextNode(id_="t", text="a text"), ImageNode(id_="i", image_path=noise_files[0])]
    with joined(ray_address):
        step = RayTransformComponent(DualEncoderEmbedding, transform_kwargs=settings)
        embedded = RayIngestionPipeline(transformations=[step]).run(nodes=nodes)

    ours = DualEncoderEmbedding(**settings)(nodes)
    for node, again in zip(ours, embedded, strict=True):
        assert (again.node_id, type(again)) == (node.node_id, type(node))
        np.testing.assert_allclose(again.embedding, node.embedding, atol=1e-5)


# --- what is refused, without Ray ----------------------------------------------------------------


def test_a_lite_file_has_one_process(tmp_path: Path) -> None:
    with (
        DualIndex(str(tmp_path / "gap.db"), embed_model=Compass()) as index,
        pytest.raises(UnsupportedError, match=r"gap\.db: only one process .* use a Milvus server"),
    ):
        ingest_with_ray(index, [])


def test_settings_that_break_a_rule(tmp_path: Path) -> None:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Compass()) as index:
        with pytest.raises(ValueError, match="actors=0: must be at least 1"):
            ingest_with_ray(index, [], actors=0)
        with pytest.raises(TypeError, match="did you mean 'batch_size'"):
            ingest_with_ray(index, [], batchsize=3)


@pytest.mark.server
def test_what_cannot_be_joined_or_sent(milvus_url: str, ray_address: str) -> None:
    service = EmbeddingService(
        *("http://127.0.0.1:9/embeddings", "m"), api_key="k", dialect="jina", dimensions=2
    )
    with DualIndex(milvus_url, "refused", service) as index:
        with pytest.raises(ValueError, match="pass api_key_env= instead"):
            ingest_with_ray(index, [], address=ray_address)
        with pytest.raises(ClusterError, match="'nowhere': cannot be joined"):
            ingest_with_ray(index, [], address="nowhere")
    with (
        DualIndex(milvus_url, "locked", Locked()) as index,
        pytest.raises(ValueError, match=r"cannot be sent to workers \(TypeError: .*lock"),
    ):
        ingest_with_ray(index, [], address=ray_address)
