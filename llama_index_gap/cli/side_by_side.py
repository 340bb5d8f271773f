"""One search in its parts: what each leg finds alone, and the ranking of all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llama_index.core.schema import QueryBundle

from llama_index_gap.images.opening import ImageSource, data_uri
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.searching import rerank_result
from llama_index_gap.modality import Leg
from llama_index_gap.results import FoundDocument, SearchResult
from llama_index_gap.search.fusion import Combine, Normalize
from llama_index_gap.search.rerank import MultiModalRerank
from llama_index_gap.search.retriever import TOP_K


@dataclass(frozen=True)
class SideBySide:
    """What a search found, and what each of its legs found.

    Attributes:
        result: the documents of all legs together, reranked if there was a reranker.
        legs: the first documents of each leg alone.
        places: by leg, the place of each document.
        fused: the place of each document before reranking.
    """

    result: SearchResult
    legs: Mapping[Leg, tuple[FoundDocument, ...]]
    places: Mapping[Leg, Mapping[str, int]]
    fused: Mapping[str, int]


def search_side_by_side(
    index: DualIndex,
    text: str,
    image: ImageSource | None,
    *,
    top_k: int,
    normalize: Normalize,
    combine: Combine,
    reranker: MultiModalRerank | None,
) -> SideBySide:
    """Search an index once, and keep what each leg found before fusion.

    Args:
        index: what to search.
        text: what to search for; may be empty with an image.
        image: to search by.
        top_k: documents to show of each leg, and of all together.
        normalize: as for ``DualIndex.search``.
        combine: as for ``DualIndex.search``.
        reranker: reranks the hits; None for no reranking.

    Raises:
        ValueError: as for ``DualIndex.search``.
        ImageError: the image cannot be opened.
    """
    nodes = max(TOP_K, top_k)  # from each leg, as ``DualIndex.search`` does
    settings: dict[str, Any] = {
        "similarity_top_k": nodes,
        "normalize": normalize,
        "combine": combine,
        "on_leg_error": "degrade",
    }
    # This one ranks all hits, so that each document has a place.
    ranking = index.as_retriever(**settings).for_documents(top_k)
    most = top_k if reranker is None else None
    searching = index.as_retriever(top_k=most, complete=True, **settings).for_documents(top_k)
    query = QueryBundle(text.strip(), image_path=None if image is None else data_uri(image))
    found, hits = searching.search_with_legs(query)
    result = replace(found, database=index.uri)
    if reranker is not None:
        first = reranker.model_copy(update={"top_n": top_k, "group_by": "document"})
        result = rerank_result(result, query, first)
    alone = {leg: ranking.rank_legs({leg: each}).documents for leg, each in hits.items()}
    return SideBySide(
        result,
        {leg: documents[:top_k] for leg, documents in alone.items()},
        {leg: _places(documents) for leg, documents in alone.items()},
        _places(ranking.rank_legs(hits).documents),
    )


def _places(documents: tuple[FoundDocument, ...]) -> dict[str, int]:
    return {document.key: document.rank for document in documents}
