"""The result of a search: the ranked documents, and how they were found."""

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

_DISPLAY_SIDE = 320  # pixels of an image in a notebook; small, since its file keeps all outputs
_DISPLAY_TEXT = 300  # characters of a passage in a notebook


@dataclass(frozen=True)
class LegScore:
    """The scores that one leg gives a document.

    Attributes:
        leg: the leg.
        raw: the document's best score in this leg, as the database gives it.
        evidence: what the leg adds to the fused score; None if the document is not among the leg's
            hits.
        hub: the hub correction that was subtracted from ``raw``; None if hubs were not corrected.
        sigma: standard deviations above the mean of the scores that the hit was compared with; None
            if the ranking does not use this.
        probability: of relevance; None if there is no calibrator.
    """

    leg: Leg
    raw: float
    evidence: float | None
    sigma: float | None = None
    probability: float | None = None
    hub: float | None = None


@dataclass(frozen=True)
class FoundDocument:
    """A document and its rank.

    Attributes:
        rank: from 1.
        key: the document's id; for a node without a document, the node's id.
        nodes: its passages, best first, then its images; each with the document's scores.
    """

    rank: int
    key: str
    nodes: tuple[NodeWithScore, ...]

    @property
    def score(self) -> float | None:
        """The score that ranks the document; None if a reranker could not read the document."""
        return self.nodes[0].score

    @property
    def scores(self) -> dict[str, float]:
        """The parts of the score, as in ``ScoredNode``; empty for other retrievers' nodes."""
        return dict(getattr(self.nodes[0], "scores", {}))

    @property
    def fused(self) -> float | None:
        """The fused score, which a reranker replaces in ``score``."""
        return self.scores.get("retrieval", self.score)

    @property
    def passages(self) -> list[BaseNode]:
        """The text nodes, best first."""
        return [hit.node for hit in self.nodes if not has_image(hit.node)]

    @property
    def images(self) -> list[BaseNode]:
        """The image nodes, best first; a node's text is its caption."""
        return [hit.node for hit in self.nodes if has_image(hit.node)]

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of all its nodes; where nodes differ, the first node's value."""
        found: dict[str, Any] = {}
        for hit in reversed(self.nodes):
            found |= hit.node.metadata
        return found

    @property
    def title(self) -> str:
        """Its title; its key if it has no title."""
        return str(self.metadata.get("title") or self.key)

    @property
    def text(self) -> str:
        """Its best passage; without a passage, the caption of its best image."""
        return (self.passages or self.images)[0].get_content(MetadataMode.NONE)

    @property
    def legs(self) -> list[LegScore]:
        """The scores that each leg gives it."""
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
        """A reranker's score of each modality, or of both as ``joint``; empty if not reranked."""
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
        """What a modality contributes to the score; None if it contributes nothing."""
        if self.reranked or self.score is None:  # None: a reranker could not read the document
            return self.reranked.get(modality)
        found = [
            each.evidence
            for each in self.legs
            if each.evidence is not None and each.leg.target == modality
        ]
        return sum(found) if found else None


@dataclass(frozen=True)
class FusionUsed:
    """The fusion method that was used, which may not be the one that was asked for.

    Attributes:
        normalize: the normalization that was used.
        combine: the combination that was used.
        note: why these are not the methods asked for; None if they are.
        hubs: the share of a vector's hubness that was subtracted from its score (α · ρ), by the
            leg's name; legs without hubs are not in it.
        sample_queries: how many sample queries of the query's modalities the index has learnt from.
    """

    normalize: str
    combine: str
    note: str | None = None
    hubs: Mapping[str, float] = field(default_factory=dict)
    sample_queries: int = 0


@dataclass(frozen=True)
class LegSummary:
    """The outcome of one leg.

    Attributes:
        hits: how many nodes took part in the ranking.
        improbable: how many hits were left out because they are below ``min_probability``.
        error: why the leg failed and was left out; None if it succeeded.
        asked: how often its collection was searched: more than once if all hits belonged to few
            documents.
        note: tells if few documents had most of the hits, and what searching again brought; None
            otherwise.
    """

    hits: int
    improbable: int = 0
    error: str | None = None
    asked: int = 1
    note: str | None = None


@dataclass(frozen=True, repr=False)
class SearchResult(Sequence[FoundDocument]):
    """Documents, best first, and how they were found. A notebook shows them with their images.

    Attributes:
        documents: best first.
        text: the query's text; may be empty.
        image: the query's image; None if it had none.
        fusion: the fusion method that was used; None for another retriever's nodes.
        legs: the outcome of each leg.
        timings: seconds of each step: ``embed``, ``search``, ``fuse``, ``complete``, ``rerank``.
        reranker: the reranker's name; None if the documents were not reranked.
        database: the index's file or address; empty if it is not known.
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
        """The nodes of all documents, best first, in LlamaIndex's form."""
        return [hit for document in self.documents for hit in document.nodes]

    @property
    def note(self) -> str | None:
        """Why the fusion method differs from the one asked for; None if it does not."""
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
            nodes: best first; a document takes the rank of its first node.
            group_by: ``"node"`` makes each node its own document.
            **changes: new values for other attributes of the result.
        """
        return replace(self, documents=documents_of(nodes, group_by), **changes)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images' content, in types that JSON knows."""
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
        """One line for each document."""
        lines = [f"<SearchResult: {len(self)} documents>"]
        for document in self:
            score = "–" if document.score is None else f"{document.score:.4g}"
            lines.append(
                f"{document.rank}. {excerpt(document.title, 100)} ({score}): "
                f"{excerpt(document.text, 60)}"
            )
        return visible("\n".join(lines))

    def _repr_html_(self) -> str:
        """The display in a notebook: titles, scores, passages and small images, all escaped."""
        shown = "".join(map(_shown, self.documents)) or "<p>Nothing was found.</p>"
        return f'{_STYLE}<div class="llama-gap">{shown}</div>'


def documents_of(
    nodes: Sequence[NodeWithScore], group_by: GroupBy = "document"
) -> tuple[FoundDocument, ...]:
    """Group a retriever's nodes into documents, in their order; passages come before images.

    Args:
        nodes: best first.
        group_by: ``"node"`` makes each node its own document.
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


# Colours that are readable in light and dark notebooks: HTML cannot tell which one it is in.
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
    """A document in a notebook; a click enlarges an image, without a script."""
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
