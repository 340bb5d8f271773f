"""A search together with what each leg finds alone."""

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
    """What a search found, and what each leg found alone.

    Attributes:
        result: the documents of all legs together, reranked if requested.
        legs: the first documents of each leg alone.
        places: for each leg, the ranks of its documents by key.
        fused: the ranks of the documents before reranking, by key.
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
    """Search an index, and keep what each leg found before fusion.

    Args:
        index: the index to search.
        text: the query text; may be empty if there is an image.
        image: the query image, if any.
        top_k: documents to show, of each leg and of all together.
        normalize: as for ``DualIndex.search``.
        combine: as for ``DualIndex.search``.
        reranker: reranks the documents, if any.

    Raises:
        ValueError: as for ``DualIndex.search``.
        ImageError: the image cannot be opened.
    """
    nodes = max(TOP_K, top_k)  # as many as a search takes from each leg by default
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
