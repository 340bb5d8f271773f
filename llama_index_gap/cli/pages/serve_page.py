"""The page of ``llama-gap serve``: a query, the hits of each leg, and the fused documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from llama_index.core.schema import BaseNode

from llama_index_gap.agents.tool_arguments import LONGEST_QUERY
from llama_index_gap.cli.pages.rendering import render
from llama_index_gap.cli.pages.search_page import bar_of, words_of
from llama_index_gap.cli.scores import format_fused, format_score
from llama_index_gap.cli.side_by_side import SideBySide
from llama_index_gap.images.opening import ImageError, ImageSource, check_image
from llama_index_gap.images.thumbnails import thumbnail
from llama_index_gap.modality import Leg
from llama_index_gap.results import FoundDocument, SearchResult

FUSIONS = {
    "background-intent": "odds that the query is about the text, the image or both: the default",
    "background-evidence": "how improbable such scores are by chance (Fisher's method)",
    "background-sum": "standard deviations above the query's usual scores, added",
    "minmax-sum": "each leg's scores rescaled to 0 to 1, added",
    "rank-sum": "reciprocal rank fusion: only the ranks count",
    "none-max": "raw cosines, as in one mixed index: the modality gap decides",
}
"""The fusions that the page offers, and how each ranks."""
TOP_KS = (5, 10, 20)
"""How many documents the page offers to show."""
_ALONE_TEXT, _FUSED_TEXT = 120, 300  # characters of a passage


@dataclass(frozen=True)
class Asked:
    """A request: the parameters in the page's URL.

    Attributes:
        q: the query text.
        image: the name of an uploaded image to search by.
        like: the id of an image of the index to search by.
        fusion: normalization and combination, joined by a hyphen.
        rerank: whether to rerank; empty for no.
        k: how many documents to show.
    """

    q: str = ""
    image: str = ""
    like: str = ""
    fusion: str = "background-intent"
    rerank: str = ""
    k: str = "10"

    def address(self, **changes: Any) -> str:
        """The URL of the page with these parameters, some of them changed."""
        given = vars(replace(self, **changes))
        changed = {name: value for name, value in given.items() if value != getattr(Asked, name)}
        return "/?" + urlencode(changed) if changed else "/"


@dataclass(frozen=True)
class Served:
    """What the page says about the index.

    Attributes:
        database: the file or URL of its database.
        name: the name of the index in the database.
        reranker: the name of the reranking model; empty if there is none.
    """

    database: str
    name: str
    reranker: str = ""


def render_view(
    served: Served,
    asked: Asked,
    *,
    found: SideBySide | None = None,
    asked_with: ImageSource | None = None,
    counts: Mapping[str, int] | None = None,
    problem: str = "",
    loading: bool = False,
) -> str:
    """Write the page.

    Args:
        served: what the page says about the index.
        asked: the request.
        found: the results; None if there is no query yet, or the search failed.
        asked_with: the query image, if any.
        counts: the number of rows in each collection.
        problem: why the search failed; empty if it did not.
        loading: whether the models are still loading; the page then reloads by itself.
    """
    result = None if found is None else found.result
    return render(
        "serve",
        images_from="'self' data:",
        forms_to="'self'",
        served=served,
        asked=asked,
        asked_with=None if asked_with is None else thumbnail(asked_with),
        fusions=FUSIONS,
        top_ks=TOP_KS,
        counts=counts or {},
        problem=problem,
        loading=loading,
        found=found,
        result=result,
        legs=[] if found is None else [_leg(found, leg) for leg in found.legs],
        failed={} if result is None else _failed(result),
        documents=[] if found is None else [_document(found, each) for each in found.result],
        bar=None if result is None else bar_of(result),
        fused=lambda score: "" if result is None else format_fused(result, score),
        score=lambda score: "" if result is None else format_score(result, score),
        longest=LONGEST_QUERY,
    )


def _failed(result: SearchResult) -> dict[Leg, str]:
    return {leg: summary.error for leg, summary in result.legs.items() if summary.error}


def _leg(found: SideBySide, leg: Leg) -> dict[str, Any]:
    """The documents that a leg found alone, and the final rank of each."""
    kept = {document.key: document.rank for document in found.result}
    return {
        "leg": leg,
        "summary": found.result.legs.get(leg),
        "documents": [
            {
                "of": document,
                "says": next((each for each in document.legs if each.leg == leg), None),
                "kept": kept.get(document.key),
                "images": _images(document),
                "words": _words(leg, document),
            }
            for document in found.legs[leg]
        ],
    }


def _words(leg: Leg, document: FoundDocument) -> str:
    """The text that a leg found in a document: a passage, or a caption."""
    nodes = document.passages or (document.images if leg.target == "text" else [])
    return words_of(nodes[0], _ALONE_TEXT) if nodes else ""


def _document(found: SideBySide, document: FoundDocument) -> dict[str, Any]:
    return {
        "of": document,
        "places": {leg: places.get(document.key) for leg, places in found.places.items()},
        "before": found.fused.get(document.key),
        "images": _images(document),
        "passages": [words_of(node, _FUSED_TEXT) for node in document.passages],
    }


def _images(document: FoundDocument) -> list[dict[str, str]]:
    return [
        {"id": node.node_id, "caption": words_of(node), "problem": _problem(node)}
        for node in document.images
    ]


def _problem(node: BaseNode) -> str:
    """Why an image cannot be opened; empty if it probably can."""
    try:
        check_image(node)
    except ImageError as error:
        return error.reason
    return ""
