"""MilvusStore: LlamaIndex's Milvus store as a multimodal index needs it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.milvus import MilvusVectorStore
from pymilvus import MilvusClient

from llama_index_gap.errors import InvalidValueError, UnsupportedError
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.nodes import document_key
from llama_index_gap.store.addresses import TIMEOUT_SECONDS
from llama_index_gap.store.collection import (
    DEFAULT_INDEX,
    IDS_PER_MESSAGE,
    LOAD_SECONDS,
    MESSAGE_BYTES,
    SESSION,
    STRONG,
    Collection,
    batches,
    check_settings,
)
from llama_index_gap.store.connection import Connection, StoreError
from llama_index_gap.store.exact import LITE_EF, missed_hits
from llama_index_gap.store.filters import (
    DOC_ID_FIELD,
    ID_FIELD,
    NO_DOCUMENT,
    filter_expression,
    literal,
    literal_list,
)
from llama_index_gap.store.rows import (
    BUCKET_KEY,
    BUCKETS,
    FINGERPRINT_KEY,
    LABEL_KEYS,
    NODE_FIELDS,
    SOURCE_KEY,
    VECTOR_FIELD,
    StoredRow,
    fingerprint,
    image_path_of,
    in_buckets,
    most_row_bytes,
    only_moved,
    row_bytes,
    to_node,
    to_row,
    to_vector,
)
from llama_index_gap.threads import in_thread

logger = logging.getLogger(__name__)

STATE_SECONDS = 1.0
"""For so long what another process wrote to a server may go unnoticed by ``state``."""
_DEFAULT_EF = 64
_MOST_RESULTS = 16_384  # a server's own limit, kept on Milvus Lite too
_NODES_PER_READ = 400
_ROW_FIELDS = [ID_FIELD, DOC_ID_FIELD, FINGERPRINT_KEY, *LABEL_KEYS]
_ROWS_PER_ANSWER = 50_000  # each of some hundred bytes


@dataclass(frozen=True)
class StoredHit:
    """What a search finds.

    Attributes:
        id: of the node.
        document: the document that it belongs to, as ``document_key`` names it.
        score: its similarity.
        node: makes the node.
    """

    id: str
    document: str
    score: float
    node: Callable[[], BaseNode]


class MilvusStore(MilvusVectorStore):
    """One collection of nodes in Milvus or Milvus Lite, with one vector each.

    A collection that LlamaIndex's own ``MilvusVectorStore`` reads too. Every asynchronous method
    runs the synchronous one in a thread, so that any number of event loops can share a store; it is
    safe under threads. A search finds what this process wrote before it; what another process wrote
    appears on a server within about a second. There is one row per node id: adding a node again
    replaces it.

    Args:
        uri: a Milvus Lite file (``….db``), or a server (``http://…``).
        collection_name: letters, digits and underscores.
        dim: length of the vectors; None opens an existing collection only.
        token: ``user:password`` or an API key.
        overwrite: drop an existing collection first.
        index_config: ``{"index_type": …}`` and its settings, for a new collection; by default HNSW
            with M=16 and efConstruction=200.
        search_config: settings of each search; by default ef=64 for HNSW.
        similarity_metric: COSINE, IP or L2. Similarities are higher for nearer nodes; for L2 they
            are squared distances with a minus.
        batch_size: most rows in one message.
        timeout: seconds that a server may take to answer a call. If it was lost, a call that does
            no harm twice (all but making and dropping a collection) is made once more.
        image_folders: folders that images of nodes must lie in wherever they are opened; anywhere
            by default, as with LlamaIndex' own store.
        properties: of a new collection, which has them from the start; see ``set_properties``.

    Raises:
        ValueError: a setting is unknown or does not fit the existing collection, or there is none
            and ``dim`` is None.
        StoreError: the file is held by another process, or the server does not answer.
    """

    _collection: Collection = PrivateAttr()
    _settings: dict[str, Any] = PrivateAttr()
    _rows_asked: tuple[float, int] = PrivateAttr(default=(-math.inf, 0))
    _rows_counted: tuple[int, int] = PrivateAttr(default=(-1, 0))

    def __init__(
        self,
        *,
        uri: str | Path,
        collection_name: str,
        dim: int | None = None,
        token: str | None = None,
        overwrite: bool = False,
        index_config: Mapping[str, Any] | None = None,
        search_config: Mapping[str, Any] | None = None,
        similarity_metric: str = "COSINE",
        batch_size: int = 1_000,
        timeout: float = TIMEOUT_SECONDS,
        image_folders: ImageFolders | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        uri, metric = str(uri), similarity_metric.upper()
        check_settings(
            uri=uri,
            collection_name=collection_name,
            dim=dim,
            metric=metric,
            index_config=index_config,
            batch_size=batch_size,
            timeout=timeout,
        )
        collection = Collection(
            Connection(uri, token or "", timeout),
            collection_name,
            dim=dim,
            metric=metric,
            index_config=index_config,
            overwrite=overwrite,
            properties=properties,
        )
        with ExitStack() as opened:
            opened.callback(collection.connection.close)  # unless all goes well
            defaults = {"ef": _DEFAULT_EF} if collection.index_type.startswith("HNSW") else {}
            # The parent's constructor opens an asynchronous client, and takes unknown metrics for
            # L2.
            fields: dict[str, Any] = {
                "uri": uri,
                "collection_name": collection_name,
                "dim": collection.dim,
                "overwrite": overwrite,
                "upsert_mode": True,
                "similarity_metric": metric,
                "index_config": dict(index_config or DEFAULT_INDEX),
                "search_config": dict(search_config or defaults),
                "batch_size": batch_size,
                "use_async_client": False,
                "sparse_index_config": {},
                "sparse_embedding_function": None,
                "collection_properties": None,
                "hybrid_ranker": "RRFRanker",
                "scalar_field_names": None,
                "scalar_field_types": None,
            }
            BasePydanticVectorStore.__init__(self, **fields)
            self._async_milvusclient = None
            self._settings = {
                "uri": uri,
                "collection_name": collection_name,
                "dim": collection.dim,
                "token": token,
                "index_config": index_config,
                "search_config": search_config,
                "similarity_metric": similarity_metric,
                "batch_size": batch_size,
                "timeout": timeout,
                "image_folders": image_folders,
            }
            self._collection = collection
            self._milvusclient = collection.connection.client
            self._collection_initialized = True
            opened.pop_all()

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex knows the store by."""
        return "MilvusStore"

    # --- closing and copying ---------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection; the last store on a Lite file frees it for other processes."""
        self._collection.connection.close()

    def __enter__(self) -> MilvusStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def client(self) -> MilvusClient:
        """Of pymilvus; another one after a server was lost."""
        return self._collection.connection.client

    @property
    def collection(self) -> Collection:
        """The collection itself, for whoever reads or writes rows as they are stored."""
        return self._collection

    def confine_images(self, folders: ImageFolders) -> None:
        """From now on open images of nodes below these folders only; copies keep to it, too."""
        self._settings["image_folders"] = folders

    def _to_node(self, row: Mapping[str, Any]) -> BaseNode:
        return to_node(row, self._settings["image_folders"])

    # A copy, and what a pickle becomes, is a store of its own on the same collection.
    def __reduce__(self) -> tuple[Callable[..., MilvusStore], tuple[Any, ...]]:
        return _reopen, (type(self), self._settings)

    def __copy__(self) -> MilvusStore:
        return _reopen(type(self), self._settings)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> MilvusStore:
        return _reopen(type(self), self._settings)

    # --- writing ---------------------------------------------------------------------------------

    def add(
        self,
        nodes: Sequence[BaseNode],
        *,
        images: Mapping[str, str] | None = None,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        **add_kwargs: Any,
    ) -> list[str]:
        """Store nodes with their embeddings; a node whose id is there already is replaced.

        All nodes are checked before the first is written. Metadata is stored as JSON: dates and
        paths as text, decimals as text, sets and arrays as lists, NaN as null.

        Args:
            nodes: nodes with embeddings; of two with one id the later one stays.
            images: by id, a digest of the image that the vector was made from, for ``compare``.
            labels: by id, texts that are stored beside the node, for ``stored_rows``.
            **add_kwargs: none are known.

        Returns:
            The ids of the nodes, in order.

        Raises:
            ValueError: a node that cannot be stored; names it.
            StoreError: the database refuses or does not answer; earlier batches are then written.
        """
        _refuse_arguments("add", add_kwargs)
        rows = {
            node.node_id: to_row(
                node,
                self._collection.max_lengths,
                (images or {}).get(node.node_id, ""),
                (labels or {}).get(node.node_id),
            )
            | {VECTOR_FIELD: self._to_vector(node.embedding, f"node {node.node_id[:100]!r}")}
            for node in nodes
        }
        self.put_rows(rows.values())
        return [node.node_id for node in nodes]

    def put_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows as they are, each in place of one with its id.

        Args:
            rows: whole, as ``Collection.pages`` reads them, each with a vector.

        Raises:
            StoreError: the database refuses or does not answer; earlier batches are then written.
        """
        # Lite's insert replaces a row, and its upsert keeps the row's old dynamic keys; a server's
        # upsert replaces, and its insert adds a second row.
        write = "insert" if self._collection.connection.lite else "upsert"
        for batch in batches(rows, self.batch_size, row_bytes):
            self._collection.call(write, data=batch)

    def check(self, node: BaseNode) -> None:
        """Refuse a node that cannot be stored; its embedding, or that it has none, does not matter.

        Args:
            node: any node.

        Raises:
            ValueError: says why.
        """
        to_row(node, self._collection.max_lengths)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As ``add``, without blocking the event loop."""
        return await in_thread(self.add, nodes, **kwargs)

    def _to_vector(self, embedding: Sequence[float] | None, name: str) -> VectorArray:
        collection, metric = self._collection, self.similarity_metric
        return to_vector(embedding, name, of=str(collection), dim=collection.dim, metric=metric)

    def checked_vector(self, embedding: Sequence[float], node_id: str) -> VectorArray:
        """An embedding as it is stored.

        Args:
            embedding: of a node.
            node_id: of the node, for messages.

        Raises:
            ValueError: it does not fit the collection, or has no direction.
        """
        return self._to_vector(embedding, f"node {node_id[:100]!r}")

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document.

        Args:
            ref_doc_id: id of the source document.
            **delete_kwargs: none are known.
        """
        _refuse_arguments("delete", delete_kwargs)
        ids = self._collection.find_ids(filter_expression(doc_ids=[ref_doc_id]))
        if ref_doc_id == "None":  # what LlamaIndex's own store writes where there is no source
            ids = [node.node_id for node in self._read_nodes(ids) if node.ref_doc_id == "None"]
        self._delete_ids(ids)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As ``delete``, without blocking the event loop."""
        await in_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by filters, or those that fit both.

        Args:
            node_ids: ids; unknown ones are passed over, an empty list deletes nothing.
            filters: conditions on the metadata.
            **delete_kwargs: none are known.

        Raises:
            ValueError: neither is given, or the filters restrict nothing.
        """
        _refuse_arguments("delete_nodes", delete_kwargs)
        expression = filter_expression(filters, node_ids=node_ids)
        if not expression:
            raise InvalidValueError(
                "delete_nodes without ids or filters; to delete all, call clear()"
            )
        self._delete_ids(self._collection.find_ids(expression))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """As ``delete_nodes``, without blocking the event loop."""
        await in_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def _delete_ids(self, ids: Sequence[str]) -> None:
        for batch in batches(ids, IDS_PER_MESSAGE, len):
            self._collection.call("delete", filter=f"{ID_FIELD} in {literal_list(batch)}")
        if ids and not self._collection.connection.lite:
            # A server tells no time of a deletion that a search could wait for; a strong read does.
            self.existing_ids(ids[-1:])

    def clear(self) -> None:
        """Delete all nodes; the collection stays, with its properties, ready for new ones."""
        self._collection.clear()

    async def aclear(self) -> None:
        """As ``clear``, without blocking the event loop."""
        await in_thread(self.clear)

    def drop(self) -> None:
        """Delete the collection itself, and close."""
        try:
            self._collection.call("drop_collection")
        finally:
            self.close()

    def finish(self, *, flush: bool | None = None, timeout: float = LOAD_SECONDS) -> None:
        """End a build: write what is in memory to disk and wait until its index is there.

        Milvus Lite searches rows that were not flushed very slowly. A server indexes by itself, and
        limits how often it may be asked to flush.

        Args:
            flush: by default on Milvus Lite only, and only if something was written since the last
                flush, by this process or by one that was killed.
            timeout: seconds to wait for the index.

        Raises:
            StoreError: the index is not there in time; it goes on being built.
        """
        self._collection.finish(flush, timeout)

    def keep(self) -> None:
        """End a build whose rows are nowhere else: they outlast a server that is killed, too.

        A server (2.3.5) that is killed may lose rows that it took and had not flushed.

        Raises:
            StoreError: as ``finish``.
        """
        self.finish(flush=None if self._collection.connection.lite else True)

    # --- reading ---------------------------------------------------------------------------------

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes nearest to a vector.

        Args:
            query: ``query_embedding``, ``similarity_top_k`` (up to 16,384), and what restricts it:
                ``filters``, ``node_ids``, ``doc_ids``; see ``filter_expression``. Empty lists of
                ids restrict nothing: LlamaIndex's retriever passes them where it has none.
            **kwargs: none are known.

        Returns:
            Nodes, nearest first, their similarities and ids.

        Raises:
            ValueError: a query that cannot be asked.
            NotImplementedError: a mode other than the default one.
        """
        _refuse_arguments("query", kwargs)
        hits = self.query_hits(query)
        return VectorStoreQueryResult(
            nodes=[hit.node() for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def query_hits(
        self, query: VectorStoreQuery, *, other_than: Sequence[str] = ()
    ) -> list[StoredHit]:
        """As ``query``; a hit's node is made when it is asked for, as most are not.

        Args:
            query: as for ``query``.
            other_than: keys of documents whose nodes are left out.
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
        if "ef" in settings:  # HNSW cannot find more than it looks at
            settings["ef"] = max(int(settings["ef"]), k)
        lite = self._collection.connection.lite
        if lite and expression and "ef" in settings:
            settings["ef"] = max(settings["ef"], LITE_EF)
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
                "%s: %d vectors that are not finite, or of no length, were found and are left out; "
                "delete their nodes, or add them again",
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
        """Whether a search on Milvus Lite that found too few may not have come to all rows."""
        if self._collection.index_type == "FLAT":
            return False
        if expression:
            return True
        written = self._collection.connection.written(self.collection_name)
        if self._rows_counted[0] != written:  # a Lite file has no other writer
            self._rows_counted = written, self.count()
        return found < self._rows_counted[1]

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As ``query``, without blocking the event loop."""
        return await in_thread(self.query, query, **kwargs)

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        *,
        ref_doc_ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Read the nodes that fit all that is asked; all of them where nothing is.

        Args:
            node_ids: ids; an empty list gives no nodes, unknown ids are passed over.
            filters: conditions on the metadata.
            ref_doc_ids: ids of source documents.
            **kwargs: none are known.

        Returns:
            Nodes without embeddings (see ``get_vectors``), in the order of ``node_ids``.
        """
        _refuse_arguments("get_nodes", kwargs)
        ids = node_ids
        if ids is None or filters is not None or ref_doc_ids is not None:
            expression = filter_expression(filters, node_ids=node_ids, doc_ids=ref_doc_ids)
            found = dict.fromkeys(self._collection.find_ids(expression))
            ids = list(found) if ids is None else [node_id for node_id in ids if node_id in found]
        return self._read_nodes(ids)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """As ``get_nodes``, without blocking the event loop."""
        return await in_thread(self.get_nodes, node_ids, filters, **kwargs)

    def _read_nodes(self, ids: Sequence[str]) -> list[BaseNode]:
        rows = {
            row[ID_FIELD]: row for row in self._collection.read(ids, NODE_FIELDS, _NODES_PER_READ)
        }
        return [self._to_node(rows[node_id]) for node_id in dict.fromkeys(ids) if node_id in rows]

    def get_vectors(self, ids: Sequence[str], *, strong: bool = True) -> dict[str, VectorArray]:
        """Read vectors as they are stored.

        Args:
            ids: node ids; unknown ones are passed over.
            strong: whether what other processes have just written must be seen, which a server
                takes up to 0.2 s for; False sees what a search sees.

        Returns:
            For each id a float32 vector of ``dim`` numbers.
        """
        at_once = max(1, MESSAGE_BYTES // (4 * self._collection.dim))
        at_once = min(at_once, IDS_PER_MESSAGE)
        rows = self._collection.read(ids, [VECTOR_FIELD], at_once, strong=strong)
        return {row[ID_FIELD]: np.asarray(row[VECTOR_FIELD], dtype=np.float32) for row in rows}

    def some_nodes(self, most: int, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Read a few nodes that fit filters, whichever the database gives first.

        Args:
            most: how many.
            filters: conditions on the metadata.
        """
        expression = filter_expression(filters)
        rows = self._collection.call(
            "query", filter=expression, output_fields=NODE_FIELDS, limit=most, **STRONG
        )
        return [self._to_node(row) for row in rows]

    def nodes_of_documents(
        self, keys: Iterable[str], filters: MetadataFilters | None = None
    ) -> list[tuple[BaseNode, VectorArray]]:
        """Read all nodes of some documents with their vectors, in one query unless they are many.

        They are read as a search sees them: documents that a search found are there.

        Args:
            keys: keys of documents, as ``document_key`` gives them: the ``ref_doc_id`` of a node,
                or the id of a node that belongs to no document; unknown ones are passed over.
            filters: conditions on the metadata.

        Returns:
            Each node with its vector of ``dim`` numbers, as it is stored; in no particular order.
        """
        wanted = dict.fromkeys(keys)
        fields = [*NODE_FIELDS, VECTOR_FIELD]
        at_once = 3 * MESSAGE_BYTES // most_row_bytes(self._collection.dim)
        rows: list[dict[str, Any]] = []
        for batch in batches(wanted, IDS_PER_MESSAGE, len):
            expression = filter_expression(filters, document_keys=batch)
            found = self._collection.call(
                "query", filter=expression, output_fields=fields, limit=at_once, **SESSION
            )
            if len(found) == at_once:  # and there may be more
                found = self._collection.read(
                    self._collection.find_ids(expression), fields, at_once
                )
            rows += found
        read = [
            (self._to_node(row), np.asarray(row[VECTOR_FIELD], dtype=np.float32)) for row in rows
        ]
        return [(node, vector) for node, vector in read if document_key(node, "document") in wanted]

    def documents_of(self, ids: Iterable[str]) -> dict[str, str]:
        """Say which document each node belongs to: its ``ref_doc_id``, or else its own id.

        Args:
            ids: any number of node ids; unknown ones are passed over.
        """
        rows = self._collection.read(ids, [ID_FIELD, DOC_ID_FIELD], IDS_PER_MESSAGE)
        return {row[ID_FIELD]: row[DOC_ID_FIELD] or row[ID_FIELD] for row in rows}

    def ids_of_documents(self, ref_doc_ids: Sequence[str]) -> list[str]:
        """The ids of the nodes of some documents; a row that holds no node has one, too.

        Args:
            ref_doc_ids: ids of source documents.
        """
        return self._collection.find_ids(filter_expression(doc_ids=list(ref_doc_ids)))

    def image_paths(self, ids: Sequence[str]) -> dict[str, str]:
        """The file that each node names as its image; a row that holds no node names none.

        Args:
            ids: node ids; unknown ones are passed over.
        """
        paths: dict[str, str] = {}
        for row in self._collection.read(ids, ["_node_content"], _NODES_PER_READ):
            if (path := image_path_of(row)) is not None:
                paths[row[ID_FIELD]] = path
        return paths

    def existing_ids(self, ids: Iterable[str]) -> set[str]:
        """Say which of these nodes are stored; for going on with an interrupted build.

        Args:
            ids: any number of node ids.
        """
        return {row[ID_FIELD] for row in self._collection.read(ids, [ID_FIELD], IDS_PER_MESSAGE)}

    def unchanged_ids(self, nodes: Iterable[BaseNode]) -> set[str]:
        """Say which of these nodes are stored just as they are, vectors aside.

        Args:
            nodes: any number of nodes; one that cannot be stored is none of them.
        """
        return self.compare(nodes, {})[0]

    def compare(
        self, nodes: Iterable[BaseNode], images: Mapping[str, str]
    ) -> tuple[set[str], set[str]]:
        """Compare nodes with what is stored.

        Args:
            nodes: any number of nodes; one that cannot be stored is in neither set.
            images: by id, a digest of the image that its vector is made from.

        Returns:
            The ids of those that are stored just as they are; and of those that differ in nothing
            but the path of their image.
        """
        asked: dict[str, str] = {}
        for node in nodes:
            with suppress(InvalidValueError):
                asked[node.node_id] = fingerprint(node, images.get(node.node_id, ""))
        stored = {
            node_id: row.fingerprint
            for node_id, row in self.stored_rows(asked, images=images).items()
        }
        return (
            {node_id for node_id, known in stored.items() if known == asked[node_id]},
            {
                node_id
                for node_id, known in stored.items()
                if only_moved(str(known), asked[node_id])
            },
        )

    def stored_rows(
        self, ids: Iterable[str], *, images: Mapping[str, str] | None = None
    ) -> dict[str, StoredRow]:
        """What is stored beside some nodes, by id.

        Args:
            ids: any number of node ids; unknown ones are passed over.
            images: by id, a digest of an image, for rows that carry no fingerprint.
        """
        rows = self._collection.read(ids, _ROW_FIELDS, IDS_PER_MESSAGE)
        stored = {row[ID_FIELD]: StoredRow.of(row) for row in rows}
        # Rows of LlamaIndex's own store carry none.
        bare = [node_id for node_id, row in stored.items() if row.fingerprint is None]
        for row in self._collection.read(bare, NODE_FIELDS, _NODES_PER_READ):
            with suppress(StoreError):  # a damaged one is replaced
                node = self._to_node(row)
                known = fingerprint(node, (images or {}).get(node.node_id, ""))
                stored[node.node_id] = replace(stored[node.node_id], fingerprint=known)
        return stored

    def rows_from(self, source: str | None) -> dict[str, StoredRow]:
        """What is stored beside the nodes that were written from a corpus, by id.

        Args:
            source: its name; None for all that is stored.
        """
        key = f"$meta[{literal(SOURCE_KEY)}]"
        expression = "" if source is None else f"{key} == {literal(source)}"
        if self.count() > _ROWS_PER_ANSWER:
            return self.stored_rows(self._collection.find_ids(expression))
        expression = expression or f"{ID_FIELD} != {literal('')}"
        rows = self._collection.call(
            "query", filter=expression, output_fields=_ROW_FIELDS, **STRONG
        )
        return {row[ID_FIELD]: StoredRow.of(row) for row in rows}

    def rename_source(self, ids: Sequence[str], source: str) -> None:
        """Say that nodes were written from another corpus; nothing else of them changes.

        Args:
            ids: of the nodes, renamed in this order.
            source: the new name.
        """
        at_once = max(1, MESSAGE_BYTES // most_row_bytes(self._collection.dim))
        write = "insert" if self._collection.connection.lite else "upsert"
        for start in range(0, len(ids), at_once):
            rows = list(self._collection.read(ids[start : start + at_once], ["*"], at_once))
            if rows:
                self._collection.call(write, data=[{**row, SOURCE_KEY: source} for row in rows])

    def count(self, *, strong: bool = True) -> int:
        """Count the nodes.

        Args:
            strong: as for ``get_vectors``.
        """
        consistency = STRONG if strong else SESSION
        rows = self._collection.call("query", filter="", output_fields=["count(*)"], **consistency)
        return int(rows[0]["count(*)"])

    def state(self) -> tuple[int, int]:
        """Changes with each write that a search can see, for whoever keeps what was read.

        Whatever this process writes is seen, through any store. What another one writes to a
        server is, where it changes the number of rows: that is asked for once a second at most,
        since it takes milliseconds. A Milvus Lite file has no other writer, and is not asked.
        """
        connection = self._collection.connection
        asked, rows = self._rows_asked
        if not connection.path and time.monotonic() - asked >= STATE_SECONDS:
            rows = self.count(strong=False)
            self._rows_asked = time.monotonic(), rows
        return connection.written(self.collection_name), rows

    def sample(self, n: int, seed: int = 0) -> VectorArray:
        """Draw vectors at random, whatever they are and in whatever order they were stored.

        Each row carries one of 1,024 buckets, by the hash of its id; a sample is the rows of as
        many buckets as it takes.

        Args:
            n: how many vectors, roughly; all there are if there are fewer.
            seed: another seed draws from other buckets.

        Returns:
            float32 (m, dim) with m near n; of length 1 each where the metric is COSINE.
        """
        return self.draw(n, seed)[1]

    def draw(self, n: int, seed: int = 0) -> tuple[list[str], VectorArray, int]:
        """As ``sample``, with the ids of the m nodes, and how many nodes there are in all.

        Args:
            n: as for ``sample``, like ``seed``.
            seed: as for ``sample``.
        """
        if n < 1:
            raise InvalidValueError(f"n={n}: a sample has at least 1 vector")
        size = self.count()
        vectors = self.get_vectors(self.sample_ids(n / size, seed) if size else [])
        rows = np.array(list(vectors.values()), dtype=np.float32)
        rows = rows.reshape(-1, self._collection.dim)
        if self.similarity_metric == "COSINE":
            rows = unit_rows(rows)
        kept = np.flatnonzero(np.isfinite(rows).all(axis=1))
        if len(kept) < len(rows):
            logger.warning(
                "%s: %d of %d vectors that were drawn have no direction and are left out; "
                "delete their nodes, or add them again",
                self._collection,
                len(rows) - len(kept),
                len(rows),
            )
        ids = list(vectors)
        return [ids[place] for place in kept], rows[kept], size

    def sample_ids(self, share: float, seed: int = 0) -> list[str]:
        """Draw node ids at random; a node that is in several collections is drawn in all or none.

        Args:
            share: of all nodes, above 0; rounded up to the next of 1,024 parts. All from 1 on.
            seed: another seed draws other parts.
        """
        if not share > 0:
            raise InvalidValueError(f"share={share}: must be above 0")
        buckets = math.ceil(BUCKETS * share)
        ids = self._collection.find_ids(in_buckets(buckets, seed))
        if not ids and buckets >= BUCKETS // 4 and self.count():
            raise StoreError(
                f"{self._collection}: its rows have no {BUCKET_KEY!r}, so that none can be drawn; "
                "they were written by another store: add them again with this one"
            )
        return ids

    # --- other collections of the database -------------------------------------------------------

    def has_collection(self, name: str) -> bool:
        """Whether the database has a collection of this name; opens and loads nothing."""
        return bool(self._collection.call("has_collection", beside=name))

    def drop_collection(self, name: str) -> None:
        """Delete another collection of the database, whatever it holds.

        Args:
            name: of the collection; one that is not there is no error.
        """
        if self.has_collection(name):
            self._collection.call("drop_collection", beside=name)

    # --- properties ------------------------------------------------------------------------------

    @property
    def one_at_a_time(self) -> bool:
        """Whether calls wait for each other (Milvus Lite), so that threads bring nothing."""
        return self._collection.connection.one_at_a_time

    @property
    def initial_properties(self) -> dict[str, str]:
        """The properties as they were when the store was opened; asks nothing."""
        return dict(self._collection.initial_properties)

    def properties(self) -> dict[str, str]:
        """Read what ``set_properties`` wrote, here or elsewhere; it stays with the collection."""
        return self._collection.properties()

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Write properties of the collection; those not named stay.

        Args:
            properties: names and texts, such as the model's name.

        Raises:
            ValueError: a name or a value that is not text, or is too long for a server.
        """
        self._collection.set_properties(properties)

    def check_dim(self, dim: int | None) -> None:
        """Refuse vectors of other dimensions than those that are stored.

        Args:
            dim: how many numbers a vector has; None where that is not known yet.

        Raises:
            ValueError: the collection's have another number.
        """
        self._collection.check_dim(dim)


def _document_of(doc_id: str, node_id: str) -> str:
    return node_id if doc_id in NO_DOCUMENT else doc_id


def _reopen(kind: type[MilvusStore], settings: dict[str, Any]) -> MilvusStore:
    return kind(**settings)


def _refuse_arguments(method: str, arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise InvalidValueError(
            f"{method}: unknown arguments {', '.join(arguments)}; leave them out"
        )
