"""The legs of a search: which ones a query needs, their query vectors and their hits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, Protocol, TypeAlias

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, QueryBundle
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index_gap.errors import InvalidValueError, NotPicklableError
from llama_index_gap.gap.arrays import FloatArray, VectorArray, unit_rows
from llama_index_gap.gap.background import Background
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.gap.hubs import Hubs, spare_itself
from llama_index_gap.modality import CollectionName, Leg, Modality
from llama_index_gap.nodes import GroupBy, document_key
from llama_index_gap.threads import stop_if_given_up

ImageQueries: TypeAlias = Literal["images", "also_texts"]


@dataclass(frozen=True)
class SearchedCollection:
    """A vector store of one modality, and the model that its queries are embedded with.

    Attributes:
        store: holds the vectors.
        embed_model: embeds the queries.
        background: gives the background for queries of a modality; None if the store cannot be
            sampled.
        nodes: gives the nodes with these ids; for a store that keeps only vectors.
    """

    store: BasePydanticVectorStore
    embed_model: BaseEmbedding
    background: Callable[[Modality], Background | None] = lambda _: None
    nodes: Callable[[list[str]], list[BaseNode]] | None = None

    # Shallow and deep copies of a retriever search the same database.
    def __copy__(self) -> SearchedCollection:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SearchedCollection:
        return self

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError("what searches a database")


Collections: TypeAlias = Mapping[CollectionName, SearchedCollection]


class Searchable(Protocol):
    """The interface that a retriever needs of an index."""

    def collections(self) -> Collections:
        """The collections to search."""

    def models(self) -> str:
        """The models that made the vectors, in words."""

    def calibrator(self) -> RelevanceCalibrator | None:
        """The calibrator that is saved with the index."""


@dataclass(frozen=True)
class LegHits:
    """The hits of one leg, highest raw score first.

    Attributes:
        nodes: the n nodes.
        scores: their n raw scores.
        query: the query's vector, shape (d,).
        hubs: tells how much of a hub a vector is; None if hubs are not corrected.
        hubness: ρ · hubness of each node's vector, shape (n,); None if hubs are not corrected.
        asked: how often the collection was searched, see ``ask_legs``.
        exhausted: whether the collection has no further documents.
    """

    nodes: Sequence[BaseNode]
    scores: Sequence[float]
    query: VectorArray
    hubs: Hubs | None = None
    hubness: FloatArray | None = None
    asked: int = 1
    exhausted: bool = True

    def __getitem__(self, kept: slice | Sequence[int]) -> LegHits:
        """Some of the hits, by a slice or by their positions."""
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
            nodes: the n nodes.
            rows: their unit vectors, shape (n, d).
        """
        scores = (rows @ unit_query(self.query)).tolist()
        hubness = None if self.hubs is None else spare_itself(self.hubs.of(rows), scores)
        return replace(self, nodes=nodes, scores=scores, hubness=hubness)

    def first(
        self, nodes: int, documents: int, strength: float, group_by: GroupBy = "document"
    ) -> LegHits:
        """The first hits after hub correction, and further ones until there are enough documents.

        Args:
            nodes: minimum number of hits.
            documents: number of documents that they must belong to.
            strength: α; with 0, the raw scores decide.
            group_by: what counts as a document.
        """
        scores = np.asarray(self.scores)
        if self.hubness is not None and strength:
            scores = scores - strength * self.hubness
            order = np.argsort(-scores, kind="stable").tolist()
        else:
            order = list(range(len(scores)))
        keys = [document_key(node, group_by) for node in self.nodes]
        return self[first_places(order, keys, nodes, documents)]


def first_places(
    order: Sequence[int], keys: Sequence[str], nodes: int, documents: int
) -> list[int]:
    """The first positions of an order, extended until enough documents are among them.

    Args:
        order: positions of hits, best first.
        keys: the document of each hit.
        nodes: minimum number of positions to take.
        documents: number of documents wanted.
    """
    seen: set[str] = set()
    end = min(nodes, len(order))
    for number, place in enumerate(order, 1):
        if number > nodes and len(seen) >= documents:
            break
        if keys[place] not in seen:
            seen.add(keys[place])
            end = max(end, number)
    return list(order[:end])


def unit_query(vector: VectorArray) -> VectorArray:
    """The query as a unit vector; a zero vector, which matches nothing, stays unchanged."""
    return unit_rows(vector) if vector.any() else vector


def searched_collection(leg: Leg, collections: Collections) -> CollectionName:
    """The collection that a leg searches.

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
    """The legs of a query.

    Args:
        collections: the collections that can be searched.
        top_ks: nodes to take from each modality; with 0, the modality is not searched.
        text: whether the query has a text.
        image: whether the query has an image.
        image_queries: whether an image without a text searches the texts too.
    """
    targets = [target for target in top_ks if top_ks[target]]
    legs = [Leg("text", target) for target in targets] if text else []
    if not image:
        return legs
    # An image and a text can be compared only if one model embeds both.
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
    """The query vector of each leg; a query is embedded once for each model.

    Raises:
        ValueError: a model cannot embed the leg's query.
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
                    f"the query has an embedding but no text, and {model.model_name} needs a text: "
                    "the given embedding is used only with the text collection's model"
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
