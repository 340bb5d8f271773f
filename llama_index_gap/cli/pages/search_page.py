"""A search and its documents, as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llama_index.core.schema import BaseNode, MetadataMode

from llama_index_gap.cli.pages.rendering import render
from llama_index_gap.cli.scores import format_fused, format_score, shares
from llama_index_gap.images.thumbnails import LARGE, thumbnail
from llama_index_gap.results import FoundDocument, SearchResult
from llama_index_gap.text import excerpt

_LONGEST_TEXT = 450
_LONGEST_FACT = 80
_MOST_FACTS = 8


def render_page(result: SearchResult, filters: Sequence[str] = ()) -> str:
    """Write a search and its documents as an HTML page.

    Args:
        result: the search. The reason stands in place of an image that cannot be opened.
        filters: conditions that the documents met, as they were given.
    """
    return render(
        "page",
        result=result,
        filters=filters,
        bar=bar_of(result),
        shares=lambda document: shares(result, document),
        facts=_facts,
        asked_with=thumbnail(result.image, LARGE) if result.image else None,
        shown=[
            (
                document,
                [words_of(node) for node in document.passages],
                [
                    (thumbnail(node, LARGE), words_of(node), _file_name(node))
                    for node in document.images
                ],
            )
            for document in result
        ],
        fused=lambda score: format_fused(result, score),
        score=lambda score: format_score(result, score),
    )


def bar_of(result: SearchResult) -> Callable[[float | None], float]:
    """The length of a leg's bar, in percent of the longest one."""
    evidence = [
        each.evidence for document in result for each in document.legs if each.evidence is not None
    ]
    # Bars begin at 0. Zero means nothing for log odds, so their bars begin below the lowest value.
    most, least = max(evidence, default=0.0), min([0.0, *evidence])
    least -= (most - least) / 10 if least else 0.0
    return lambda says: 0.0 if says is None else 100 * (says - least) / ((most - least) or 1.0)


def words_of(node: BaseNode, longest: int = _LONGEST_TEXT) -> str:
    """The beginning of a passage's text, or of an image's caption."""
    return excerpt(node.get_content(MetadataMode.NONE), longest)


def _facts(document: FoundDocument) -> list[str]:
    """The short metadata of a document, but its title, as ``key: value``."""
    values = [
        f"{key}: {value}"
        for key, value in document.metadata.items()
        if key != "title" and isinstance(value, str | int | float)
    ]
    return [value for value in values if len(value) <= _LONGEST_FACT][:_MOST_FACTS]


def _file_name(node: BaseNode) -> str:
    """The name of an image's file, without its folder: the page may go to strangers."""
    path = getattr(node, "image_path", None)
    return Path(path).name if path else ""
