"""Modalities, and the legs of a search between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Modality: TypeAlias = Literal["text", "image"]
Kind: TypeAlias = Literal["query", "document"]
CollectionName: TypeAlias = Literal["text", "image", "image_query"]
"""A collection of an index; ``image_query`` holds its images as image queries search them."""

MODALITIES: tuple[Modality, Modality] = ("text", "image")
PLURAL = {"text": "texts", "image": "images", "image_query": "image queries"}
"""What people call what a collection holds, or is for."""


@dataclass(frozen=True)
class Leg:
    """One search: a query of one modality, asked of one collection.

    Attributes:
        query: the modality of the query.
        target: the modality of what is found.
    """

    query: Modality
    target: Modality

    @property
    def name(self) -> str:
        """The key of its score in ``ScoredNode.scores``, such as ``image_by_image``."""
        return self.target if self.query == "text" else f"{self.target}_by_image"

    @property
    def pair(self) -> str:
        """Its pair of modalities as calibrators name it, such as ``text_to_image``."""
        return f"{self.query}_to_{self.target}"

    @property
    def title(self) -> str:
        """The leg as people call it, such as ``image by image``."""
        return self.name.replace("_", " ")


LEGS = tuple(Leg(query, target) for query in MODALITIES for target in MODALITIES)
"""All legs that there are."""
