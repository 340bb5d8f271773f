from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import ImageNode, TextNode

from llama_index_gap.diagnosis.calibration import collect_scores
from llama_index_gap.embedding import DualEncoderEmbedding
from llama_index_gap.evaluation.datasets import LabelledQuery, read_queries
from llama_index_gap.evaluation.metrics import Qrels
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex


@pytest.fixture(scope="module")
def index(
    tiny_clip: Path, noise_files: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    """Thirty texts and five captioned images."""
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
def judged(
    noise_files: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[LabelledQuery], Qrels]:
    """Text and image queries that search for themselves, read from a file."""
    texts = [{"query": f"text number {i}", "relevant": [f"text-{i}"]} for i in range(30)]
    captions = [{"query": f"image number {i}", "relevant": [f"image-{i}"]} for i in range(5)]
    images = [{"image": path, "relevant": [f"image-{i}"]} for i, path in enumerate(noise_files)]
    file = tmp_path_factory.mktemp("queries") / "queries.jsonl"
    lines = (json.dumps(line) + "\n" for line in [*texts, *captions, *images])
    file.write_text("".join(lines))
    return read_queries(file)


def test_all_hits_of_all_legs_with_their_labels(
    index: DualIndex, judged: tuple[list[LabelledQuery], Qrels]
) -> None:
    scores = collect_scores(index, *judged)

    assert set(scores) == {"text_to_text", "text_to_image", "image_to_text", "image_to_image"}
    # Each query finds everything: 35 texts and 5 images.
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
    index: DualIndex, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = index.as_retriever(similarity_top_k=3, image_similarity_top_k=0)
    queries = [LabelledQuery("0", "text number 0"), LabelledQuery("1", "text number 1")]
    qrels = {"0": {"text-0": 1}, "1": {"text-1": 1, "nothing": 1}}

    with caplog.at_level(logging.INFO, "llama_index_gap.diagnosis.calibration"):
        scores = collect_scores(retriever, queries, qrels)

    assert {pair: len(of_pair) for pair, (of_pair, _) in scores.items()} == {"text_to_text": 6}
    assert "the queries did not find 1 of 3 relevant documents" in caplog.text


def test_only_grades_that_count_are_relevant(index: DualIndex) -> None:
    query = LabelledQuery("q", "text number 1")

    def found(grades: dict[str, int], **settings: Any) -> int:
        return int(
            collect_scores(index, [query], {"q": grades}, **settings)["text_to_text"][1].sum()
        )

    assert found({}) == found({"text-1": 0}) == 0
    assert found({"text-1": 1}) == found({"text-1": 3, "text-2": 2}, relevant_from=3) == 1
    with pytest.raises(ValueError, match=r"do not contain query 'q'; if nothing is relevant"):
        collect_scores(index, [query], {})


def test_from_labels_to_a_threshold(
    index: DualIndex, judged: tuple[list[LabelledQuery], Qrels]
) -> None:
    queries, qrels = judged
    scores = collect_scores(index, queries[:30], qrels)["text_to_text"]
    calibrator = RelevanceCalibrator.fit({"text_to_text": scores}, source=index.models())
    assert index.calibrator() is None

    index.save_calibrator(calibrator)
    retriever = index.as_retriever(min_probability=0.5, image_similarity_top_k=0)
    hits = retriever.retrieve("text number 7")

    assert hits[0].node_id == "text-7"
    assert len(hits) < 16
    assert all(hit.scores["text_probability"] >= 0.5 for hit in hits)
