"""Checks of encoders with exactly known outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from llama_index_gap.evaluation.model_check import (
    check_encoder,
    check_scorer,
    drawn_shapes,
    speeds,
)
from llama_index_gap.evaluation.published import published_answers
from llama_index_gap.models.base import Encoder, PairScorer
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint

CATS = Image.new("RGB", (4, 4), "gray")


class Known(Encoder):
    """Distinguishes colours; returns the outputs of OpenAI's CLIP for the photograph of cats."""

    licence = None
    max_text_tokens = None
    modalities = frozenset({"text", "image"})

    def __init__(self, name: str, off: float = 0.0, *, batch_matters: bool = False) -> None:
        self.name, self.dimension = name, 4
        self._off, self._batch_matters = off, batch_matters

    def encode_text(self, texts, kind):
        rows = [self._row(text) for text in texts]
        if self._batch_matters and len(rows) > 1:
            rows = rows[::-1]
        return np.array(rows, dtype=np.float32)

    def _row(self, text: str) -> list[float]:
        for name, cosine in {"cat": 0.245701 + self._off, "dog": 0.193049}.items():
            if text == f"a photo of a {name}":
                return [0.0, 0.0, cosine, float(np.sqrt(1 - cosine**2))]
        angle = {"red": 0, "blue": 1, "green": 2, "yellow": 3}.get(text.split()[1], 4 + len(text))
        return [float(np.cos(angle)), float(np.sin(angle)), 0.0, 0.0]

    def count_tokens(self, texts, kind):
        return [len(text.split()) for text in texts]

    def count_truncated(self, texts, kind):
        return 0

    def prepare_image(self, image):
        return image

    def encode_prepared(self, prepared):
        rows = []
        for image in prepared:
            pixel = image.getpixel((image.width // 2, image.height // 2))
            names = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 128, 0): "green"}
            shown = names.get(pixel, "yellow")
            rows.append([0.0, 0.0, 1.0, 0.0] if image is CATS else self._row(f"a {shown} thing"))
        return np.array(rows, dtype=np.float32)


def by_name(encoder: Encoder, cats: Image.Image | None = None, folder: str = "clip"):
    checkpoint = Checkpoint(encoder.name, Path(folder))
    found = check_encoder(encoder, lambda: encoder, [checkpoint], cats=cats)
    return {each.what: each for each in found}


@pytest.mark.parametrize(("off", "passed"), [(0.0, True), (2e-4, False)])
def test_published_answers_are_compared_to_their_tolerance(off: float, passed: bool) -> None:
    [first, *others] = by_name(Known("openai/clip-vit-base-patch32", off), CATS).values()

    assert (first.passed, first.detail.endswith("allowed 0.0001")) == (passed, True)
    assert all(each.passed for each in others)


def test_an_answer_that_needs_the_photograph_is_not_tried_without_it() -> None:
    [first, *_] = by_name(Known("openai/clip-vit-base-patch32")).values()

    assert first.passed is None
    assert "--image" in first.detail


def test_a_downloaded_folder_goes_by_its_own_name() -> None:
    assert published_answers(Known("/models/clip-vit-base-patch32"))
    assert not published_answers(Known("/models/my-own-clip"))


def test_logits_take_the_checkpoints_own_scale_and_bias(tmp_path: Path) -> None:
    cosines = {"cats": 0.05, "dogs": -0.04}
    scale = (-0.7567 + 10.3354) / (cosines["cats"] - cosines["dogs"])
    bias = -0.7567 - scale * cosines["cats"]
    numbers = {"logit_scale": np.log(scale), "logit_bias": bias}
    file = tmp_path / "model.safetensors"
    save_file({key: np.array([value], np.float32) for key, value in numbers.items()}, file)

    class Siglip(Known):
        def _row(self, text):
            if text.startswith("a photo of 2 "):
                cosine = cosines[text.rpartition(" ")[2]]
                return [0.0, 0.0, cosine, float(np.sqrt(1 - cosine**2))]
            return super()._row(text)

    [first, *_] = by_name(
        Siglip("google/siglip-base-patch16-224"), CATS, folder=str(tmp_path)
    ).values()

    assert first.passed, first.detail


def test_batches_that_differ_from_singles_fail() -> None:
    found = by_name(Known("my/own", batch_matters=True))

    assert found["texts in a batch and one by one"].passed is False
    assert found["images in a batch and one by one"].passed is True


def test_a_model_that_tells_nothing_apart_fails() -> None:
    class Same(Known):
        def _row(self, text):
            return [1.0, 0.0, 0.0, 0.0]

    [last] = [
        each for what, each in by_name(Same("my/own")).items() if "matched pairs above" in what
    ]
    assert last.passed is False


def test_a_reranker_is_tested_by_its_own_modalities() -> None:
    class Longest(PairScorer):
        name, licence = "longest", None
        modalities = frozenset({"text"})

        def prepare(self, item):
            return item

        def score_prepared(self, query, documents):
            asked = set(query.lower().strip("?").split())
            told = [set(each.lower().strip(".").split()) for each in documents]
            return np.array([len(asked & each) for each in told], dtype=np.float32)

        def to_probability(self, scores):
            return None

    same, matched = check_scorer(Longest())

    assert same.passed
    assert matched.passed, matched.detail


def test_speed_counts_whole_batches() -> None:
    texts, images = speeds(Known("my/own"), batch=4, seconds=0.0)

    assert (texts.batch, images.what) == (4, "images")
    assert texts.per_second > 0


def test_the_drawn_images_are_as_their_captions_say() -> None:
    images, captions = drawn_shapes()

    assert len(images) == len(captions) == 8
    red = images[captions.index("a red circle")]
    assert red.getpixel((112, 112)) == (255, 0, 0)
    assert red.getpixel((45, 45)) == (255, 255, 255)  # a square would be red there
