"""Learning from queries that nobody has judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llama_index_gap.index.backgrounds import Backgrounds
from llama_index_gap.index.queries import LearntQueries, UnlabelledQuery
from llama_index_gap.index.query_sample import QuerySample, SampleKeeper
from llama_index_gap.index.searching import SearchedIndex
from llama_index_gap.search.legs import Collections
from llama_index_gap.threads import asynchronous


class LearningIndex(SearchedIndex):
    """The part of ``DualIndex`` that learns from queries."""

    _queries: SampleKeeper
    _backgrounds: Backgrounds

    def learn_queries(self, queries: Iterable[UnlabelledQuery]) -> LearntQueries:
        """Keep a sample of unlabelled queries, by which each search finds more.

        It says what queries look like: how far their scores spread in each leg, and which vectors
        are near to all of them. Some 100 to 300 queries of a log, or of a development set, do; for
        a search by text texts, for a search by image images. Queries that are judged later should
        not be among them. Only their vectors are kept, in a small collection beside those of the
        index, for every process that opens the index from now on. Those given take the place of
        earlier ones of their modality.

        Args:
            queries: a ``str`` is a text, a ``Path`` or an open image is an image, a
                ``QueryBundle`` may hold either or both. At least 30 of a modality; of more than
                300, 300 are drawn, the same at each call.

        Returns:
            How many were kept, and what was left out and why: blank texts, images that cannot be
            opened, duplicates.

        Raises:
            ValueError: fewer than 30 of a modality could be embedded; nothing is changed then.
            StoreError: the database cannot be written.
        """
        try:
            return self._queries.learn(queries)
        finally:
            self._backgrounds.forget()

    def forget_queries(self) -> None:
        """Delete what ``learn_queries`` kept, even if it is damaged."""
        self._queries.drop()
        self._backgrounds.forget()

    def query_sample(self) -> QuerySample:
        """How many queries the index has learnt from.

        Raises:
            StoreError: what is kept is damaged, or of another model.
        """
        return self._queries.sample()

    def as_if_learnt(self, queries: Iterable[UnlabelledQuery]) -> Collections:
        """What a retriever searches, as it would be if other queries had been learnt.

        Args:
            queries: as for ``learn_queries``; they are not kept.
        """
        vectors, _ = self._queries.embedded(queries)
        return {
            name: replace(each, background=self._backgrounds.with_queries(name, vectors))
            for name, each in self.collections().items()
        }

    alearn_queries = asynchronous(learn_queries)
    aforget_queries = asynchronous(forget_queries)
