"""Scores in a readable form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index_gap.results import FoundDocument, SearchResult


def format_fused(result: SearchResult, score: float | None) -> str:
    """A score of a leg or of the fusion, with as many decimals as suit its method."""
    if score is None:
        return "–"
    return f"{score:.4f}" if by_place(result) else f"{score:.2f}"


def format_score(result: SearchResult, score: float | None) -> str:
    """A score that ranks the documents: the reranker's, if there is one."""
    if score is None or result.reranker is None:
        return format_fused(result, score)
    return f"{score:.3f}"


def by_place(result: SearchResult) -> bool:
    """Whether the legs were fused by rank, so that scores depend on ranks alone."""
    return result.fusion is not None and result.fusion.normalize == "rank"


def by_intent(result: SearchResult) -> bool:
    """Whether scores are log odds, which can be below 0."""
    return result.fusion is not None and result.fusion.combine == "intent"


def shares(result: SearchResult, document: FoundDocument) -> str:
    """The share of the fused score from its best leg; with intent, from each leg."""
    found = [each for each in document.legs if each.evidence is not None]
    if len(found) < 2:
        return f": all of it from {found[0].leg.title}" if found else ""
    if by_intent(result):
        of_each = {
            each.leg.title: math.exp((each.evidence or 0) - (document.fused or 0)) for each in found
        }
        together = 1 - sum(of_each.values())
        if together < -0.01:  # too few vectors to compare with: every leg has even odds
            return ""
        together = max(0.0, together)
        of_each["both" if len(found) == 2 else "several together"] = together
        return ": by " + ", ".join(f"{name} {share:.0%}" for name, share in of_each.items())
    total = sum(each.evidence or 0 for each in found)
    if not total:
        return ""
    best = max(found, key=lambda each: each.evidence or 0)
    return f": {(best.evidence or 0) / total:.0%} of it from {best.leg.title}"
