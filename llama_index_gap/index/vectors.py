"""Embeds inputs, and tells inputs that cannot be embedded from a model that fails."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, MetadataMode, TextNode
from PIL import Image

from llama_index_gap.errors import EmbeddingError, InvalidValueError
from llama_index_gap.images.opening import ImageError
from llama_index_gap.modality import CollectionName, Modality
from llama_index_gap.store.connection import one_line
from llama_index_gap.threads import stop_if_given_up

# The statuses by which services reject an input; any other status is about the service itself.
_REFUSED_INPUT = frozenset({400, 413, 415, 422})
# Parts of the names of errors in requests, httpx, openai, torch and others. These libraries are
# not imported here.
_OF_SERVICES = (
    *("Connect", "Timeout", "Transport", "RequestException", "RateLimit", "Authentication"),
    "OutOfMemory",
)
_MOST_CAUSES = 20
_PLAIN_TEXT = "a text"
_Vector = TypeVar("_Vector")


class PatientModel(Generic[_Vector]):
    """Asks a model for vectors, and finds out which inputs cannot be embedded.

    If a model fails on some inputs, it is asked to embed something that it certainly can. If it
    fails on that too, or if its error says that a service was unreachable, out of memory or
    refused access, the model itself fails, and no input is to blame. Otherwise the inputs are
    halved until those that cannot be embedded are found.

    Args:
        name: the name of the model, for messages.
        modality: the modality of the inputs.
        ask: returns a vector for each input; an ``EmbeddingError`` from it is passed on.
    """

    def __init__(
        self, name: str, modality: Modality, ask: Callable[[list[Any]], Sequence[_Vector]]
    ) -> None:
        self._name, self._modality, self._ask = name, modality, ask
        self._known: Any = None

    def vectors(self, inputs: list[Any]) -> list[_Vector | Exception]:
        """The vector of each input, or the error that explains why it has none.

        Args:
            inputs: texts or images.

        Raises:
            EmbeddingError: the model, or the service behind it, fails.
        """
        if not inputs:
            return []
        stop_if_given_up()
        try:
            found = list(self._ask(inputs))
        except EmbeddingError:
            raise
        except Exception as error:
            # Our own ImageError is about one image, never about the model.
            if not isinstance(error, ImageError) and (
                _of_service(error) or not self._answers(inputs)
            ):
                reason = f"{type(error).__name__}: {one_line(error)}"
                raise EmbeddingError(f"{self._name}: {reason}") from error
            if len(inputs) == 1:
                return [error]
            half = len(inputs) // 2
            return [*self.vectors(inputs[:half]), *self.vectors(inputs[half:])]
        if len(found) != len(inputs):
            raise EmbeddingError(
                f"{self._name}: returned {len(found)} vectors for {len(inputs)} inputs"
            )
        self._known = inputs[-1]
        return [*found]

    def _answers(self, inputs: list[Any]) -> bool:
        """Whether the model embeds an earlier input again, or an input that any model can embed.

        If it has embedded nothing yet, the last of several inputs is tried too.
        """
        with tempfile.TemporaryDirectory() as folder:
            plain = _PLAIN_TEXT
            if self._modality == "image":
                plain = str(Path(folder) / "grey.png")
                Image.effect_noise((224, 224), 64).convert("RGB").save(plain)
            tried = [plain, *inputs[1:][-1:]] if self._known is None else [self._known]
            for each in tried:
                with suppress(Exception):
                    if len(self._ask([each])) == 1:
                        # The plain image is in a temporary folder, so it cannot serve again.
                        if self._modality == "text" or each is not plain:
                            self._known = each
                        return True
        return False


class RowEmbedder:
    """Embeds the rows of one collection.

    Args:
        name: the name of the collection.
        model: the model that embeds its rows.
        dim: the dimension of the vectors.
        skip: receives each row that cannot be embedded, and the reason.
    """

    def __init__(
        self,
        name: CollectionName,
        model: BaseEmbedding,
        dim: int,
        skip: Callable[[TextNode, Exception], None],
    ) -> None:
        self._name, self._model, self._dim, self._skip = name, model, dim, skip
        modality: Modality = "text" if name == "text" else "image"
        self._patient = PatientModel(model.model_name, modality, self._vectors)

    def embed(self, rows: Sequence[TextNode]) -> list[TextNode]:
        """Copies of the rows with their vectors, without rows that cannot be embedded.

        Args:
            rows: rows with a text, or with an image in a file or at a URL; never changed.

        Raises:
            EmbeddingError: the model, or the service behind it, fails.
        """
        inputs: list[Any] = []
        shown: list[TextNode] = []
        for row in rows:
            try:
                inputs.append(_input_of(self._name, row))
                shown.append(row)
            except (ValueError, RecursionError) as error:  # its metadata cannot be written out
                self._skip(row, error)
        embedded: list[TextNode] = []
        for row, vector in zip(shown, self._patient.vectors(inputs), strict=True):
            if isinstance(vector, Exception):
                self._skip(row, vector)
            else:
                embedded.append(row.model_copy(update={"embedding": vector}))
        return embedded

    def _vectors(self, inputs: list[Any]) -> list[list[float]]:
        if self._name == "text":
            vectors = self._model.get_text_embedding_batch(inputs)
        else:
            model = cast(MultiModalEmbedding, self._model)
            vectors = model.get_image_embedding_batch(inputs)
        for vector, each in zip(vectors, inputs, strict=False):
            if len(vector) != self._dim:
                raise EmbeddingError(
                    f"{self._model.model_name}: returned a vector of {len(vector)} dimensions, but "
                    f"the index has {self._dim}; use the model that it was built with"
                )
            if not 0 < np.linalg.norm(np.asarray(vector, dtype=np.float64)) < np.inf:
                raise InvalidValueError(f"its vector has no direction ({str(each)[:60]!r})")
        return vectors


def _input_of(name: CollectionName, row: TextNode) -> Any:
    if name == "text":
        return row.get_content(MetadataMode.EMBED)
    assert isinstance(row, ImageNode)
    return row.image_path or row.image_url


def _of_service(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that the model or service itself failed."""
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
