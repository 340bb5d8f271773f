"""Scores and models in a readable form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index_gap.results import SearchResult


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


def model_in_short(name: str) -> str:
    """The name of a model; of a folder, only its last part."""
    return Path(name).name if Path(name).is_absolute() else name
