"""What a search found, document by document, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, NodeWithScore

from llama_index_gap.images.opening import ImageError, ImageSource, scaled_jpeg
from llama_index_gap.text import excerpt

_THUMBNAIL = 320
_LONGEST_TEXT = 450
_LEGS = {
    "text": "text",
    "image": "image",
    "text_by_image": "text by image",
    "image_by_image": "image by image",
}


_SIDES = {"text": "text", "image": "image"}


@dataclass(frozen=True)
class LegScore:
    """What one leg says of a document.

    Attributes:
        leg: as ``ScoredNode`` names it.
        raw: the best score there, as the database gives it.
        evidence: what this adds to the document's score; None where the leg did not find the
            document, so that it counts for nothing.
        sigma: standard deviations above what the query gets anyway, where it was ranked by that.
    """

    leg: str
    raw: float
    evidence: float | None
    sigma: float | None = None

    @property
    def name(self) -> str:
        """The leg as people call it."""
        return _LEGS.get(self.leg, self.leg)


@dataclass(frozen=True)
class FoundDocument:
    """A document with its place in the ranking.

    Attributes:
        rank: from 1.
        id: the document's.
        score: what the ranking goes by; None where a reranker could not read it.
        legs: where the score comes from, or, reranked, what it was found by.
        text: its best passage, or the caption that was found; None if it has none.
        image: its best image; None if it has none.
        reranked: what a reranker gave each side (``text``, ``image``); empty where none did.
        fused: the score that it was found with, before a reranker gave its own.
    """

    rank: int
    id: str
    score: float | None
    legs: list[LegScore]
    text: BaseNode | None
    image: ImageNode | None
    reranked: dict[str, float] = field(default_factory=dict)
    fused: float | None = None

    @property
    def title(self) -> str:
        """Its title, or else its id."""
        node = self.text or self.image
        return str(node.metadata.get("title") or self.id) if node else self.id

    @property
    def passage(self) -> str:
        """The text of its best passage."""
        return self.text.get_content(MetadataMode.NONE) if self.text else ""

    @property
    def caption(self) -> str:
        """The caption of its best image."""
        return self.image.text if self.image else ""

    @property
    def ratings(self) -> list[tuple[str, float]]:
        """What a reranker gave each side, with the side as people call it."""
        return [(_SIDES[side], score) for side, score in self.reranked.items()]

    def side(self, side: str) -> float | None:
        """What a side (``text`` or ``image``) brings to the score; None if it found nothing."""
        if self.reranked:
            return self.reranked.get(side)
        found = [
            leg.evidence
            for leg in self.legs
            if leg.evidence is not None and leg.leg.removesuffix("_by_image") == side
        ]
        return sum(found) if found else None


@dataclass(frozen=True)
class Answer:
    """A search and what it found.

    Attributes:
        text: what was asked; may be empty.
        image: the image that was asked with, if any.
        database: file or address.
        documents: best first.
        note: why the documents were ranked by another method than evidence; None if they were not.
        reranker: what ranked them anew; None if nothing did.
    """

    text: str
    image: str | None
    database: str
    documents: list[FoundDocument]
    note: str | None = None
    reranker: str | None = None

    def format(self, score: float | None) -> str:
        """A score of a leg or of its fusion, with the decimals that the method calls for."""
        if score is None:
            return "–"
        return f"{score:.2f}" if self.note is None else f"{score:.4f}"

    def format_rank(self, score: float | None) -> str:
        """A score that ranks the documents: of the reranker, if there is one."""
        if score is None or self.reranker is None:
            return self.format(score)
        return f"{score:.3f}"


def found_documents(hits: Sequence[NodeWithScore]) -> list[FoundDocument]:
    """The documents behind a retriever's hits, in their order.

    Args:
        hits: as ``DualIndexRetriever`` returns them: up to two nodes of each document.
    """
    grouped: dict[str, list[NodeWithScore]] = {}
    for hit in hits:
        grouped.setdefault(hit.node.ref_doc_id or hit.node.node_id, []).append(hit)
    return [_document(rank, key, group) for rank, (key, group) in enumerate(grouped.items(), 1)]


def _document(rank: int, key: str, hits: list[NodeWithScore]) -> FoundDocument:
    nodes = [hit.node for hit in hits]
    # The image leg's node comes last; the text leg's may be another image's caption.
    image = next((node for node in reversed(nodes) if isinstance(node, ImageNode)), None)
    scores: dict[str, float] = getattr(hits[0], "scores", {})
    return FoundDocument(
        rank=rank,
        id=key,
        score=hits[0].score,
        legs=[
            LegScore(leg, scores[leg], scores.get(f"{leg}_evidence"), scores.get(f"{leg}_sigma"))
            for leg in _LEGS
            if leg in scores
        ],
        text=next((node for node in nodes if node is not image), None),
        image=image,
        reranked={side: scores[f"rerank_{side}"] for side in _SIDES if f"rerank_{side}" in scores},
        fused=scores.get("retrieval", hits[0].score),
    )


# --- the page ------------------------------------------------------------------------------------


def render_page(answer: Answer) -> str:
    """Write an answer as an HTML page.

    Args:
        answer: what to show. An image that cannot be opened leaves its reason in its place.
    """
    evidence = [leg.evidence or 0.0 for document in answer.documents for leg in document.legs]
    return render(
        "page",
        answer=answer,
        most=max(evidence, default=0.0) or 1.0,
        asked_with=thumbnail(answer.image) if answer.image else None,
        shown=[
            (document, thumbnail(document.image) if document.image else None)
            for document in answer.documents
        ],
        excerpt=lambda text: excerpt(text, _LONGEST_TEXT),
        file_name=_file_name,
    )


def render(template: str, **content: Any) -> str:
    """Write a page that holds its images and its style.

    It runs no script and fetches nothing: its content security policy forbids it.

    Args:
        template: its name; a ``.html`` and a ``.css`` in the package's ``templates``.
        **content: what the template asks for; texts are escaped.
    """
    templates = Environment(
        loader=PackageLoader("llama_index_gap.cli.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = templates.get_template(f"{template}.css").render()
    return templates.get_template(f"{template}.html").render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        **content,
    )


@dataclass(frozen=True)
class Thumbnail:
    """A small image as a data URI, or why there is none."""

    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def thumbnail(source: ImageSource) -> Thumbnail:
    """An image for a page; one that cannot be opened leaves its reason."""
    try:
        data, size = scaled_jpeg(source, _THUMBNAIL)
    except ImageError as error:
        return Thumbnail(problem=error.reason)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", *size)


def _file_name(node: ImageNode) -> str:
    """What an image is called; not its folder, which is nobody's business who gets the page."""
    return Path(node.image_path).name if node.image_path else ""
