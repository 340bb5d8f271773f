"""The vectors of rows, where a node that cannot be embedded is told from a model that fails."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, MetadataMode, TextNode
from PIL import Image

from llama_index_gap.errors import EmbeddingError, InvalidValueError
from llama_index_gap.images.opening import ImageError
from llama_index_gap.modality import CollectionName
from llama_index_gap.store.connection import one_line
from llama_index_gap.threads import stop_if_given_up

# What services answer to an input that they refuse; any other status is about themselves.
_REFUSED_INPUT = frozenset({400, 413, 415, 422})
# In the names of errors of requests, httpx, openai, torch and others, which are not imported here.
_OF_SERVICES = (
    *("Connect", "Timeout", "Transport", "RequestException", "RateLimit", "Authentication"),
    "OutOfMemory",
)
_MOST_CAUSES = 20
_PLAIN_TEXT = "a text"


class RowEmbedder:
    """Embeds the rows of one collection.

    Where a model fails with some rows, it is asked for something that it can embed for certain.
    If it fails with that too, or if its error says that a service was not reached, ran out of
    memory or was not allowed, it is the model that fails, and nothing is skipped. Else the rows
    are halved until those are found that cannot be embedded.

    Args:
        name: of the collection.
        model: embeds its rows.
        dim: how many numbers a vector has.
        skip: is told a row that cannot be embedded, and why.
    """

    def __init__(
        self,
        name: CollectionName,
        model: BaseEmbedding,
        dim: int,
        skip: Callable[[TextNode, Exception], None],
    ) -> None:
        self._name, self._model, self._dim, self._skip = name, model, dim, skip
        self._known: Any = None

    def embed(self, rows: Sequence[TextNode]) -> list[TextNode]:
        """Copies of rows with their vectors, without those that cannot be embedded.

        Args:
            rows: with a text, or with an image in a file or at a URL; never changed.

        Raises:
            EmbeddingError: the model fails, or the service behind it.
        """
        inputs: list[Any] = []
        kept: list[TextNode] = []
        for row in rows:
            try:
                inputs.append(_input_of(self._name, row))
                kept.append(row)
            except (ValueError, RecursionError) as error:  # its metadata cannot be shown
                self._skip(row, error)
        return self._embedded(kept, inputs)

    def _embedded(self, rows: list[TextNode], inputs: list[Any]) -> list[TextNode]:
        if not rows:
            return []
        stop_if_given_up()
        try:
            vectors = self._vectors(inputs)
        except EmbeddingError:
            raise
        except Exception as error:
            # An ImageError is our own, about one image.
            if not isinstance(error, ImageError) and (_of_service(error) or not self._answers()):
                model = self._model.model_name
                raise EmbeddingError(
                    f"{model}: {type(error).__name__}: {one_line(error)}"
                ) from error
            if len(rows) == 1:
                self._skip(rows[0], error)
                return []
            half = len(rows) // 2
            return [
                *self._embedded(rows[:half], inputs[:half]),
                *self._embedded(rows[half:], inputs[half:]),
            ]
        self._known = inputs[-1]
        return [
            row.model_copy(update={"embedding": vector})
            for row, vector in zip(rows, vectors, strict=True)
        ]

    def _vectors(self, inputs: list[Any]) -> list[list[float]]:
        if self._name == "text":
            vectors = self._model.get_text_embedding_batch(inputs)
        else:
            model = cast(MultiModalEmbedding, self._model)
            vectors = model.get_image_embedding_batch(inputs)
        if len(vectors) != len(inputs):
            raise EmbeddingError(
                f"{self._model.model_name}: gave {len(vectors)} vectors for {len(inputs)} inputs"
            )
        for vector, each in zip(vectors, inputs, strict=True):
            if len(vector) != self._dim:
                raise EmbeddingError(
                    f"{self._model.model_name}: gave a vector of {len(vector)} dimensions, and the "
                    f"index holds vectors of {self._dim}; use the model that it was built with"
                )
            if not 0 < np.linalg.norm(np.asarray(vector, dtype=np.float64)) < np.inf:
                raise InvalidValueError(f"its vector has no direction ({str(each)[:60]!r})")
        return vectors

    def _answers(self) -> bool:
        """Whether the model embeds what it has embedded before, or what any model can."""
        with tempfile.TemporaryDirectory() as folder:
            known = self._known
            if known is None and self._name == "text":
                known = _PLAIN_TEXT
            elif known is None:
                known = str(Path(folder) / "grey.png")
                Image.effect_noise((224, 224), 64).convert("RGB").save(known)
            try:
                self._vectors([known])
            except Exception:
                return False
        return True


def _input_of(name: CollectionName, row: TextNode) -> Any:
    if name == "text":
        return row.get_content(MetadataMode.EMBED)
    assert isinstance(row, ImageNode)
    return row.image_path or row.image_url


def _of_service(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that a model or service failed as such."""
    for _ in range(_MOST_CAUSES):
        if error is None:
            return False
        answer = getattr(error, "response", None)
        status = getattr(error, "status_code", None) or getattr(answer, "status_code", None)
        if isinstance(status, int):
            return status not in _REFUSED_INPUT
        if isinstance(error, (ConnectionError, TimeoutError, MemoryError)):
            return True
        names = [kind.__name__ for kind in type(error).__mro__]
        if any(word in name for name in names for word in _OF_SERVICES):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
