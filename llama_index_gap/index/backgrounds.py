"""The backgrounds of each leg: drawn from the index, and kept until it changes."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from time import monotonic

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import MetadataMode

from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.gap.background import Background
from llama_index_gap.gap.hubs import FEWEST_REFERENCES
from llama_index_gap.index.query_sample import SampleKeeper
from llama_index_gap.modality import CollectionName, Modality
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.patience import patience

logger = logging.getLogger(__name__)

SAMPLE_SIZE = 300
"""Vectors of a collection in its background: a few hundred, as in the study of fusions."""
LARGE = 30_000
"""From this many rows on, a few writes hardly change a collection, and drawing from it is slow."""
MOST_SHARE = 1 / 20
"""The largest share of time to spend drawing from a large collection while it is written to."""


@dataclass(frozen=True)
class _Drawn:
    """A sample of a collection.

    Attributes:
        ids: the ids of its nodes.
        rows: their vectors, of length 1.
        size: the number of rows in the collection at that time.
        fresh_until: when it may be drawn again, on the monotonic clock.
        instead: whether it is an older sample, kept because drawing a new one failed.
    """

    ids: list[str]
    rows: VectorArray
    size: int
    fresh_until: float
    instead: bool = False

    def outlasts(self, size: int) -> bool:
        """Whether the sample may still be used after the collection was written to.

        Args:
            size: the number of rows in the collection now; 0 if unknown.
        """
        large = self.size >= LARGE and abs(size - self.size) <= self.size / 10
        return (large or self.instead) and monotonic() < self.fresh_until


class Backgrounds:
    """Draws the background of each leg once between writes.

    Drawing from a server's collection of a million rows takes a second. So while such a collection
    is constantly written to, its sample is used for some time longer. The same holds if drawing a
    new sample takes longer than the search may take: otherwise a slow server would answer no search
    between writes.

    Args:
        stores: the collections of an index.
        models: the model of each collection.
        sample: the queries that the index has learnt from.
    """

    def __init__(
        self,
        stores: Mapping[CollectionName, MilvusStore],
        models: Mapping[CollectionName, BaseEmbedding],
        sample: SampleKeeper,
    ) -> None:
        self._stores, self._models, self._sample = stores, models, sample
        self._states: dict[CollectionName, tuple[int, int]] = {}
        self._drawn: dict[CollectionName, _Drawn] = {}
        self._before: dict[CollectionName, _Drawn] = {}
        self._outdated: set[CollectionName] = set()
        self._backgrounds: dict[tuple[CollectionName, Modality], Background] = {}
        self._lock = threading.Lock()
        self._looked = -math.inf

    def of(self, name: CollectionName, asking: Modality) -> Background:
        """The background for hits of a collection.

        Args:
            name: the name of the collection.
            asking: the modality of the queries.
        """
        with self._lock:
            self._forget_what_changed()
            known = self._backgrounds.get((name, asking))
            if known is None:
                queries = self._sample.queries(name, asking)
                known = self._backgrounds[name, asking] = self._made(name, asking, queries)
            return known

    def with_queries(
        self,
        name: CollectionName,
        vectors: Mapping[tuple[CollectionName, Modality], VectorArray],
    ) -> Callable[[Modality], Background]:
        """Make backgrounds with other sample queries than the learnt ones.

        Args:
            name: the name of the collection.
            vectors: the vectors of the sample queries, from ``SampleKeeper.embedded``.
        """

        @cache
        def background(asking: Modality) -> Background:
            with self._lock:
                self._forget_what_changed()
                queries = self._sample.in_place_of(vectors, name, asking)
                return self._made(name, asking, queries)

        return background

    def forget(self) -> None:
        """Forget all samples, so that they are drawn again when needed."""
        with self._lock:
            self._states.clear()
            self._looked = -math.inf
            self._drawn.clear()
            self._before.clear()
            self._forget_what_changed()
            self._sample.forget()

    def _forget_what_changed(self) -> None:
        """Forget samples of changed collections, whichever object or process wrote to them.

        A sample drawn after a search began is new enough for it, so that of many searches during
        an insert not each draws again.
        """
        searching, now = patience(), monotonic()
        if searching is not None and self._looked >= searching.began:
            return
        for name, store in self._stores.items():
            state = store.state()  # read before drawing, so that a later write is noticed
            if self._states.get(name) != state:
                self._states[name] = state
                self._outdated.add(name)
                self._backgrounds.clear()  # they hold the hubness of nodes that may have changed
            drawn = self._drawn.get(name)
            if name in self._outdated and not (drawn and drawn.outlasts(state[1])):
                self._outdated.discard(name)
                if drawn:
                    self._before[name] = self._drawn.pop(name)
                self._backgrounds.clear()
        self._looked = now

    def _made(
        self, name: CollectionName, asking: Modality, queries: VectorArray | None
    ) -> Background:
        drawn = self._sampled(name)
        few = queries is None or len(queries) < FEWEST_REFERENCES
        references = self._references(name, asking) if few else None
        return Background.of(drawn.ids, drawn.rows, drawn.size, references, queries)

    def _sampled(self, name: CollectionName) -> _Drawn:
        if name in self._drawn:
            return self._drawn[name]
        started = monotonic()
        try:
            drawn = _Drawn(*self._stores[name].draw(SAMPLE_SIZE), fresh_until=math.inf)
        except StoreError as error:
            if name not in self._before:
                raise
            drawn = replace(self._before[name], instead=True)
            self._outdated.add(name)
            logger.warning("%s; hits are compared with the previous sample", error)
        fresh_until = started + (monotonic() - started) / MOST_SHARE
        self._drawn[name] = replace(drawn, fresh_until=fresh_until)
        return self._drawn[name]

    def _references(self, name: CollectionName, asking: Modality) -> VectorArray:
        """Stored vectors that stand in for queries of a modality, in a collection's space."""
        model = self._models[name]
        if asking == "image":
            return self._sampled("image_query" if name == "image_query" else "image").rows
        drawn = self._sampled("text")
        if model is self._models["text"] or not drawn.size:
            return drawn.rows
        known = self._sample.references(name, drawn.size)
        if known is not None:
            return known
        nodes = self._stores["text"].get_nodes(drawn.ids)
        texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
        made = unit_rows(np.array(model.get_text_embedding_batch(texts), dtype=np.float32))
        self._sample.keep_references(name, made, drawn.size)
        return made
