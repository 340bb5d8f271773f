"""The page of ``llama-gap serve``: a query, the hits of each leg, and their joint ranking."""

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
    "minmax-sum": "each leg's scores stretched to 0 to 1, added",
    "rank-sum": "reciprocal rank fusion: only the places count",
    "none-max": "raw cosines, as one mixed index ranks: the modality gap decides",
}
"""The fusions that the page offers, and what each ranks by."""
TOP_KS = (5, 10, 20)
"""The numbers of documents that the page offers."""
_ALONE_TEXT, _FUSED_TEXT = 120, 300  # characters of a passage


@dataclass(frozen=True)
class Asked:
    """A query and its settings: the parameters of the page's address.

    Attributes:
        q: the text.
        image: the name of an upload.
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
        """The address of the page with these parameters, some of them changed."""
        given = vars(replace(self, **changes))
        changed = {name: value for name, value in given.items() if value != getattr(Asked, name)}
        return "/?" + urlencode(changed) if changed else "/"


@dataclass(frozen=True)
class Served:
    """What each page says about the index.

    Attributes:
        database: its file or address.
        name: its name there.
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
        served: what is searched.
        asked: the query and its settings.
        found: the answer; None if there is none.
        asked_with: the image to search by.
        counts: the number of rows of each collection.
        problem: why there is no answer.
        loading: whether the models are still loading; the page then reloads.
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
    """What a leg found alone, and the final place of each document."""
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
    """What a leg compared with the query in a document: a passage, or a caption."""
    read = document.passages or (document.images if leg.target == "text" else [])
    return words_of(read[0], _ALONE_TEXT) if read else ""


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
    """Why an image cannot be opened; empty if its header says that it can."""
    try:
        check_image(node)
    except ImageError as error:
        return error.reason
    return ""
