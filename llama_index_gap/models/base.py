"""The contracts between a checkpoint and the rest of the package: Encoder and PairScorer."""

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

    Methods may be called from several threads. Weights are never changed after loading, so
    copies of an encoder are the encoder itself.

    Attributes:
        name: the hub name or folder of its checkpoint; joined by ``" + "`` where there are two.
        licence: what the checkpoint's model card says, for example ``"mit"``; None if it has none.
        dimension: length of a vector.
        modalities: what it can encode.
        max_text_tokens: longest text, in tokens, prompt and special tokens included; None if the
            checkpoint states no limit.
        shares_text_space: whether its images may be compared with texts, its own or those of
            another encoder that was trained with it.
    """

    name: str
    licence: str | None
    dimension: int
    modalities: frozenset[Modality]
    max_text_tokens: int | None
    shares_text_space: bool = True

    @abstractmethod
    def encode_text(self, texts: Sequence[str], kind: Kind) -> VectorArray:
        """Encode a batch of texts; what exceeds ``max_text_tokens`` is cut off.

        Args:
            texts: n texts.
            kind: whether they are queries or documents; decides the prompt.

        Returns:
            Array of shape (n, dimension), rows of length 1.
        """

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> list[int] | None:
        """The length of each text in tokens, prompt and special tokens included.

        Args:
            texts: n texts.
            kind: whether they are queries or documents; decides the prompt.

        Returns:
            n lengths; None where the model has no tokenizer that could count, as by default.
        """
        return None

    def count_truncated(self, texts: Sequence[str], kind: Kind) -> int:
        """How many of these texts ``encode_text`` would cut."""
        lengths, limit = self.count_tokens(texts, kind) or [], self.max_text_tokens
        return sum(limit is not None and length > limit for length in lengths)

    @abstractmethod
    def prepare_image(self, image: Image) -> Any:
        """Turn an RGB image into what ``encode_prepared`` takes: the part that threads can do.

        Does not need the model, may run in any number of threads, and leaves the image as it is.
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
    """An image that is decoded only where its pixels are needed.

    Attributes:
        key: stands for its content, such as a hash of its file: equal keys, equal pixels.
        open: decodes it into an RGB image.
    """

    key: str
    open: Callable[[], Image]


@dataclass(frozen=True)
class Joint:
    """A text and an image that are read together, as one query or one document."""

    text: str
    image: Image | LazyImage


Item: TypeAlias = "str | Image | LazyImage | Joint"


class PairScorer(ABC):
    """A model that reads a query and a document together and says how well they fit.

    Methods may be called from several threads.

    Attributes:
        name: the hub name, folder or service that it is.
        licence: what the checkpoint's model card says, for example ``"mit"``; None if it has none.
        modalities: what it can read.
        joint: whether it reads a ``Joint``, a text with an image, as one query or document.
    """

    name: str
    licence: str | None
    modalities: frozenset[Modality]
    joint: bool = False

    @property
    def document_modalities(self) -> frozenset[Modality]:
        """Those of ``modalities`` that a document may be of; all, unless the model says less."""
        return self.modalities

    @abstractmethod
    def prepare(self, item: Item) -> Any:
        """Turn a query or document into what ``score_prepared`` takes: the part threads can do.

        Decodes an image only where nothing is kept of it from before.

        Raises:
            ModelError: the item is of a modality that this model cannot read.
        """

    @abstractmethod
    def score_prepared(self, query: Any, documents: Sequence[Any]) -> VectorArray:
        """Score documents against a query, both prepared.

        Returns:
            Array of shape (n,), in the order of the documents; higher is better. A document's score
            does not depend on the others.
        """

    def score(self, query: Item, documents: Sequence[Item]) -> VectorArray:
        """Score n documents against a query; returns shape (n,), higher is better."""
        return self.score_prepared(self.prepare(query), [self.prepare(item) for item in documents])

    def to_probability(self, scores: VectorArray) -> VectorArray | None:
        """The scores on a scale from 0 to 1; None where the model knows no such scale."""
        return None

    def _refuse_unreadable(self, item: Item) -> None:
        """Raise ModelError for an item of a modality that this model cannot read."""
        is_joint = isinstance(item, Joint)
        needed = {"text", "image"} if is_joint else {"text" if isinstance(item, str) else "image"}
        if not needed <= self.modalities:
            raise ModelError(
                f"{self.name} reads {' and '.join(sorted(self.modalities))}s only; leave the rest "
                "out, or pass a model that reads texts and images"
            )
        if is_joint and not self.joint:
            raise ModelError(
                f"{self.name} reads a text or an image, not both as one; pass one of them"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def check_at_least_one(**limits: int | None) -> None:
    """Raise ValueError for a limit under 1, by its name; None is no limit."""
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise InvalidValueError(f"{name}={limit}: must be at least 1")
