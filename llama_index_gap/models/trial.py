"""Tries a loaded model once, so that a broken checkpoint fails while it is loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from llama_index_gap.errors import GapError
from llama_index_gap.models.base import Encoder, ModelError, PairScorer
from llama_index_gap.models.checkpoints.checkpoint import first_line

_SIDE = 64
_MOST_PIXELS = 2**24  # the most that an image processor may make of it
_PATCHING = threading.Lock()


def try_encoder(encoder: Encoder) -> None:
    """Encode a short text and a small image.

    Raises:
        ModelError: encoding fails, gives NaN or infinity, or does not give the dimension that the
            encoder states.
    """
    with as_model_errors(encoder.name), _no_huge_images(encoder.name):
        vectors = []
        if "image" in encoder.modalities:
            vectors.append(encoder.encode_images([_image()]))
        if "text" in encoder.modalities:
            vectors.append(encoder.encode_text(["a"], "query"))
        for each in vectors:
            if each.shape != (1, encoder.dimension):
                raise ModelError(
                    f"{encoder.name}: states {encoder.dimension} dimensions, but its vectors have "
                    f"{each.shape[-1]}; download the checkpoint again"
                )
            if not np.isfinite(each).all():
                raise ModelError(
                    f"{encoder.name}: its vectors hold NaN or infinity; download the checkpoint "
                    "again"
                )


def try_scorer(scorer: PairScorer) -> None:
    """Score a short text and a small image against a short query.

    Raises:
        ModelError: scoring fails, or a score is NaN or infinite.
    """
    with as_model_errors(scorer.name), _no_huge_images(scorer.name):
        query = "a" if "text" in scorer.modalities else _image()
        for modality in sorted(scorer.document_modalities):
            scores = scorer.score(query, ["a" if modality == "text" else _image()])
            if not np.isfinite(scores).all():
                raise ModelError(
                    f"{scorer.name}: its scores are NaN or infinite; download the checkpoint again"
                )


def _image() -> Image.Image:
    return Image.new("RGB", (_SIDE, _SIDE), "gray")


@contextmanager
def as_model_errors(name: str) -> Iterator[None]:
    """Turn the errors of libraries about a broken checkpoint into a ModelError of one line."""
    try:
        yield
    except GapError:
        raise
    except Exception as error:  # each library has its own classes
        raise ModelError(
            f"{name}: its files do not make a working model ({type(error).__name__}: "
            f"{first_line(error)}); download the checkpoint again"
        ) from error


@contextmanager
def _no_huge_images(name: str) -> Iterator[None]:
    """Stop image processors from enlarging a small image to gigabytes, in this thread."""
    here = threading.get_ident()
    original = Image.Image.resize

    def resize(self: Image.Image, size: Any, *args: Any, **kwargs: Any) -> Image.Image:
        width, height = size
        if threading.get_ident() == here and width * height > _MOST_PIXELS:
            raise ModelError(
                f"{name}: its image processor enlarges an image from {self.width}×{self.height} to "
                f"{width:,}×{height:,} pixels; download the checkpoint again, or correct the sizes "
                "in its preprocessor_config.json"
            )
        return original(self, size, *args, **kwargs)

    with _PATCHING:
        Image.Image.resize = resize  # type: ignore[method-assign]
        try:
            yield
        finally:
            Image.Image.resize = original  # type: ignore[method-assign]
