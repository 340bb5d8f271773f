from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import ImageNode, QueryBundle, TextNode

from llama_index_gap.diagnosis.calibration import collect_scores
from llama_index_gap.embedding import DualEncoderEmbedding
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex


@pytest.fixture(scope="module")
def index(
    tiny_clip: Path, noise_files: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    """Thirty texts, and five images that have a caption."""
    uri = str(tmp_path_factory.mktemp("calibration") / "gap.db")
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as opened:
        texts = [TextNode(id_=f"text-{i}", text=f"text number {i}") for i in range(30)]
        images = [
            ImageNode(id_=f"image-{i}", image_path=path, text=f"image number {i}")
            for i, path in enumerate(noise_files)
        ]
        opened.insert_nodes([*texts, *images])
        yield opened


@pytest.fixture(scope="module")
def queries(noise_files: list[str]) -> list[Any]:
    """Texts that ask for themselves, and images that do."""
    by_text = [(f"text number {i}", {f"text-{i}"}) for i in range(30)]
    by_caption = [(f"image number {i}", {f"image-{i}"}) for i in range(5)]
    by_image = [
        (QueryBundle("", image_path=path), {f"image-{i}"}) for i, path in enumerate(noise_files)
    ]
    return [*by_text, *by_caption, *by_image]


def test_all_hits_of_all_legs_with_their_labels(index: DualIndex, queries: list[Any]) -> None:
    scores = collect_scores(index, queries)

    assert set(scores) == {"text_to_text", "text_to_image", "image_to_text", "image_to_image"}
    # Each query finds all there is: 35 texts, 5 images.
    assert {pair: len(of_pair) for pair, (of_pair, _) in scores.items()} == {
        "text_to_text": 35 * 35,
        "text_to_image": 35 * 5,
        "image_to_text": 5 * 35,
        "image_to_image": 5 * 5,
    }
    relevant = {pair: labels.sum() for pair, (_, labels) in scores.items()}
    assert relevant == {
        "text_to_text": 35,
        "text_to_image": 5,
        "image_to_text": 5,
        "image_to_image": 5,
    }
    itself, labels = scores["image_to_image"]
    assert itself[labels] == pytest.approx([1.0] * 5, abs=1e-2)


def test_a_retriever_is_asked_as_it_is_set(
    index: DualIndex, queries: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    retriever = index.as_retriever(similarity_top_k=3, image_similarity_top_k=0)

    with caplog.at_level(logging.INFO, "llama_index_gap.diagnosis.calibration"):
        scores = collect_scores(retriever, [queries[0], ("text number 1", {"text-1", "nothing"})])

    assert {pair: len(of_pair) for pair, (of_pair, _) in scores.items()} == {"text_to_text": 6}
    assert "1 of 3 relevant keys are of no hit of their query" in caplog.text


def test_a_relevant_document_is_known_by_its_key_or_its_nodes(index: DualIndex) -> None:
    none = collect_scores(index, [("text number 1", [])])

    assert not none["text_to_text"][1].any()
    with pytest.raises(ValueError, match=r"are one text: pass \{'text-1'\}"):
        collect_scores(index, [("text number 1", "text-1")])


def test_from_labels_to_a_threshold(index: DualIndex, queries: list[Any]) -> None:
    scores = collect_scores(index, queries[:30])["text_to_text"]
    calibrator = RelevanceCalibrator.fit({"text_to_text": scores}, source=index.models())
    assert index.calibrator() is None

    index.save_calibrator(calibrator)
    retriever = index.as_retriever(min_probability=0.5, image_similarity_top_k=0)
    hits = retriever.retrieve("text number 7")

    assert hits[0].node_id == "text-7"
    assert len(hits) < 16
    assert all(hit.scores["text_probability"] >= 0.5 for hit in hits)
