"""Aligned embeddings: in one ordinary index, and in a DualIndex that remembers its aligner."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from llama_index.vector_stores.milvus import MilvusVectorStore
from PIL import Image

from llama_index_gap import (
    CenterAligner,
    DualEncoderEmbedding,
    DualIndex,
    LinearAligner,
    OffsetAligner,
    aligner_from_nodes,
    load_aligner,
)
from llama_index_gap.models import Encoder

FloatArray = npt.NDArray[np.float32]
TEXTS = ["a red bicycle", "players celebrate", "a silver trophy", "rain", "a white ship"]


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(model_name=tiny_clip, dtype="float32", query_prompt="q: ")


@pytest.fixture(scope="module")
def nodes(noise_files: list[str]) -> list[TextNode]:
    texts = [TextNode(id_=text, text=text) for text in TEXTS]
    images = [
        ImageNode(id_=f"image {i}", text=text, image_path=path)
        for i, (text, path) in enumerate(zip(TEXTS, noise_files, strict=True))
    ]
    return [*texts, *images]


@pytest.fixture(scope="module")
def aligner_file(
    clip: DualEncoderEmbedding, nodes: list[TextNode], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    aligner = aligner_from_nodes(nodes, clip, CenterAligner, queries=TEXTS)
    return aligner.save(tmp_path_factory.mktemp("aligner") / "a.safetensors")


@pytest.fixture(scope="module")
def aligned(tiny_clip: Path, aligner_file: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(
        model_name=tiny_clip, dtype="float32", query_prompt="q: ", aligner=aligner_file
    )


# --- the vectors --------------------------------------------------------------------------------


def test_every_vector_is_aligned_as_what_it_is(
    clip: DualEncoderEmbedding,
    aligned: DualEncoderEmbedding,
    aligner_file: Path,
    noise_files: list[str],
) -> None:
    aligner = load_aligner(aligner_file)

    def expected(vectors: Any, *what: Any) -> Any:
        return pytest.approx(aligner.apply(vectors, *what), abs=1e-5)

    query = clip.get_query_embedding("rain")
    texts, images = (
        clip.get_text_embedding_batch(TEXTS),
        clip.get_image_embedding_batch(noise_files),
    )
    assert np.array([aligned.get_query_embedding("rain")]) == expected([query], "text", "query")
    assert np.array(aligned.get_text_embedding_batch(TEXTS)) == expected(texts, "text")
    assert np.array(aligned.get_image_embedding_batch(noise_files)) == expected(images, "image")
    assert asyncio.run(aligned.aget_query_embedding("rain")) == aligned.get_query_embedding("rain")
    assert aligner.apply([query], "text", "query") != expected([query], "text", "document")


def test_it_aligns_what_is_left_of_matryoshka(tiny_clip: Path, nodes: list[TextNode]) -> None:
    short = DualEncoderEmbedding(model_name=tiny_clip, dimensions=8)
    aligner = aligner_from_nodes(nodes, short, OffsetAligner)

    both = DualEncoderEmbedding(model_name=tiny_clip, dimensions=8, aligner=aligner)

    moved = aligner.apply([short.get_image_embedding(nodes[5].image_path)], "image")[0]
    assert both.get_image_embedding(nodes[5].image_path) == pytest.approx(moved, abs=1e-5)


def test_an_aligner_that_does_not_fit_is_refused(
    tiny_clip: Path, aligner_file: Path, tmp_path: Path
) -> None:
    for settings, message in (
        ({"aligner": aligner_file, "dimensions": 8}, "of 16 dimensions, but the model gives 8"),
        ({"aligner": tmp_path / "nothing"}, "nothing: no such file"),
        ({"aligner": 3}, "aligner=3: must be an aligner, or the path of a saved one"),
    ):
        with pytest.raises(ValueError, match=message):
            DualEncoderEmbedding(model_name=tiny_clip, **settings)


def test_the_aligner_of_another_model_is_noticed(
    tiny_clip: Path, aligner_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DualEncoderEmbedding(model_name=tiny_clip, aligner=aligner_file)
    assert caplog.messages == []

    vectors = np.eye(16)[:2]
    moved = OffsetAligner.fit(vectors, vectors, model_name=f"elsewhere/{tiny_clip.name}")
    DualEncoderEmbedding(model_name=tiny_clip, aligner=moved)
    assert caplog.messages == []

    other = OffsetAligner.fit(vectors, vectors, model_name="openai/clip")
    DualEncoderEmbedding(model_name=tiny_clip, aligner=other)
    assert "fitted on vectors of openai/clip and now moves vectors of" in caplog.text


# --- fitted on nodes ----------------------------------------------------------------------------


def test_fitting_on_nodes(clip: DualEncoderEmbedding, nodes: list[TextNode]) -> None:
    texts = clip.get_text_embedding_batch(TEXTS)
    images = clip.get_image_embedding_batch([node.image_path for node in nodes[5:]])
    queries = [clip.get_query_embedding(text) for text in TEXTS[:3]]
    name = clip.model_name

    offset = aligner_from_nodes(nodes, clip, OffsetAligner)
    centre = aligner_from_nodes(nodes, clip, CenterAligner, queries=TEXTS[:3])
    linear = aligner_from_nodes(nodes, clip, ridge=2)

    np.testing.assert_allclose(
        offset.offset, np.mean(images, 0) - np.mean(texts + texts, 0), atol=1e-6
    )
    np.testing.assert_allclose(centre.query_mean, np.mean(queries, 0), atol=1e-6)
    expected = LinearAligner.fit(texts, images, ridge=2)
    np.testing.assert_allclose(linear.matrix, expected.matrix, atol=1e-5)
    assert offset.fitted_on == {"texts": 10, "images": 5, "model_name": name}
    assert linear.fitted_on == {"texts": 5, "images": 5, "model_name": name}
    assert centre.fitted_on["queries"] == 3


def test_nodes_that_cannot_be_fitted(
    clip: DualEncoderEmbedding, aligned: DualEncoderEmbedding, nodes: list[TextNode]
) -> None:
    with pytest.raises(ValueError, match="0 texts: at least 2 are needed"):
        aligner_from_nodes(nodes[:5], clip)  # no images, so no pairs
    with pytest.raises(ValueError, match="0 images: at least 2"):
        aligner_from_nodes(nodes[:5], clip, CenterAligner)
    with pytest.raises(ValueError, match="already has an aligner"):
        aligner_from_nodes(nodes, aligned)


# --- as LlamaIndex components do ----------------------------------------------------------------


def test_settings_name_the_aligner(aligned: DualEncoderEmbedding, aligner_file: Path) -> None:
    stored = json.loads(json.dumps(aligned.to_dict()))
    again = DualEncoderEmbedding.from_dict(stored)

    fingerprint = load_aligner(aligner_file).fingerprint
    assert stored["aligner"] == {"path": str(aligner_file), "fingerprint": fingerprint}
    assert again.aligner == aligned.aligner
    assert again.get_query_embedding("rain") == aligned.get_query_embedding("rain")
    with pytest.raises(ValueError, match="Field is frozen"):
        again.aligner = None


def test_an_aligner_that_is_in_no_file_cannot_be_named(tiny_clip: Path) -> None:
    aligner = OffsetAligner.fit(np.eye(16)[:2], np.eye(16)[:2])
    stored = DualEncoderEmbedding(model_name=tiny_clip, aligner=aligner).to_dict()

    with pytest.raises(ValueError, match=rf"{aligner.fingerprint} was never saved; save it"):
        DualEncoderEmbedding.from_dict(stored)


def test_a_file_that_has_changed_is_noticed(
    tiny_clip: Path, aligner_file: Path, tmp_path: Path
) -> None:
    file = load_aligner(aligner_file).save(tmp_path / "a.safetensors")
    stored = DualEncoderEmbedding(model_name=tiny_clip, aligner=file).to_dict()
    other = OffsetAligner.fit(np.eye(16)[:2], np.eye(16)[:2])
    other.save(file)

    with pytest.raises(ValueError, match=rf"a\.safetensors now holds .* {other.fingerprint}, not"):
        DualEncoderEmbedding.from_dict(stored)
    file.unlink()
    with pytest.raises(ValueError, match=r"a\.safetensors: no such file"):
        DualEncoderEmbedding.from_dict(stored)


@pytest.mark.parametrize("from_file", [True, False])
def test_pickle_carries_the_aligner(from_file: bool, tiny_clip: Path, aligner_file: Path) -> None:
    aligner = load_aligner(aligner_file) if from_file else OffsetAligner.fit(*[np.eye(16)[:2]] * 2)
    embedding = DualEncoderEmbedding(model_name=tiny_clip, dtype="float32", aligner=aligner)

    again = pickle.loads(pickle.dumps(embedding))

    assert again.aligner == aligner
    assert again.aligner.path == aligner.path
    assert again.get_text_embedding("rain") == embedding.get_text_embedding("rain")


# --- one ordinary index for both ----------------------------------------------------------------


class Memory(Encoder):
    """An encoder that knows its vectors: text ``"7"`` and the image of width 8 are row 7."""

    def __init__(self, texts: FloatArray, images: FloatArray) -> None:
        self.name, self.licence, self.max_text_tokens = "memory", None, None
        self.modalities = frozenset({"text", "image"})
        self.dimension = texts.shape[1]
        self.texts, self.images = texts, images

    def encode_text(self, texts: Sequence[str], kind: str) -> FloatArray:
        return self.texts[[int(text) for text in texts]]

    def count_truncated(self, texts: Sequence[str], kind: str) -> int:
        return 0

    def prepare_image(self, image: Image.Image) -> int:
        return image.width - 1

    def encode_prepared(self, prepared: Sequence[int]) -> FloatArray:
        return self.images[list(prepared)]


def with_a_gap(pairs: int) -> tuple[FloatArray, FloatArray]:
    """Pairs of texts and images with the same content, each modality in its own cone."""
    rng = np.random.default_rng(0)
    content = rng.standard_normal((pairs, 12)) / np.sqrt(12)
    cones = []
    for axis in (0, 1):
        noise = 0.2 * rng.standard_normal((pairs, 12)) / np.sqrt(12)
        vectors = np.hstack([np.tile(1.5 * np.eye(2)[axis], (pairs, 1)), content + noise])
        cones.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    return cones[0], cones[1]


def in_memory(nodes: Sequence[TextNode], embedding: DualEncoderEmbedding, _: Path) -> Any:
    return VectorStoreIndex(embedding(nodes), embed_model=embedding)


def in_milvus(nodes: Sequence[TextNode], embedding: DualEncoderEmbedding, folder: Path) -> Any:
    """Through a pipeline, as an index made from nodes uses such a store only for its images."""
    store = MilvusVectorStore(
        str(folder / "one.db"), dim=14, similarity_metric="COSINE", use_async_client=False
    )
    IngestionPipeline(transformations=[embedding], vector_store=store).run(nodes=nodes)
    return VectorStoreIndex.from_vector_store(store, embed_model=embedding)


@pytest.mark.parametrize("index_of", [in_memory, in_milvus])
def test_one_ordinary_index_finds_across_modalities(
    index_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted on 60 pairs; the other 40 are indexed, and each text is a query for its image."""
    encoder = Memory(*with_a_gap(100))
    monkeypatch.setattr("llama_index_gap.models.worker.load_encoder", lambda *_, **__: encoder)
    for width in range(1, 101):
        Image.new("RGB", (width, 1)).save(tmp_path / f"{width - 1}.png")

    def image(i: int) -> ImageNode:
        return ImageNode(id_=f"image {i}", text=str(i), image_path=str(tmp_path / f"{i}.png"))

    plain = DualEncoderEmbedding(model_name="memory")
    aligner = aligner_from_nodes([image(i) for i in range(60)], plain)
    nodes = [TextNode(id_=f"text {i}", text=str(i)) for i in range(60, 100)]
    nodes += [image(i) for i in range(60, 100)]

    def outcome(embedding: DualEncoderEmbedding, folder: str) -> tuple[float, float]:
        """How often the top ten for a text hold its image, and those for an image its text."""
        (tmp_path / folder).mkdir()
        index = index_of(nodes, embedding, tmp_path / folder)
        retriever = index.as_retriever(similarity_top_k=10)
        found = {"text": 0, "image": 0}
        for i in range(60, 100):
            vector = embedding.get_image_embedding(str(tmp_path / f"{i}.png"))
            found["text"] += f"image {i}" in [hit.node_id for hit in retriever.retrieve(str(i))]
            hits = retriever.retrieve(QueryBundle("", embedding=vector))
            found["image"] += f"text {i}" in [hit.node_id for hit in hits]
        return found["text"] / 40, found["image"] / 40

    assert outcome(plain, "plain") == (0, 0)
    assert outcome(DualEncoderEmbedding(model_name="memory", aligner=aligner), "aligned") == (1, 1)


# --- a DualIndex remembers ----------------------------------------------------------------------


def test_an_index_builds_its_aligned_model_again(
    aligned: DualEncoderEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=aligned) as index:
        index.insert_nodes(nodes)
        expected = [hit.node_id for hit in index.as_retriever().retrieve("rain")]
        sample = index.collections()["image"].background("text").sample

    with DualIndex(uri) as again:
        assert again.embed_model.aligner == aligned.aligner
        assert [hit.node_id for hit in again.as_retriever().retrieve("rain")] == expected
    images = aligned.get_image_embedding_batch([node.image_path for node in nodes[5:]])
    assert np.max(sample @ np.array(images).T, axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_an_aligner_is_fitted_on_an_index_by_its_samples(
    clip: DualEncoderEmbedding, nodes: list[TextNode], tmp_path: Path
) -> None:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=clip) as index:
        index.insert_nodes(nodes)
        collections = index.collections()
        aligner = OffsetAligner.fit(
            collections["text"].background("text").sample,
            collections["image"].background("text").sample,
        )

    expected = aligner_from_nodes(nodes, clip, OffsetAligner)
    np.testing.assert_allclose(aligner.offset, expected.offset, atol=1e-6)


def test_an_index_refuses_another_aligner_or_none(
    aligned: DualEncoderEmbedding, tiny_clip: Path, tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    DualIndex(uri, embed_model=aligned).close()
    fingerprint = aligned.aligner.fingerprint
    other = OffsetAligner.fit(np.eye(16)[:2], np.eye(16)[:2])
    file = other.save(tmp_path / "other.safetensors")

    def opened(**settings: Any) -> DualIndex:
        model = DualEncoderEmbedding(model_name=tiny_clip, query_prompt="q: ", **settings)
        return DualIndex(uri, embed_model=model)

    with pytest.raises(
        ValueError, match=rf"made with .*{fingerprint}.* not with .*other.*{other.fingerprint}"
    ):
        opened(aligner=file)
    with pytest.raises(ValueError, match=rf"made with .*{fingerprint}.* not with (?!.*aligner=)"):
        opened()
    copy = aligned.aligner.save(tmp_path / "a copy.safetensors")
    opened(aligner=copy).close()  # the same aligner in another place


def test_an_index_says_when_its_aligner_is_gone(
    aligner_file: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    file = load_aligner(aligner_file).save(tmp_path / "mine.safetensors")
    DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip, aligner=file)).close()
    OffsetAligner.fit(np.eye(16)[:2], np.eye(16)[:2]).save(file)

    with pytest.raises(ValueError, match=r"mine\.safetensors now holds the aligner"):
        DualIndex(uri)
    file.unlink()
    with pytest.raises(ValueError, match=r"mine\.safetensors: no such file"):
        DualIndex(uri)


def test_an_index_wants_an_aligner_that_can_be_found_again(tiny_clip: Path, tmp_path: Path) -> None:
    aligner = OffsetAligner.fit(np.eye(16)[:2], np.eye(16)[:2])
    model = DualEncoderEmbedding(model_name=tiny_clip, aligner=aligner)

    with pytest.raises(ValueError, match=r"only in memory.*aligner\.save\(path\)"):
        DualIndex(str(tmp_path / "gap.db"), embed_model=model)
