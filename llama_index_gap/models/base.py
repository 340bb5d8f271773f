"""The interfaces of a loaded checkpoint: Encoder and PairScorer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from llama_index_gap.errors import GapError, InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.modality import Kind, Modality

if TYPE_CHECKING:
    from typing import Self

    from PIL.Image import Image


class ModelError(GapError, RuntimeError):
    """A checkpoint that cannot be found, trusted, loaded or used."""


class Encoder(ABC):
    """A loaded checkpoint that turns texts, images or both into vectors of one space.

    Methods may be called from several threads. Weights never change after loading, so copying an
    encoder returns the encoder itself.

    Attributes:
        name: the hub name or folder of its checkpoint; two names are joined by ``" + "``.
        licence: the licence that the model card states, such as ``"mit"``; None if it states none.
        dimension: length of a vector.
        modalities: the modalities that it can encode.
        max_text_tokens: longest text, in tokens, including prompt and special tokens; None if the
            checkpoint states no limit.
        shares_text_space: whether its image vectors may be compared with text vectors, its own or
            those of another encoder that was trained with it.
    """

    name: str
    licence: str | None
    dimension: int
    modalities: frozenset[Modality]
    max_text_tokens: int | None
    shares_text_space: bool = True

    @abstractmethod
    def encode_text(self, texts: Sequence[str], kind: Kind) -> VectorArray:
        """Encode a batch of texts; texts longer than ``max_text_tokens`` lose their end.

        Args:
            texts: n texts.
            kind: whether they are queries or documents; selects the prompt.

        Returns:
            Array of shape (n, dimension), rows of length 1.
        """

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> list[int] | None:
        """Count the tokens of each text, including prompt and special tokens.

        Args:
            texts: n texts.
            kind: whether they are queries or documents; selects the prompt.

        Returns:
            n lengths; None, the default, if the model has no tokenizer that can count.
        """
        return None

    def count_truncated(self, texts: Sequence[str], kind: Kind) -> int:
        """Count the texts that ``encode_text`` would cut."""
        lengths, limit = self.count_tokens(texts, kind) or [], self.max_text_tokens
        return sum(limit is not None and length > limit for length in lengths)

    @abstractmethod
    def prepare_image(self, image: Image) -> Any:
        """Prepare an RGB image for ``encode_prepared``.

        Does not need the model, may run in any number of threads, and does not change the image.
        """

    @abstractmethod
    def encode_prepared(self, prepared: Sequence[Any]) -> VectorArray:
        """Encode a batch of prepared images.

        Args:
            prepared: n results of ``prepare_image``.

        Returns:
            Array of shape (n, dimension), rows of length 1.
        """

    def encode_images(self, images: Sequence[Image]) -> VectorArray:
        """Encode a batch of n RGB images; returns shape (n, dimension), rows of length 1."""
        return self.encode_prepared([self.prepare_image(image) for image in images])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


@dataclass(frozen=True)
class LazyImage:
    """An image that is decoded only when its pixels are needed.

    Attributes:
        key: identifies the content, for example a hash of the file; equal keys mean equal pixels.
        open: decodes it into an RGB image.
    """

    key: str
    open: Callable[[], Image]


@dataclass(frozen=True)
class Joint:
    """A text and an image that a model reads together, as one query or one document."""

    text: str
    image: Image | LazyImage


Item: TypeAlias = "str | Image | LazyImage | Joint"


class PairScorer(ABC):
    """A model that reads a query and a document together and scores their relevance.

    Methods may be called from several threads.

    Attributes:
        name: its hub name or folder; for a service, model and host.
        licence: the licence that the model card states, such as ``"mit"``; None if it states none.
        modalities: the modalities that it can read.
        joint: whether it reads a ``Joint``, a text with an image, as one query or document.
    """

    name: str
    licence: str | None
    modalities: frozenset[Modality]
    joint: bool = False

    @property
    def document_modalities(self) -> frozenset[Modality]:
        """The ``modalities`` that a document may have; all of them, unless a model overrides it."""
        return self.modalities

    @abstractmethod
    def prepare(self, item: Item) -> Any:
        """Prepare a query or document for ``score_prepared``; may run in any number of threads.

        Decodes an image only if no earlier result for it is cached.

        Raises:
            ModelError: this model cannot read the item's modality.
        """

    @abstractmethod
    def score_prepared(self, query: Any, documents: Sequence[Any]) -> VectorArray:
        """Score documents against a query, both prepared.

        Returns:
            Array of shape (n,), in the order of the documents; higher is better. A document's score
            does not depend on the other documents.
        """

    def score(self, query: Item, documents: Sequence[Item]) -> VectorArray:
        """Score n documents against a query; returns shape (n,), higher is better."""
        return self.score_prepared(self.prepare(query), [self.prepare(item) for item in documents])

    def to_probability(self, scores: VectorArray) -> VectorArray | None:
        """Map scores to a scale from 0 to 1; None if the model defines no such scale."""
        return None

    def _refuse_unreadable(self, item: Item) -> None:
        """Raise ModelError if this model cannot read the item's modality."""
        is_joint = isinstance(item, Joint)
        needed = {"text", "image"} if is_joint else {"text" if isinstance(item, str) else "image"}
        if not needed <= self.modalities:
            raise ModelError(
                f"{self.name} reads only {' and '.join(sorted(self.modalities))}s; leave out the "
                "rest, or pass a model that reads texts and images"
            )
        if is_joint and not self.joint:
            raise ModelError(
                f"{self.name} reads a text or an image, not both together; pass one of them"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def check_at_least_one(**limits: int | None) -> None:
    """Raise ValueError for a limit under 1, and name it; None means no limit."""
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise InvalidValueError(f"{name}={limit}: must be at least 1")
