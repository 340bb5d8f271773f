"""Candidates: what a reranker reads of a document that was found, and how it returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from llama_index.core.schema import MetadataMode, NodeWithScore

from llama_index_gap.images.opening import has_image
from llama_index_gap.modality import LEGS, Modality
from llama_index_gap.nodes import ScoredNode

Hits: TypeAlias = Sequence[NodeWithScore]
"""The nodes of one document."""


def texts_of(hits: Hits) -> list[str]:
    """A document's passages as they were embedded; its captions where it has none."""
    nodes = [hit.node for hit in hits if hit.node.get_content(MetadataMode.NONE).strip()]
    nodes = [node for node in nodes if not has_image(node)] or nodes
    return [node.get_content(MetadataMode.EMBED) for node in nodes]


def found_by(hits: Hits) -> Modality:
    """The modality whose leg found a document by the strongest evidence."""
    evidence = [
        (scores[f"{leg.name}_evidence"], leg.target)
        for scores in map(_scores, hits)
        for leg in LEGS
        if f"{leg.name}_evidence" in scores
    ]
    if not evidence:
        return "image" if has_image(hits[0].node) else "text"
    return max(evidence)[1]  # the text where both are equal


def _scores(hit: NodeWithScore) -> dict[str, float]:
    return hit.scores if isinstance(hit, ScoredNode) else {}


def with_new_score(
    hits: Hits, score: float | None, by_modality: Mapping[str, float], *, partial: bool
) -> list[NodeWithScore]:
    """A document's nodes with its new score, texts first."""
    new = {f"rerank_{modality}": value for modality, value in by_modality.items()}
    returned: list[NodeWithScore] = []
    for hit in sorted(hits, key=lambda hit: has_image(hit.node)):
        before = {} if hit.score is None else {"retrieval": hit.score}
        before |= {
            name: value
            for name, value in _scores(hit).items()
            if not name.startswith("rerank_")  # another reranker's
        }
        scores = {**before, **new}
        log_odds = hit.log_odds if isinstance(hit, ScoredNode) else None
        returned.append(
            ScoredNode(
                node=hit.node, score=score, scores=scores, partial=partial, log_odds=log_odds
            )
        )
    return returned
