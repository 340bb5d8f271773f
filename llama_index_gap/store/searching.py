"""Searching a collection by vector."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from llama_index_gap.errors import InvalidValueError, UnsupportedError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.store.collection import SESSION
from llama_index_gap.store.exact import LITE_EF, missed_hits
from llama_index_gap.store.filters import DOC_ID_FIELD, ID_FIELD, NO_DOCUMENT, filter_expression
from llama_index_gap.store.reading import ReadableStore, refuse_arguments
from llama_index_gap.store.rows import NODE_FIELDS, VECTOR_FIELD, to_vector
from llama_index_gap.threads import in_thread

logger = logging.getLogger(__name__)

MOST_UNFLUSHED = 2_000
"""Maximum unflushed rows on Milvus Lite, which searches them one by one; with more, a search
flushes them first."""
_MOST_RESULTS = 16_384  # a server's limit, which we apply to Milvus Lite too


@dataclass(frozen=True)
class StoredHit:
    """A hit of a search.

    Attributes:
        id: of the node.
        document: key of the node's document, see ``document_key``.
        score: its similarity.
        node: makes the node.
    """

    id: str
    document: str
    score: float
    node: Callable[[], BaseNode]


class SearchableStore(ReadableStore):
    """The part of ``MilvusStore`` that searches by vector."""

    _rows_counted: tuple[int, int] = PrivateAttr(default=(-1, 0))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes nearest to a vector.

        Args:
            query: ``query_embedding``, ``similarity_top_k`` (up to 16,384), and restrictions:
                ``filters``, ``node_ids``, ``doc_ids``; see ``filter_expression``. Empty lists of
                ids restrict nothing: LlamaIndex's retriever passes them if it has no ids.
            **kwargs: none are accepted.

        Returns:
            Nodes, nearest first, their similarities and ids.

        Raises:
            ValueError: the query is invalid.
            NotImplementedError: the query's mode is not the default one.
        """
        refuse_arguments("query", kwargs)
        hits = self.query_hits(query)
        return VectorStoreQueryResult(
            nodes=[hit.node() for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def query_hits(
        self, query: VectorStoreQuery, *, other_than: Sequence[str] = ()
    ) -> list[StoredHit]:
        """Like ``query``, but makes a hit's node only on demand, as most are never used.

        Args:
            query: as for ``query``.
            other_than: leave out the nodes of documents with these keys.
        """
        if query.mode is not VectorStoreQueryMode.DEFAULT:
            raise UnsupportedError(
                f"query mode {query.mode.value!r}: this store searches by vector; use the default"
            )
        k = query.similarity_top_k
        if not 0 <= k <= _MOST_RESULTS:
            raise InvalidValueError(
                f"similarity_top_k={k}: must be between 0 and {_MOST_RESULTS:,}"
            )
        vector = self._to_vector(query.query_embedding, "the query")
        expression = filter_expression(
            query.filters,
            node_ids=query.node_ids or None,
            doc_ids=query.doc_ids or None,
            other_than=other_than,
        )
        if not k:
            return []
        settings = dict(self.search_config or {})
        if "ef" in settings:  # HNSW finds no more nodes than ef
            settings["ef"] = max(int(settings["ef"]), k)
        lite = self._collection.connection.lite
        if lite and expression and "ef" in settings:
            settings["ef"] = max(settings["ef"], LITE_EF)
        if self._collection.connection.unflushed_rows(self.collection_name) > MOST_UNFLUSHED:
            self._collection.flush_file()
        fields = [*NODE_FIELDS, DOC_ID_FIELD]
        (found,) = self._collection.call(
            "search",
            data=[vector],
            anns_field=VECTOR_FIELD,
            limit=k,
            filter=expression,
            output_fields=fields,
            search_params={"metric_type": self.similarity_metric, "params": settings},
            **SESSION,
        )
        sign = -1.0 if self.similarity_metric == "L2" else 1.0
        hits = [hit for hit in found if math.isfinite(hit["distance"])]
        if len(hits) < len(found):
            logger.warning(
                "%s: left out %d hits whose vectors are zero, NaN or infinite; delete their nodes, "
                "or add them again",
                self._collection,
                len(found) - len(hits),
            )
        if lite and len(found) < k and self._may_miss(len(found), expression):
            hits += missed_hits(
                self._collection,
                expression,
                vector,
                {hit[ID_FIELD] for hit in found},
                fields,
                metric=self.similarity_metric,
                most=k - len(found),
            )
            hits.sort(key=lambda hit: -sign * hit["distance"])  # stable
        return [
            StoredHit(
                str(hit[ID_FIELD]),
                str(_document_of(hit["entity"][DOC_ID_FIELD], hit[ID_FIELD])),
                sign * float(hit["distance"]),
                partial(self._to_node, {ID_FIELD: hit[ID_FIELD], **hit["entity"]}),
            )
            for hit in hits
        ]

    def _may_miss(self, found: int, expression: str) -> bool:
        """Whether a search on Milvus Lite that found too few hits may have missed rows."""
        if self._collection.index_type == "FLAT":
            return False
        if expression:
            return True
        written = self._collection.connection.written(self.collection_name)
        if self._rows_counted[0] != written:  # a Lite file has no other writer
            self._rows_counted = written, self.count()
        return found < self._rows_counted[1]

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Like ``query``, without blocking the event loop."""
        return await in_thread(self.query, query, **kwargs)

    def _to_vector(self, embedding: Sequence[float] | None, name: str) -> VectorArray:
        collection, metric = self._collection, self.similarity_metric
        return to_vector(embedding, name, of=str(collection), dim=collection.dim, metric=metric)


def _document_of(doc_id: str, node_id: str) -> str:
    return node_id if doc_id in NO_DOCUMENT else doc_id
