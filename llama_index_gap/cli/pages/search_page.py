"""A search and what it found, as one HTML page."""

from __future__ import annotations

from pathlib import Path

from llama_index.core.schema import BaseNode, MetadataMode

from llama_index_gap.cli.pages.rendering import render
from llama_index_gap.cli.scores import format_fused, format_score
from llama_index_gap.images.thumbnails import thumbnail
from llama_index_gap.results import SearchResult
from llama_index_gap.text import excerpt

_LONGEST_TEXT = 450


def render_page(result: SearchResult) -> str:
    """Write a search and what it found as an HTML page.

    Args:
        result: what to show. An image that cannot be opened leaves its reason in its place.
    """
    evidence = [
        each.evidence for document in result for each in document.legs if each.evidence is not None
    ]
    # Bars begin at 0; log odds have no 0 that means anything, so theirs begin below the lowest.
    most, least = max(evidence, default=0.0), min([0.0, *evidence])
    least -= (most - least) / 10 if least else 0.0

    def content(node: BaseNode) -> str:
        return excerpt(node.get_content(MetadataMode.NONE), _LONGEST_TEXT)

    return render(
        "page",
        result=result,
        bar=lambda says: 0.0 if says is None else 100 * (says - least) / ((most - least) or 1.0),
        asked_with=thumbnail(result.image) if result.image else None,
        shown=[
            (
                document,
                [content(node) for node in document.passages],
                [(thumbnail(node), content(node), _file_name(node)) for node in document.images],
            )
            for document in result
        ],
        fused=lambda score: format_fused(result, score),
        score=lambda score: format_score(result, score),
    )


def _file_name(node: BaseNode) -> str:
    """What an image is called; not its folder, which is nobody's business who gets the page."""
    path = getattr(node, "image_path", None)
    return Path(path).name if path else ""
