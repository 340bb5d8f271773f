"""Checks whether a model works on this machine: by published outputs, and by a self-test."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from llama_index_gap.evaluation.published import CATS, published_answers
from llama_index_gap.models.base import Encoder, PairScorer
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

Matrix: TypeAlias = npt.NDArray[np.floating]
# A batch and single inputs may differ by rounding only: float32 has 24 bits, bfloat16 has 8.
_SAME = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}
_LENGTH = 1e-3  # how far the length of a vector may differ from 1
_SHUFFLES = 2_000
_CHANCE = 0.05
_COLOURS = ("red", "blue", "green", "yellow")
_SHAPES = ("circle", "square")
_QUESTIONS = (
    ("What colour is the sky on a clear day?", "On a clear day the sky is blue."),
    ("How many legs does a spider have?", "Spiders walk on eight legs."),
    ("Where do penguins live?", "Penguins live in the far south, on ice and rocks."),
    ("What is bread made of?", "Bread is made of flour, water, salt and yeast."),
    ("Who flies an aeroplane?", "An aeroplane is flown by its pilot."),
    ("Which month comes after June?", "July comes after June."),
    ("What do cows eat?", "Cows eat grass and hay."),
    ("How does a ship float?", "A ship floats because it pushes water aside."),
)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        passed: whether it passed; None if it could not be checked.
        detail: the figures, or why it could not be checked.
    """

    what: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Speed:
    """The speed of a model on this machine.

    Attributes:
        what: what was counted.
        per_second: how many per second.
        batch: how many in a batch.
    """

    what: str
    per_second: float
    batch: int


def check_encoder(
    encoder: Encoder,
    plain: Callable[[], Encoder],
    checkpoints: Sequence[Checkpoint],
    *,
    dtype: str = "float32",
    cats: Image.Image | None = None,
) -> list[Finding]:
    """Compare an encoder with its published outputs, and run a self-test.

    Args:
        encoder: the encoder, as the library loads it.
        plain: loads it without prompts; called if an output was published without prompts.
        checkpoints: the checkpoints that it was loaded from.
        dtype: the number format of its weights.
        cats: COCO's photograph, if the user has it.

    Returns:
        First the comparisons with published outputs, if there are any. Then whether a batch equals
        single inputs, vectors have length 1, and matched pairs score above mismatched ones.
    """
    findings = []
    for known in published_answers(encoder):
        if known.needs_cats and cats is None:
            findings.append(Finding(known.question, None, f"pass --image, {CATS}"))
            continue
        asked = plain() if known.plain_texts else encoder
        name = known.checkpoint.rpartition("/")[2]
        checkpoint = next(
            each
            for each in checkpoints
            if each.folder.name == name or each.name.rpartition("/")[2] == name
        )
        found = known.answer(asked, checkpoint, cats)
        difference = float(np.abs(found - np.asarray(known.expected)).max())
        detail = f"largest difference {difference:.2g}, allowed {known.tolerance:g}"
        findings.append(Finding(known.question, difference <= known.tolerance, detail))
    embedded: dict[str, tuple[Matrix, Matrix]] = {}
    images, captions = drawn_shapes()
    if "text" in encoder.modalities:
        texts = [text for pair in _QUESTIONS for text in pair]
        embedded["texts"] = (
            encoder.encode_text(texts, "document"),
            np.concatenate([encoder.encode_text([text], "document") for text in texts]),
        )
    if "image" in encoder.modalities:
        embedded["images"] = (
            encoder.encode_images(images),
            np.concatenate([encoder.encode_images([image]) for image in images]),
        )
    for kind, (together, alone) in embedded.items():
        findings.append(_same(f"{kind} in a batch and one by one", together, alone, dtype))
        off = float(np.abs(np.linalg.norm(together, axis=1) - 1).max())
        detail = f"off by {off:.2g} at most, allowed {_LENGTH:g}"
        findings.append(Finding(f"vectors of {kind} have length 1", off <= _LENGTH, detail))
    if encoder.modalities == {"text", "image"}:
        scores = encoder.encode_text(captions, "query") @ embedded["images"][0].T
        findings.append(_matched("drawn shapes and what they show", scores))
    elif "text" in encoder.modalities:
        queries = encoder.encode_text([query for query, _ in _QUESTIONS], "query")
        answers = encoder.encode_text([answer for _, answer in _QUESTIONS], "document")
        findings.append(_matched("questions and their answers", queries @ answers.T))
    else:
        mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
        scores = encoder.encode_images(mirrored) @ embedded["images"][0].T
        findings.append(_matched("drawn shapes and their mirror images", scores))
    return findings


def check_scorer(scorer: PairScorer, *, dtype: str = "float32") -> list[Finding]:
    """Run a self-test of a reranker, as ``check_encoder`` does.

    Args:
        scorer: the reranker's scorer, as the library loads it.
        dtype: the number format of its weights.
    """
    findings = []
    images, captions = drawn_shapes()
    pairs: dict[str, tuple[list[Any], list[Any]]] = {}
    if "text" in scorer.modalities and "text" in scorer.document_modalities:
        queries, answers = map(list, zip(*_QUESTIONS, strict=True))
        pairs["questions and their answers"] = (queries, answers)
    if "text" in scorer.modalities and "image" in scorer.document_modalities:
        pairs["drawn shapes and what they show"] = (captions[::2], images[::2])
    for what, (queries, documents) in pairs.items():
        scores = np.stack([scorer.score(query, documents) for query in queries])
        alone = np.concatenate([scorer.score(queries[0], [each]) for each in documents])
        findings.append(_same(f"{what}: in a batch and one by one", scores[0], alone, dtype))
        findings.append(_matched(what, scores))
    return findings


def speeds(encoder: Encoder, batch: int = 16, seconds: float = 2.0) -> list[Speed]:
    """Measure the speed of an encoder on this machine, without decoding images.

    Args:
        encoder: any encoder.
        batch: texts or images per batch.
        seconds: how long to measure each modality; at least one batch is measured.
    """
    images, _ = drawn_shapes()
    text = " ".join(f"{question} {answer}" for question, answer in _QUESTIONS)
    found = []
    if "text" in encoder.modalities:
        found.append(
            _speed(
                f"texts of {len(text.split())} words",
                batch,
                seconds,
                lambda: encoder.encode_text([text] * batch, "document"),
            )
        )
    if "image" in encoder.modalities:
        many = (images * math.ceil(batch / len(images)))[:batch]
        found.append(_speed("images", batch, seconds, lambda: encoder.encode_images(many)))
    return found


def drawn_shapes() -> tuple[list[Image.Image], list[str]]:
    """Draw eight images; returns them with captions."""
    images, captions = [], []
    for colour in _COLOURS:
        for shape in _SHAPES:
            image = Image.new("RGB", (224, 224), "white")
            draw = ImageDraw.Draw(image)
            outline = draw.ellipse if shape == "circle" else draw.rectangle
            outline((40, 40, 184, 184), fill=colour)
            images.append(image)
            captions.append(f"a {colour} {shape}")
    return images, captions


def _speed(what: str, batch: int, seconds: float, run: Callable[[], object]) -> Speed:
    run()  # the first run also allocates memory
    started, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - started < seconds:
        run()
        times += 1
    return Speed(what, times * batch / (time.perf_counter() - started), batch)


def _same(what: str, one: Matrix, other: Matrix, dtype: str) -> Finding:
    allowed = _SAME[dtype] * max(1.0, float(np.abs(one).max()))
    difference = float(np.abs(one - other).max())
    detail = f"largest difference {difference:.2g}, allowed {allowed:.2g} in {dtype}"
    return Finding(what, difference <= allowed, detail)


def _matched(what: str, scores: Matrix) -> Finding:
    """Whether matched pairs, on the diagonal, score higher than shuffled ones."""
    count = len(scores)
    own = np.trace(scores) / count
    others = (scores.sum() - np.trace(scores)) / (count * (count - 1))
    # Ranks within each row, so that a single outlying score does not decide.
    ranks = scores.argsort(axis=1).argsort(axis=1)
    rng = np.random.default_rng(0)
    rows = np.arange(count)
    shuffled = np.array([ranks[rows, rng.permutation(count)].sum() for _ in range(_SHUFFLES)])
    as_high = float((shuffled >= np.trace(ranks)).mean())
    first = int((scores.argmax(axis=1) == rows).sum())
    detail = (
        f"{own:.3f} against {others:.3f}; {first} of {count} come first; {as_high:.1%} of shuffles "
        f"rank as high, allowed {_CHANCE:.0%}"
    )
    return Finding(f"{what}: matched pairs above mismatched ones", as_high <= _CHANCE, detail)
