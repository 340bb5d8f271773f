"""Asking the collections, and asking again where few documents take up all hits of a leg."""

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
"""Times the hits that are wanted: 64 for 16 lose nothing that could be measured."""
MOST_HITS = 16_384
"""What Milvus returns at most."""
MOST_ASKS = 16
"""How often a leg is asked at most; so it looks at 16 times the nodes that are wanted of it."""
_TIMES_MORE = 4  # nodes at each further question, of a store that cannot leave documents out


@dataclass(frozen=True)
class Wanted:
    """How much a search is to take from each leg.

    Attributes:
        nodes: nodes to take, by modality of what is searched; 0 asks none of it.
        documents: documents that these are to belong to, where the collection has as many; 0 for
            any number.
        group_by: what counts as a document.
    """

    nodes: Mapping[Modality, int]
    documents: int
    group_by: GroupBy

    def documents_of(self, leg: Leg) -> int:
        """Documents that a leg is asked again for; 0 where it is to take fewer nodes than that."""
        return self.documents if self.documents <= self.nodes[leg.target] else 0

    def first(self, leg: Leg, found: LegHits, strength: float) -> LegHits:
        """What is taken of a leg's hits.

        Args:
            leg: which one.
            found: what it found.
            strength: how much of a hub is taken off its score (α).
        """
        nodes, documents = self.nodes[leg.target], self.documents_of(leg)
        return found.first(nodes, documents, strength, self.group_by)

    def note(self, leg: Leg, taken: LegHits) -> str | None:
        """Says that few documents had most of a leg's hits, and what came of it; else None.

        Args:
            leg: which one.
            taken: as ``first`` gives it.
        """
        documents = len({document_key(node, self.group_by) for node in taken.nodes})
        more = "there are no others" if taken.exhausted else "raise similarity_top_k to find others"
        if taken.asked > 1:
            said = (
                f"asked {taken.asked} times, since few documents have most of the nearest nodes: "
                f"{documents} documents in the end, of {self.documents} that were wanted"
            )
            return said if documents >= self.documents else f"{said}; {more}"
        if taken.exhausted or documents == len(taken.nodes) or documents >= self.documents:
            return None
        return (
            f"asked once: its {len(taken.nodes)} hits belong to {documents} documents, of "
            f"{self.documents} that were wanted; {more}"
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
    """Ask all legs, side by side where their stores gain by it.

    Where the nodes that a leg finds belong to fewer documents than are wanted, and there may be
    others, it is asked again, at most 16 times in all. A ``MilvusStore`` is then asked for as many
    nodes of *other* documents, so that a book of thousands of near passages takes one question
    more, like a page of twenty. (Milvus' own grouping would take all nodes without a document for
    one, and is not there before Milvus 2.4.) Another store is asked for 4, then for 16 times as
    many nodes.

    Args:
        owner: whose search it is, for the trace.
        vectors: what each leg asks with.
        collections: what is searched.
        wanted: how much to take from each leg.
        filters: on metadata.
        hubs: how much of a hub is taken off its score (α). Above 0, a leg that has hubs is asked
            for four times as many nodes, so that those that move up are among them; both the best
            by their raw score and the best by what is left of it are given.

    Returns:
        What each leg found; and why the others failed.
    """

    def ask(leg: Leg) -> LegHits | Exception:
        collection, vector = collections[searched_collection(leg, collections)], vectors[leg]

        def hits() -> LegHits:
            if hasattr(collection.store, "query_hits"):
                return _ask(leg, vector, collection, wanted, filters, hubs=hubs)
            return _ask_another_store(leg, vector, collection, wanted, filters)

        try:
            return in_span(owner, f"search_{leg.name}", hits)
        except Exception as error:  # a leg's failure, of whatever kind, is that leg's
            return error

    first, *others = vectors
    stores = [collection.store for collection in collections.values()]
    if not others or all(getattr(store, "one_at_a_time", False) for store in stores):
        outcomes = {leg: ask(leg) for leg in vectors}
    else:
        # The context goes along, so that traces know whose these searches are.
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
        # A strong read would wait for a server's clock, up to 0.2 s; these were just found.
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
                f"{len(ids)} ids; pass the docstore that holds its nodes"
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
