"""Published outputs of models, to check whether a model loads correctly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from llama_index_gap.models.base import Encoder
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

CATS = "COCO's cats (val2017, 000000039769.jpg)"
"""The photograph that most vision models use as their example; not part of this package."""


@dataclass(frozen=True)
class PublishedAnswer:
    """A published output of a checkpoint, and how to compute it.

    Attributes:
        checkpoint: the name on the hub.
        question: what is computed, in words.
        expected: the published numbers.
        tolerance: the largest allowed absolute difference of any number.
        answer: computes the numbers with an encoder; its image is the cats, or None if not needed.
        needs_cats: whether it needs the image.
        plain_texts: whether to embed texts without the model's prompts.
        source: where it was published.
    """

    checkpoint: str
    question: str
    expected: tuple[float, ...]
    tolerance: float
    answer: Callable[[Encoder, Checkpoint, Image | None], npt.NDArray[np.floating]]
    needs_cats: bool
    source: str
    plain_texts: bool = False


def published_answers(encoder: Encoder) -> list[PublishedAnswer]:
    """The published outputs for an encoder's checkpoints; a folder is matched by its last part.

    Args:
        encoder: the encoder; its name is that of its checkpoints, joined by ``" + "``.
    """
    names = {Path(name).name for name in encoder.name.split(" + ")}
    return [each for each in _ANSWERS if each.checkpoint.rpartition("/")[2] in names]


def _cosines(
    encoder: Encoder, cats: Image | None, texts: tuple[str, ...]
) -> npt.NDArray[np.floating]:
    assert cats is not None
    return np.asarray(encoder.encode_text(texts, "document") @ encoder.encode_images([cats])[0])


def _clip(encoder: Encoder, _: Checkpoint, cats: Image | None) -> npt.NDArray[np.floating]:
    return _cosines(encoder, cats, ("a photo of a cat", "a photo of a dog"))


def _siglip(
    encoder: Encoder, checkpoint: Checkpoint, cats: Image | None
) -> npt.NDArray[np.floating]:
    with safe_open(str(checkpoint.folder / "model.safetensors"), "np") as weights:
        scale, bias = weights.get_tensor("logit_scale"), weights.get_tensor("logit_bias")
    cosines = _cosines(encoder, cats, ("a photo of 2 cats", "a photo of 2 dogs"))
    return np.asarray(cosines * np.exp(float(scale[0])) + float(bias[0]))


def _dinov2(encoder: Encoder, _: Checkpoint, cats: Image | None) -> npt.NDArray[np.floating]:
    assert cats is not None
    vector = encoder.encode_images([cats])[0]
    # Ratios, since scaling to length 1 changes the published numbers themselves.
    return np.asarray(vector[1:3] / vector[0])


def _nomic_vector(encoder: Encoder, *_: object) -> npt.NDArray[np.floating]:
    return encoder.encode_text(["What is Deep Learning?"], "document")[0, :6]


def _nomic_cosine(encoder: Encoder, *_: object) -> npt.NDArray[np.floating]:
    both = encoder.encode_text(["What is Deep Learning?", "Deep Learning is..."], "document")
    return np.asarray(both[:1] @ both[1])


def _jina_clip(encoder: Encoder, *_: object) -> npt.NDArray[np.floating]:
    query = encoder.encode_text(["Which planet is known as the Red Planet?"], "query")[0]
    documents = (
        "Venus is often called Earth's twin because of its similar size and proximity.",
        "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
        "Jupiter, the largest planet in our solar system, has a prominent red spot.",
        "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
    )
    return np.asarray(encoder.encode_text(documents, "document") @ query)


_TRANSFORMERS = "transformers' own tests and documentation"
_ANSWERS = (
    PublishedAnswer(
        "openai/clip-vit-base-patch32",
        f'cosines of {CATS} with "a photo of a cat" and "a photo of a dog"',
        (0.245701, 0.193049),
        1e-4,
        _clip,
        needs_cats=True,
        source=_TRANSFORMERS,
    ),
    PublishedAnswer(
        "google/siglip-base-patch16-224",
        f'logits of {CATS} with "a photo of 2 cats" and "a photo of 2 dogs"',
        (-0.7567, -10.3354),
        1e-3,
        _siglip,
        needs_cats=True,
        source=_TRANSFORMERS,
    ),
    PublishedAnswer(
        "facebook/dinov2-base",
        f"second and third number of the vector of {CATS}, divided by the first",
        (-0.4729 / -2.1747, 1.0936 / -2.1747),
        1e-3,
        _dinov2,
        needs_cats=True,
        source=_TRANSFORMERS,
    ),
    PublishedAnswer(
        "nomic-ai/nomic-embed-text-v1.5",
        'first six numbers of the vector of "What is Deep Learning?"',
        (0.01147, 0.04016, -0.10982, -0.08722, 0.06077, 0.03839),
        1e-3,
        _nomic_vector,
        needs_cats=False,
        source=_TRANSFORMERS,
        plain_texts=True,
    ),
    PublishedAnswer(
        "nomic-ai/nomic-embed-text-v1.5",
        'cosine of "What is Deep Learning?" with "Deep Learning is..."',
        (0.93188,),
        1e-3,
        _nomic_cosine,
        needs_cats=False,
        source=_TRANSFORMERS,
        plain_texts=True,
    ),
    PublishedAnswer(
        "jinaai/jina-clip-v2",
        'cosines of "Which planet is known as the Red Planet?" with four documents',
        (0.40713, 0.7679, 0.67158, 0.65986),
        1e-2,  # published in bfloat16
        _jina_clip,
        needs_cats=False,
        source="sentence-transformers' tests",
    ),
)
