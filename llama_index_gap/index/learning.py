"""Learns from unlabelled queries."""

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
        """Learn from a sample of unlabelled queries, so that each search finds more.

        The sample shows how far the scores of queries spread in each leg, and which vectors are
        near to all queries. 100 to 300 queries from a log or a development set are enough: texts
        for text queries, images for image queries. Leave out the queries of an evaluation. Only
        vectors are kept, in a small collection beside those of the index, for every process that
        opens the index from now on. They replace earlier ones of the same modality.

        Args:
            queries: a ``str`` is a text, a ``Path`` or an open image is an image, a
                ``QueryBundle`` may have either or both. At least 30 of a modality; from more than
                300, 300 are drawn, the same at each call.

        Returns:
            How many were kept, and what was left out and why: blank texts, images that cannot be
            opened, duplicates.

        Raises:
            ValueError: fewer than 30 of a modality could be embedded; nothing has changed.
            StoreError: the database cannot be written.
        """
        try:
            return self._queries.learn(queries)
        finally:
            self._backgrounds.forget()

    def forget_queries(self) -> None:
        """Delete the vectors that ``learn_queries`` kept, even if they are damaged."""
        self._queries.drop()
        self._backgrounds.forget()

    def query_sample(self) -> QuerySample:
        """The number of queries that the index has learnt from.

        Raises:
            StoreError: the kept vectors are damaged, or come from another model.
        """
        return self._queries.sample()

    def as_if_learnt(self, queries: Iterable[UnlabelledQuery]) -> Collections:
        """The collections as a retriever would search them after learning from other queries.

        Args:
            queries: as for ``learn_queries``; nothing is kept.
        """
        vectors, _ = self._queries.embedded(queries)
        return {
            name: replace(each, background=self._backgrounds.with_queries(name, vectors))
            for name, each in self.collections().items()
        }

    alearn_queries = asynchronous(learn_queries)
    aforget_queries = asynchronous(forget_queries)
