"""One search seen from all sides: what each leg finds alone, and what becomes of it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llama_index.core.schema import QueryBundle

from llama_index_gap.images.opening import ImageSource, data_uri
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.modality import Leg
from llama_index_gap.results import FoundDocument, SearchResult
from llama_index_gap.search.fusion import Combine, Normalize
from llama_index_gap.search.rerank import MultiModalRerank
from llama_index_gap.search.retriever import TOP_K


@dataclass(frozen=True)
class SideBySide:
    """What a search found, and what each of its legs did.

    Attributes:
        result: the documents of all legs together, reranked if that was asked for.
        legs: what each leg finds alone: its first documents.
        places: by leg, the place that each document has there.
        fused: the place that each document had before it was reranked.
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
    """Search an index, and keep what the legs found before they were brought together.

    Args:
        index: what to search.
        text: what to search for; may be empty with an image.
        image: to search by.
        top_k: documents to show, of each leg and of all.
        normalize: as for ``DualIndex.search``.
        combine: as for ``DualIndex.search``.
        reranker: ranks what was found anew.

    Raises:
        ValueError: as for ``DualIndex.search``.
        ImageError: the image cannot be opened.
    """
    nodes = max(TOP_K, top_k)  # as the search itself takes from each leg
    result = index.search(
        text,
        image,
        top_k=top_k,
        similarity_top_k=nodes,
        normalize=normalize,
        combine=combine,
        reranker=reranker,
        on_leg_error="degrade",
    )
    retriever = index.as_retriever(
        similarity_top_k=nodes, normalize=normalize, combine=combine, on_leg_error="degrade"
    ).for_documents(top_k)
    path = None if image is None else data_uri(image)
    hits = retriever.search_legs(QueryBundle(text.strip(), image_path=path))
    alone = {leg: retriever.rank_legs({leg: found}).documents for leg, found in hits.items()}
    return SideBySide(
        result,
        {leg: documents[:top_k] for leg, documents in alone.items()},
        {leg: _places(documents) for leg, documents in alone.items()},
        _places(retriever.rank_legs(hits).documents),
    )


def _places(documents: tuple[FoundDocument, ...]) -> dict[str, int]:
    return {document.key: document.rank for document in documents}
