"""What the hits of each leg are compared with: drawn from an index, and kept until it changes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import MetadataMode

from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.gap.background import Background
from llama_index_gap.gap.hubs import FEWEST_REFERENCES
from llama_index_gap.index.query_sample import SampleKeeper
from llama_index_gap.modality import CollectionName, Modality
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.patience import patience

SAMPLE_SIZE = 300
"""Vectors of a collection that stand for its background (a few hundred, as fusion was measured)."""


class Backgrounds:
    """Draws the background of each leg once between writes.

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
        self._drawn: dict[CollectionName, tuple[list[str], VectorArray, int]] = {}
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
            self._forget_what_changed()
            self._sample.forget()

    def _forget_what_changed(self) -> None:
        """Whoever wrote: this object, another one on the same database, or another process.

        What was drawn after a search was called for is new enough for it: many searches beside an
        insert do not each draw anew.
        """
        searching, now = patience(), time.monotonic()
        if searching is not None and self._looked >= searching.began:
            return
        for name, store in self._stores.items():
            state = store.state()  # before anything is drawn, so that a later write shows
            if self._states.get(name) != state:
                self._states[name] = state
                self._drawn.pop(name, None)
                self._backgrounds.clear()
        self._looked = now

    def _made(
        self, name: CollectionName, asking: Modality, queries: VectorArray | None
    ) -> Background:
        ids, rows, size = self._sampled(name)
        few = queries is None or len(queries) < FEWEST_REFERENCES
        references = self._references(name, asking) if few else None
        return Background.of(ids, rows, size, references, queries)

    def _sampled(self, name: CollectionName) -> tuple[list[str], VectorArray, int]:
        """Some nodes of a collection, their vectors of length 1, and its rows."""
        if name not in self._drawn:
            self._drawn[name] = self._stores[name].draw(SAMPLE_SIZE)
        return self._drawn[name]

    def _references(self, name: CollectionName, asking: Modality) -> VectorArray:
        """Stored vectors that are like queries of a modality, in the space of a collection."""
        model = self._models[name]
        if asking == "image":
            return self._sampled("image_query" if name == "image_query" else "image")[1]
        ids, rows, size = self._sampled("text")
        if model is self._models["text"] or not size:
            return rows
        known = self._sample.references(name, size)
        if known is not None:
            return known
        nodes = self._stores["text"].get_nodes(ids)
        texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
        made = unit_rows(np.array(model.get_text_embedding_batch(texts), dtype=np.float32))
        self._sample.keep_references(name, made, size)
        return made
