"""What the hits of each leg are compared with: drawn from an index, and kept until it changes."""

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
"""Vectors of a collection that stand for its background (a few hundred, as fusion was measured)."""
LARGE = 30_000
"""Rows of a collection that a few writes do not change as a whole; drawing from it takes long."""
MOST_SHARE = 1 / 20
"""Of the time, that is spent with drawing from a large collection while it is written to."""


@dataclass(frozen=True)
class _Drawn:
    """A sample of a collection.

    Attributes:
        ids: of its nodes.
        rows: their vectors, of length 1.
        size: how many rows the collection had.
        fresh_until: when it may be drawn again, on the monotonic clock.
        instead: whether it was to be drawn again, and could not be.
    """

    ids: list[str]
    rows: VectorArray
    size: int
    fresh_until: float
    instead: bool = False

    def outlasts(self, size: int) -> bool:
        """Whether it still stands for a collection that was written to meanwhile.

        Args:
            size: how many rows that has now; 0 where it is not known.
        """
        large = self.size >= LARGE and abs(size - self.size) <= self.size / 10
        return (large or self.instead) and monotonic() < self.fresh_until


class Backgrounds:
    """Draws the background of each leg once between writes.

    Drawing from a server's collection of a million rows takes a second. So while that is written
    to all the time, a sample of it serves some time longer. So does one that cannot be drawn anew
    in the time that a search has: else no search of a slow server would be answered between writes.

    Args:
        stores: the collections of an index.
        models: the model of each.
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
        """What hits of a collection are compared with.

        Args:
            name: of the collection.
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
        """The same with other sample queries than those that were learnt.

        Args:
            name: of the collection.
            vectors: as ``SampleKeeper.embedded`` gives them.
        """

        @cache
        def background(asking: Modality) -> Background:
            with self._lock:
                self._forget_what_changed()
                queries = self._sample.in_place_of(vectors, name, asking)
                return self._made(name, asking, queries)

        return background

    def forget(self) -> None:
        """Draw everything again when it is next asked for."""
        with self._lock:
            self._states.clear()
            self._looked = -math.inf
            self._drawn.clear()
            self._before.clear()
            self._forget_what_changed()
            self._sample.forget()

    def _forget_what_changed(self) -> None:
        """Whoever wrote: this object, another one on the same database, or another process.

        What was drawn after a search was called for is new enough for it: many searches beside an
        insert do not each draw anew.
        """
        searching, now = patience(), monotonic()
        if searching is not None and self._looked >= searching.began:
            return
        for name, store in self._stores.items():
            state = store.state()  # before anything is drawn, so that a later write shows
            if self._states.get(name) != state:
                self._states[name] = state
                self._outdated.add(name)
                self._backgrounds.clear()  # with the hubness of nodes that may be others now
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
            logger.warning("%s; hits are compared with the sample that was drawn before", error)
        fresh_until = started + (monotonic() - started) / MOST_SHARE
        self._drawn[name] = replace(drawn, fresh_until=fresh_until)
        return self._drawn[name]

    def _references(self, name: CollectionName, asking: Modality) -> VectorArray:
        """Stored vectors that are like queries of a modality, in the space of a collection."""
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
