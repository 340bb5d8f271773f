"""Modalities, and the legs of a search between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Modality: TypeAlias = Literal["text", "image"]
Kind: TypeAlias = Literal["query", "document"]
"""The role of an input when it is embedded: many models embed queries and documents differently."""
CollectionName: TypeAlias = Literal["text", "image", "image_query"]
"""``image_query`` holds the same images, embedded by the model for image queries."""

MODALITIES: tuple[Modality, Modality] = ("text", "image")
PLURAL = {"text": "texts", "image": "images", "image_query": "image queries"}
"""Plural nouns for messages, by collection."""


@dataclass(frozen=True)
class Leg:
    """One search: a query of one modality in one collection.

    Attributes:
        query: the modality of the query.
        target: the modality of its hits.
    """

    query: Modality
    target: Modality

    @property
    def name(self) -> str:
        """The key of its score in ``ScoredNode.scores``, such as ``image_by_image``."""
        return self.target if self.query == "text" else f"{self.target}_by_image"

    @property
    def pair(self) -> str:
        """The pair of modalities, in the form that calibrators use, such as ``text_to_image``."""
        return f"{self.query}_to_{self.target}"

    @property
    def title(self) -> str:
        """The name for people, such as ``image by image``."""
        return self.name.replace("_", " ")


LEGS = tuple(Leg(query, target) for query in MODALITIES for target in MODALITIES)
"""All four legs."""
