"""Searching each leg, and searching again if few documents have all of its hits."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.gap.hubs import spare_itself
from llama_index_gap.modality import Leg, Modality
from llama_index_gap.nodes import GroupBy, document_key
from llama_index_gap.search.legs import (
    Collections,
    LegHits,
    SearchedCollection,
    first_places,
    searched_collection,
)
from llama_index_gap.search.tracing import in_span
from llama_index_gap.threads import beside, stop_if_given_up

if TYPE_CHECKING:
    from llama_index_gap.store.searching import SearchableStore, StoredHit

HITS_BEFORE_CORRECTION = 4
"""Factor on the wanted hits: fetching 64 hits for 16 had no measurable loss."""
MOST_HITS = 16_384
"""Maximum number of hits that Milvus returns."""
MOST_ASKS = 16
"""Maximum searches for one leg; so it fetches at most 16 times the wanted nodes."""
_TIMES_MORE = 4  # factor on the nodes of each further search, if a store cannot exclude documents


@dataclass(frozen=True)
class Wanted:
    """How many nodes and documents a search takes from each leg.

    Attributes:
        nodes: nodes to take, by the leg's target modality; with 0, the modality is not searched.
        documents: how many documents these nodes must belong to, if the collection has so many; 0
            for any number.
        group_by: what counts as a document.
    """

    nodes: Mapping[Modality, int]
    documents: int
    group_by: GroupBy

    def documents_of(self, leg: Leg) -> int:
        """How many documents a leg must find; 0 if it takes fewer nodes than ``documents``."""
        return self.documents if self.documents <= self.nodes[leg.target] else 0

    def first(self, leg: Leg, found: LegHits, strength: float) -> LegHits:
        """The hits that are taken from a leg.

        Args:
            leg: the leg.
            found: all its hits.
            strength: of the hub correction (α).
        """
        nodes, documents = self.nodes[leg.target], self.documents_of(leg)
        return found.first(nodes, documents, strength, self.group_by)

    def note(self, leg: Leg, taken: LegHits) -> str | None:
        """Say that few documents had most of a leg's hits, and what was done; else None.

        Args:
            leg: the leg.
            taken: the result of ``first``.
        """
        documents = len({document_key(node, self.group_by) for node in taken.nodes})
        more = "there are no others" if taken.exhausted else "raise similarity_top_k to find others"
        if taken.asked > 1:
            said = (
                f"searched {taken.asked} times, since few documents have most of the nearest "
                f"nodes: {documents} of {self.documents} wanted documents were found"
            )
            return said if documents >= self.documents else f"{said}; {more}"
        if taken.exhausted or documents == len(taken.nodes) or documents >= self.documents:
            return None
        return (
            f"searched once: its {len(taken.nodes)} hits belong to {documents} of "
            f"{self.documents} wanted documents; {more}"
        )


def ask_legs(
    owner: object,
    vectors: Mapping[Leg, VectorArray],
    collections: Collections,
    wanted: Wanted,
    filters: MetadataFilters | None,
    *,
    hubs: float,
) -> tuple[dict[Leg, LegHits], dict[Leg, Exception]]:
    """Search all legs, in parallel if their stores gain from it.

    If the nodes that a leg finds belong to fewer documents than wanted, and there may be more
    documents, the leg is searched again, at most 16 times in all. A ``MilvusStore`` then gives as
    many nodes of *other* documents, so that a book of thousands of near passages costs one further
    search, as a page of twenty does. (Milvus' own grouping would count all nodes without a document
    as one document, and needs Milvus 2.4.) Any other store gives 4 and then 16 times as many nodes.

    Args:
        owner: the searching object, for the trace.
        vectors: the query vector of each leg.
        collections: the collections to search.
        wanted: how many nodes and documents to take from each leg.
        filters: on metadata.
        hubs: strength of the hub correction (α). Above 0, a leg that has hubs fetches four times as
            many nodes, so that nodes that move up are among them. The result holds both the best by
            raw score and the best by corrected score.

    Returns:
        The hits of each leg, and the errors of the legs that failed.
    """

    def ask(leg: Leg) -> LegHits | Exception:
        collection, vector = collections[searched_collection(leg, collections)], vectors[leg]

        def hits() -> LegHits:
            if hasattr(collection.store, "query_hits"):
                return _ask(leg, vector, collection, wanted, filters, hubs=hubs)
            return _ask_another_store(leg, vector, collection, wanted, filters)

        try:
            return in_span(owner, f"search_{leg.name}", hits)
        except Exception as error:  # any error of a leg must not fail the other legs
            return error

    first, *others = vectors
    stores = [collection.store for collection in collections.values()]
    if not others or all(getattr(store, "one_at_a_time", False) for store in stores):
        outcomes = {leg: ask(leg) for leg in vectors}
    else:
        # Each thread gets a copy of the context, so that a trace shows these searches as ours.
        waiting = {leg: beside(partial(copy_context().run, ask, leg)) for leg in others}
        outcomes = {first: ask(first)} | {leg: wait() for leg, wait in waiting.items()}
    return (
        {leg: found for leg, found in outcomes.items() if isinstance(found, LegHits)},
        {leg: found for leg, found in outcomes.items() if isinstance(found, Exception)},
    )


def _ask(
    leg: Leg,
    vector: VectorArray,
    collection: SearchedCollection,
    wanted: Wanted,
    filters: MetadataFilters | None,
    *,
    hubs: float,
) -> LegHits:
    store = cast("SearchableStore", collection.store)
    background = collection.background(leg.query) if hubs else None
    if background is not None and background.hubs is None:
        background = None
    nodes, documents = wanted.nodes[leg.target], wanted.documents_of(leg)
    more = 1 if background is None else HITS_BEFORE_CORRECTION
    query = VectorStoreQuery(
        vector.tolist(), similarity_top_k=min(more * nodes, MOST_HITS), filters=filters
    )
    hits: list[StoredHit] = []
    known: dict[str, None] = {}
    asked, exhausted = 0, False
    while asked < MOST_ASKS and not exhausted and (not asked or len(known) < documents):
        stop_if_given_up()
        found = store.query_hits(query, other_than=list(known))
        asked, exhausted = asked + 1, len(found) < query.similarity_top_k
        hits += found
        known |= dict.fromkeys(_key(hit, wanted.group_by) for hit in found)
    hits.sort(key=lambda hit: -hit.score)  # stable
    raw = np.array([hit.score for hit in hits])
    keys = [_key(hit, wanted.group_by) for hit in hits]
    kept = first_places(range(len(hits)), keys, nodes, documents)
    hubness = None
    if background is not None:
        # A strongly consistent read would wait up to 0.2 s for a server's clock. The search has
        # just found these rows, so a weaker read finds them too.
        vectors = partial(store.get_vectors, strong=False)
        hubness = background.hubness_of([hit.id for hit in hits], vectors)
        hubness = spare_itself(hubness, raw)
        corrected = np.argsort(hubs * hubness - raw, kind="stable").tolist()
        kept = sorted({*kept, *first_places(corrected, keys, nodes, documents)})
        hubness = hubness[kept]
    return LegHits(
        [hits[i].node() for i in kept],
        raw[kept].tolist(),
        vector,
        None if background is None else background.hubs,
        hubness,
        asked,
        exhausted,
    )


def _key(hit: StoredHit, group_by: GroupBy) -> str:
    return hit.document if group_by == "document" else hit.id


def _ask_another_store(
    leg: Leg,
    vector: VectorArray,
    collection: SearchedCollection,
    wanted: Wanted,
    filters: MetadataFilters | None,
) -> LegHits:
    most = wanted.nodes[leg.target]
    query = VectorStoreQuery(vector.tolist(), similarity_top_k=most, filters=filters)
    asked = 0
    while True:
        stop_if_given_up()
        asked += 1
        found = collection.store.query(query)
        nodes, scores, ids = found.nodes or [], found.similarities or [], found.ids or []
        if ids and not nodes and collection.nodes is not None:
            nodes = collection.nodes(ids)
        if len(nodes) != len(scores):
            raise InvalidValueError(
                f"the {leg.target} store returned {len(nodes)} nodes and {len(scores)} scores for "
                f"{len(ids)} ids; pass the docstore that holds the store's nodes"
            )
        exhausted = len(nodes) < query.similarity_top_k
        documents = len({document_key(node, wanted.group_by) for node in nodes})
        enough = documents >= wanted.documents_of(leg)
        if exhausted or enough or query.similarity_top_k >= MOST_ASKS * most:
            break
        query.similarity_top_k *= _TIMES_MORE
    return LegHits(
        list(nodes), [float(score) for score in scores], vector, asked=asked, exhausted=exhausted
    )
