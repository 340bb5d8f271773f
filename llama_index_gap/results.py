"""What a search returns: documents in their order, and how they were found."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

from llama_index_gap.images.opening import describe, has_image
from llama_index_gap.images.thumbnails import thumbnail
from llama_index_gap.modality import LEGS, MODALITIES, Leg, Modality
from llama_index_gap.nodes import GroupBy, by_document, document_key
from llama_index_gap.text import excerpt, visible

_DISPLAY_SIDE = 320  # pixels of an image in a notebook, which keeps its outputs
_DISPLAY_TEXT = 300  # characters of a passage there


@dataclass(frozen=True)
class LegScore:
    """What one leg says of a document.

    Attributes:
        leg: which one.
        raw: the best score there, as the database gives it.
        evidence: what the leg says of the document; None if it is not among the leg's hits.
        hub: what was taken off ``raw`` because the vector is near to everything; None where hubs
            were not corrected.
        sigma: standard deviations above what the query gets anyway, where it was ranked by that.
        probability: of relevance, where there is a calibrator.
    """

    leg: Leg
    raw: float
    evidence: float | None
    sigma: float | None = None
    probability: float | None = None
    hub: float | None = None


@dataclass(frozen=True)
class FoundDocument:
    """A document with its place in the ranking.

    Attributes:
        rank: from 1.
        key: the document's id, or that of a node without a document.
        nodes: its passages, best first, then its images; each with the document's scores.
    """

    rank: int
    key: str
    nodes: tuple[NodeWithScore, ...]

    @property
    def score(self) -> float | None:
        """What the ranking goes by; None where a reranker could not read the document."""
        return self.nodes[0].score

    @property
    def scores(self) -> dict[str, float]:
        """Where the score comes from, as in ``ScoredNode``; empty for other retrievers' nodes."""
        return dict(getattr(self.nodes[0], "scores", {}))

    @property
    def fused(self) -> float | None:
        """The score that the document was found with, before a reranker gave its own."""
        return self.scores.get("retrieval", self.score)

    @property
    def passages(self) -> list[BaseNode]:
        """The nodes that are texts, best first."""
        return [hit.node for hit in self.nodes if not has_image(hit.node)]

    @property
    def images(self) -> list[BaseNode]:
        """The nodes that hold an image, best first; a caption is the node's text."""
        return [hit.node for hit in self.nodes if has_image(hit.node)]

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of all its nodes; where they differ, the first one's."""
        found: dict[str, Any] = {}
        for hit in reversed(self.nodes):
            found |= hit.node.metadata
        return found

    @property
    def title(self) -> str:
        """Its title, or else its key."""
        return str(self.metadata.get("title") or self.key)

    @property
    def text(self) -> str:
        """Its best passage, or else the caption of its best image."""
        return (self.passages or self.images)[0].get_content(MetadataMode.NONE)

    @property
    def legs(self) -> list[LegScore]:
        """What each leg says of it."""
        scores = self.scores
        return [
            LegScore(
                leg,
                scores[leg.name],
                scores.get(f"{leg.name}_evidence"),
                scores.get(f"{leg.name}_sigma"),
                scores.get(f"{leg.name}_probability"),
                scores.get(f"{leg.name}_hub"),
            )
            for leg in LEGS
            if leg.name in scores
        ]

    @property
    def reranked(self) -> dict[str, float]:
        """What a reranker gave each modality, or both as ``joint``; empty where none did."""
        return {
            name: self.scores[f"rerank_{name}"]
            for name in (*MODALITIES, "joint")
            if f"rerank_{name}" in self.scores
        }

    @property
    def first_stage(self) -> float | None:
        """What the first stage added to the reranker's log odds; None where it does not count."""
        return self.scores.get("rerank_first_stage")

    def part(self, modality: Modality) -> float | None:
        """What a modality contributes to the score; None where it contributes nothing."""
        if self.reranked or self.score is None:  # None: a reranker could not read it
            return self.reranked.get(modality)
        found = [
            each.evidence
            for each in self.legs
            if each.evidence is not None and each.leg.target == modality
        ]
        return sum(found) if found else None


@dataclass(frozen=True)
class FusionUsed:
    """How the legs were really brought together.

    Attributes:
        normalize: the normalization that was used.
        combine: the combination that was used.
        note: why these are not the ones asked for; None if they are.
        hubs: how much of a hub's nearness was taken off the scores of each leg, by name (α · ρ);
            a leg without hubs is not in it.
        sample_queries: how many queries the index has learnt from, of the modalities that were
            asked with.
    """

    normalize: str
    combine: str
    note: str | None = None
    hubs: Mapping[str, float] = field(default_factory=dict)
    sample_queries: int = 0


@dataclass(frozen=True)
class LegSummary:
    """What became of one leg.

    Attributes:
        hits: how many nodes took part in the ranking.
        improbable: how many were left out because they are less probable than was asked for.
        error: why the leg failed and was left out; None if it did not.
        asked: how often its collection was asked: again, where few documents had all its hits.
        note: what came of asking again; None if it was not.
    """

    hits: int
    improbable: int = 0
    error: str | None = None
    asked: int = 1
    note: str | None = None


@dataclass(frozen=True, repr=False)
class SearchResult(Sequence[FoundDocument]):
    """Documents, best first, and how they were found. A notebook shows it with its images.

    Attributes:
        documents: best first.
        text: what was asked; may be empty.
        image: the image that was asked with, if any.
        fusion: how the legs were brought together; None for another retriever's nodes.
        legs: what became of each leg that was asked.
        timings: seconds of each step: ``embed``, ``search``, ``fuse``, ``complete``, ``rerank``.
        reranker: the name of what ranked the documents anew; None if nothing did.
        database: the index's file or address; empty where it is not known.
    """

    documents: tuple[FoundDocument, ...]
    text: str = ""
    image: str | None = None
    fusion: FusionUsed | None = None
    legs: Mapping[Leg, LegSummary] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    reranker: str | None = None
    database: str = ""

    @overload
    def __getitem__(self, index: int) -> FoundDocument: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FoundDocument, ...]: ...
    def __getitem__(self, index: int | slice) -> FoundDocument | tuple[FoundDocument, ...]:
        return self.documents[index]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def nodes(self) -> list[NodeWithScore]:
        """All nodes in their order, as LlamaIndex takes them."""
        return [hit for document in self.documents for hit in document.nodes]

    @property
    def note(self) -> str | None:
        """Why another fusion method was used than the one asked for; None if none was."""
        return None if self.fusion is None else self.fusion.note

    @property
    def partial(self) -> bool:
        """Whether a reranker ran out of time before it had read all documents."""
        return any(getattr(hit, "partial", False) for hit in self.nodes)

    def with_nodes(
        self,
        nodes: Sequence[NodeWithScore],
        *,
        group_by: GroupBy = "document",
        **changes: Any,
    ) -> SearchResult:
        """The same search with other nodes, such as a reranker's.

        Args:
            nodes: best first; those of a document come together at the place of its first.
            group_by: ``"node"`` takes each node for a document.
            **changes: other attributes of the result, with their new values.
        """
        return replace(self, documents=documents_of(nodes, group_by), **changes)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the content of images, as JSON knows it."""
        return {
            "query": {"text": self.text, "image": self.image and describe(self.image)},
            "database": self.database,
            "fusion": self.fusion and asdict(self.fusion),
            "note": self.note,
            "legs": {leg.name: asdict(summary) for leg, summary in self.legs.items()},
            "timings": dict(self.timings),
            "reranker": self.reranker,
            "partial": self.partial,
            "documents": [_document_as_dict(document) for document in self.documents],
        }

    def __repr__(self) -> str:
        """What a prompt shows: a line for each document."""
        lines = [f"<SearchResult: {len(self)} documents>"]
        for document in self:
            score = "–" if document.score is None else f"{document.score:.4g}"
            lines.append(
                f"{document.rank}. {excerpt(document.title, 100)} ({score}): "
                f"{excerpt(document.text, 60)}"
            )
        return visible("\n".join(lines))

    def _repr_html_(self) -> str:
        """What a notebook shows: titles, scores, passages and small images, all escaped."""
        shown = "".join(map(_shown, self.documents)) or "<p>Nothing was found.</p>"
        return f'{_STYLE}<div class="llama-gap">{shown}</div>'


def documents_of(
    nodes: Sequence[NodeWithScore], group_by: GroupBy = "document"
) -> tuple[FoundDocument, ...]:
    """The documents behind a retriever's nodes, in their order, each document's passages first.

    Args:
        nodes: best first.
        group_by: ``"node"`` takes each node for a document.
    """
    return tuple(
        FoundDocument(
            rank,
            document_key(hits[0].node, group_by),
            tuple(sorted(hits, key=lambda hit: has_image(hit.node))),
        )
        for rank, hits in enumerate(by_document(nodes, group_by), 1)
    )


def _document_as_dict(document: FoundDocument) -> dict[str, Any]:
    return {
        "rank": document.rank,
        "id": document.key,
        "title": document.title,
        "score": document.score,
        "reranked": document.reranked,
        "first_stage": document.first_stage,
        "fused": document.fused,
        "legs": {
            each.leg.name: {
                "cosine": each.raw,
                "hub": each.hub,
                "sigma": each.sigma,
                "evidence": each.evidence,
                "probability": each.probability,
            }
            for each in document.legs
        },
        "passages": [
            {"node_id": node.node_id, "text": node.get_content(MetadataMode.NONE)}
            for node in document.passages
        ],
        "images": [
            {
                "node_id": node.node_id,
                "path": getattr(node, "image_path", None),
                "url": getattr(node, "image_url", None),
                "caption": node.get_content(MetadataMode.NONE),
            }
            for node in document.images
        ],
        "metadata": document.metadata,
    }


# Colours that stand on a light and on a dark notebook, which a page cannot ask for.
_STYLE = (
    "<style>.llama-gap{max-width:56rem;font:inherit;overflow-wrap:anywhere}"
    ".llama-gap>div{display:flex;flex-wrap:wrap;gap:.5rem 1rem;margin:.5rem 0;padding:.75rem;"
    "border:1px solid #8885;border-radius:.5rem}"
    ".llama-gap section{flex:1 1 18rem;min-width:0}.llama-gap p{margin:.25rem 0 .5rem}"
    ".llama-gap figure{margin:0}.llama-gap small{opacity:.75}"
    ".llama-gap summary{display:block;cursor:zoom-in}"
    ".llama-gap img{width:auto;height:auto;max-width:160px;max-height:160px;margin:0}"
    ".llama-gap details[open] img{width:480px;max-width:100%;max-height:none}"
    ".llama-gap i{font-style:normal;padding:0 .5em;border:1px solid #8888;border-radius:1em}"
    "</style>"
)


def _shown(document: FoundDocument) -> str:
    """A document in a notebook; a click shows an image large, by no script."""
    score = "–" if document.score is None else f"{document.score:.3f}"
    legs = (
        f"<i>{each.leg.title} {'–' if each.evidence is None else f'{each.evidence:.2f}'}</i> "
        for each in document.legs
    )
    words = [
        f"<p>{html.escape(excerpt(node.get_content(MetadataMode.NONE), _DISPLAY_TEXT))}</p>"
        for node in document.passages
    ]
    images = []
    for node in document.images:
        small = thumbnail(node, _DISPLAY_SIDE)
        caption = html.escape(excerpt(node.get_content(MetadataMode.NONE), _DISPLAY_TEXT))
        image = (
            f'<details><summary><img src="{small.uri}" width="{small.width}" '
            f'height="{small.height}" alt="{caption}"></summary></details>'
            if small.uri
            else f"<p><b>No image</b>: {html.escape(small.problem)}</p>"
        )
        images.append(f"{image}<small>{caption}</small>")
    return (
        f"<div>{''.join(f'<figure>{each}</figure>' for each in images)}<section><p>"
        f"<b>{document.rank}. {html.escape(document.title)}</b> <small>score</small> "
        f"<b>{score}</b></p><p><small>{''.join(legs)}</small></p>{''.join(words)}</section></div>"
    )
