"""The legs of a search: a query embedded once for each model, and asked of each collection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, QueryBundle
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray, VectorArray, unit_rows
from llama_index_gap.gap.background import Background
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.gap.hubs import Hubs, spare_itself
from llama_index_gap.modality import CollectionName, Leg, Modality
from llama_index_gap.search.tracing import in_span
from llama_index_gap.threads import stop_if_given_up

if TYPE_CHECKING:
    from llama_index_gap.store.milvus import MilvusStore

ImageQueries: TypeAlias = Literal["images", "also_texts"]
HITS_BEFORE_CORRECTION = 4
"""Times the hits that are wanted: 64 for 16 lose nothing that could be measured."""
MOST_HITS = 16_384
"""What Milvus returns at most."""


@dataclass(frozen=True)
class SearchedCollection:
    """A vector store of one modality, and the model that its queries are embedded with.

    Attributes:
        store: holds the vectors.
        embed_model: embeds the queries.
        background: gives what hits are compared with, for queries of a modality; None where
            nothing can be drawn from the store.
        nodes: gives the nodes with these ids, for a store that keeps only vectors.
    """

    store: BasePydanticVectorStore
    embed_model: BaseEmbedding
    background: Callable[[Modality], Background | None] = lambda _: None
    nodes: Callable[[list[str]], list[BaseNode]] | None = None


Collections: TypeAlias = Mapping[CollectionName, SearchedCollection]


class Searchable(Protocol):
    """What a retriever knows of an index."""

    def collections(self) -> Collections:
        """What can be searched."""

    def models(self) -> str:
        """What the vectors were made with, in words."""

    def calibrator(self) -> RelevanceCalibrator | None:
        """The calibrator that is kept with the index."""


@dataclass(frozen=True)
class LegHits:
    """What one leg finds, highest raw score first.

    Attributes:
        nodes: the n nodes.
        scores: their raw scores, n of them.
        query: the vector that it was asked with, shape (d,).
        hubs: what says which vectors are hubs; None where they are not corrected.
        hubness: ρ · hubness of each node's vector, shape (n,); None likewise.
    """

    nodes: Sequence[BaseNode]
    scores: Sequence[float]
    query: VectorArray
    hubs: Hubs | None = None
    hubness: FloatArray | None = None

    def __getitem__(self, kept: slice | Sequence[int]) -> LegHits:
        """Some of the hits, by a slice or by their places."""
        places = range(len(self.nodes))[kept] if isinstance(kept, slice) else kept
        hubness = None if self.hubness is None else self.hubness[list(places)]
        return replace(
            self,
            nodes=[self.nodes[i] for i in places],
            scores=[self.scores[i] for i in places],
            hubness=hubness,
        )

    def of(self, nodes: Sequence[BaseNode], rows: VectorArray) -> LegHits:
        """The same query's exact scores for other nodes.

        Args:
            nodes: n of them.
            rows: their vectors, of length 1, shape (n, d).
        """
        scores = (rows @ unit_query(self.query)).tolist()
        hubness = None if self.hubs is None else spare_itself(self.hubs.of(rows), scores)
        return replace(self, nodes=nodes, scores=scores, hubness=hubness)

    def best(self, most: int, strength: float) -> LegHits:
        """The first hits once hubs are taken off.

        Args:
            most: how many.
            strength: α; with 0 the raw scores decide.
        """
        if self.hubness is None or not strength:
            return self[:most]
        corrected = np.asarray(self.scores) - strength * self.hubness
        return self[np.argsort(-corrected, kind="stable")[:most].tolist()]


def unit_query(vector: VectorArray) -> VectorArray:
    """A query of length 1; a query of zeros, which fits nothing, stays."""
    return unit_rows(vector) if vector.any() else vector


def searched_collection(leg: Leg, collections: Collections) -> CollectionName:
    """The collection that a leg asks.

    An image query searches ``image_query`` for images if the index has it, else ``image``. Both
    hold the same images: searching both would count the same evidence twice.
    """
    if leg == Leg("image", "image") and "image_query" in collections:
        return "image_query"
    return leg.target


def asked_legs(
    collections: Collections,
    top_ks: Mapping[Modality, int],
    *,
    text: bool,
    image: bool,
    image_queries: ImageQueries,
) -> list[Leg]:
    """The legs that a query asks.

    Args:
        collections: what can be searched.
        top_ks: nodes to take from each modality; 0 asks none of it.
        text: whether the query has a text.
        image: whether it has an image.
        image_queries: whether an image without a text asks the texts, too.
    """
    targets = [target for target in top_ks if top_ks[target]]
    legs = [Leg("text", target) for target in targets] if text else []
    if not image:
        return legs
    # An image and a text can be compared only where one model embeds both.
    shared = collections["text"].embed_model is collections["image"].embed_model
    wanted = text or image_queries == "also_texts" or targets == ["text"]
    if "image" in targets:
        legs.append(Leg("image", "image"))
    if "text" in targets and shared and wanted:
        legs.append(Leg("image", "text"))
    return legs


def embed_query(
    query: QueryBundle, legs: Sequence[Leg], collections: Collections
) -> dict[Leg, VectorArray]:
    """The vector that each leg asks with; a query is embedded once for each model.

    Raises:
        ValueError: a model cannot embed what a leg asks with.
        ImageError: the query's image cannot be opened.
    """
    vectors: dict[tuple[str, int], list[float]] = {}
    if query.embedding is not None:
        vectors["text", id(collections["text"].embed_model)] = query.embedding
    for leg in legs:
        model = collections[searched_collection(leg, collections)].embed_model
        if (leg.query, id(model)) in vectors:
            continue
        stop_if_given_up()
        if leg.query == "text":
            texts = query.embedding_strs
            if not texts:
                raise InvalidValueError(
                    f"the query has an embedding but no text, and {model.model_name} needs one: "
                    "the given embedding is of the text collection's model"
                )
            vectors["text", id(model)] = list(model.get_agg_embedding_from_queries(texts))
        elif isinstance(model, MultiModalEmbedding):
            vectors["image", id(model)] = model.get_image_embedding(str(query.image_path))
        else:
            raise InvalidValueError(
                f"the query is an image, but {model.model_name} embeds no images; pass a "
                "MultiModalEmbedding for the image collection"
            )
    return {
        leg: np.asarray(
            vectors[leg.query, id(collections[searched_collection(leg, collections)].embed_model)],
            dtype=np.float32,
        )
        for leg in legs
    }


def ask_legs(
    owner: object,
    vectors: Mapping[Leg, VectorArray],
    collections: Collections,
    top_ks: Mapping[Modality, int],
    filters: MetadataFilters | None,
    *,
    hubs: float,
) -> tuple[dict[Leg, LegHits], dict[Leg, Exception]]:
    """Ask all legs, side by side where their stores gain by it.

    Args:
        owner: whose search it is, for the trace.
        vectors: what each leg asks with.
        collections: what is searched.
        top_ks: nodes to take from each modality.
        filters: on metadata.
        hubs: how much of a hub is taken off its score (α). Above 0, a leg that has hubs is asked
            for four times as many nodes, so that those that move up are among them; both the best
            by their raw score and the best by what is left of it are given.

    Returns:
        What each leg found; and why the others failed.
    """

    def ask(leg: Leg) -> LegHits | Exception:
        collection = collections[searched_collection(leg, collections)]
        try:
            return in_span(
                owner,
                f"search_{leg.name}",
                lambda: _ask(leg, vectors[leg], collection, top_ks[leg.target], filters, hubs=hubs),
            )
        except Exception as error:  # a leg's failure, of whatever kind, is that leg's
            return error

    first, *others = vectors
    stores = [collection.store for collection in collections.values()]
    if not others or all(getattr(store, "one_at_a_time", False) for store in stores):
        outcomes = {leg: ask(leg) for leg in vectors}
    else:
        with ThreadPoolExecutor(len(others), "leg") as pool:
            # The context goes along, so that traces know whose these searches are.
            futures = {leg: pool.submit(copy_context().run, ask, leg) for leg in others}
            outcomes = {first: ask(first)}
            outcomes |= {leg: future.result() for leg, future in futures.items()}
    return (
        {leg: found for leg, found in outcomes.items() if isinstance(found, LegHits)},
        {leg: found for leg, found in outcomes.items() if isinstance(found, Exception)},
    )


def _ask(
    leg: Leg,
    vector: VectorArray,
    collection: SearchedCollection,
    top_k: int,
    filters: MetadataFilters | None,
    *,
    hubs: float,
) -> LegHits:
    stop_if_given_up()
    background = collection.background(leg.query) if hubs else None
    query = VectorStoreQuery(vector.tolist(), similarity_top_k=top_k, filters=filters)
    if background is not None and background.hubs is not None:
        store = cast("MilvusStore", collection.store)
        query.similarity_top_k = min(HITS_BEFORE_CORRECTION * top_k, MOST_HITS)
        hits = store.query_hits(query)
        raw = np.array([hit.score for hit in hits])
        hubness = background.hubness_of([hit.id for hit in hits], store.get_vectors)
        hubness = spare_itself(hubness, raw)
        corrected = np.argsort(hubs * hubness - raw, kind="stable")
        kept = sorted({*range(min(top_k, len(hits))), *corrected[:top_k].tolist()})
        return LegHits(
            [hits[i].node() for i in kept],
            raw[kept].tolist(),
            vector,
            background.hubs,
            hubness[kept],
        )
    found = collection.store.query(query)
    nodes, scores, ids = found.nodes or [], found.similarities or [], found.ids or []
    if ids and not nodes and collection.nodes is not None:
        nodes = collection.nodes(ids)
    if len(nodes) != len(scores):
        raise InvalidValueError(
            f"the {leg.target} store returned {len(nodes)} nodes and {len(scores)} scores for "
            f"{len(ids)} ids; pass the docstore that holds its nodes"
        )
    return LegHits(list(nodes), [float(score) for score in scores], vector)
