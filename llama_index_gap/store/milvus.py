"""MilvusStore: LlamaIndex's Milvus store, extended for a multimodal index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
)
from pymilvus import MilvusClient

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.nodes import each_node
from llama_index_gap.store.addresses import TIMEOUT_SECONDS
from llama_index_gap.store.collection import (
    DEFAULT_INDEX,
    IDS_PER_MESSAGE,
    LOAD_SECONDS,
    MESSAGE_BYTES,
    Collection,
    batches,
    check_settings,
)
from llama_index_gap.store.connection import Connection
from llama_index_gap.store.filters import (
    ID_FIELD,
    filter_expression,
    literal_list,
)
from llama_index_gap.store.reading import refuse_arguments
from llama_index_gap.store.rows import (
    SOURCE_KEY,
    VECTOR_FIELD,
    most_row_bytes,
    row_bytes,
    to_row,
)
from llama_index_gap.store.searching import SearchableStore
from llama_index_gap.threads import in_thread

logger = logging.getLogger(__name__)

_SERVER_EF, _LITE_EF = 256, 64
"""With the usual 64, a server finds nearly all of the texts nearest to a text, but only 71 % of the
nearest images among half a million; with 256 it finds 92 % (docs/scaling.md)."""


class MilvusStore(SearchableStore):
    """One collection of nodes in Milvus or Milvus Lite, with one vector each.

    LlamaIndex's own ``MilvusVectorStore`` can read the collection too. Every asynchronous method
    runs the synchronous one in a thread, so that any number of event loops can share a store. It is
    thread-safe. A search finds all that this process wrote before; what another process wrote to a
    server appears within about a second. There is one row per node id: adding a node again replaces
    it.

    Args:
        uri: a Milvus Lite file (``….db``), or a server (``http://…``).
        collection_name: letters, digits and underscores.
        dim: dimension of the vectors; None only opens an existing collection.
        token: ``user:password`` or an API key.
        overwrite: drop an existing collection first.
        index_config: ``{"index_type": …}`` and its settings, for a new collection; by default HNSW
            with M=16 and efConstruction=200.
        search_config: settings of each search; by default ef=256 for HNSW, 64 on Milvus Lite.
        similarity_metric: COSINE, IP or L2. Similarities are higher for nearer nodes; for L2 they
            are negative squared distances.
        batch_size: maximum rows in one message.
        timeout: seconds that a server may take to answer a call. If the server was lost, a call
            that may safely run twice (all but creating and dropping a collection) is repeated once.
        image_folders: open images of nodes only in these folders; by default anywhere, as
            LlamaIndex's own store does.
        properties: for a new collection, written when it is created; see ``set_properties``.

    Raises:
        ValueError: a setting is unknown or does not fit the existing collection; or ``dim`` is None
            and the collection does not exist.
        StoreError: another process has the file open, or the server does not answer.
    """

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
            opened.callback(collection.connection.close)  # if this constructor fails
            usual = {"ef": _LITE_EF if collection.connection.lite else _SERVER_EF}
            defaults = usual if collection.index_type.startswith("HNSW") else {}
            # We do not call the parent's constructor: it opens an asynchronous client, and treats
            # unknown metrics as L2.
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
        """The name that LlamaIndex uses for this class of stores."""
        return "MilvusStore"

    # --- closing and copying ---------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection; closing the last store of a Lite file frees the file."""
        self._collection.connection.close()

    def __enter__(self) -> MilvusStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def client(self) -> MilvusClient:
        """The client of pymilvus; it is replaced after a server was lost."""
        return self._collection.connection.client

    @property
    def collection(self) -> Collection:
        """The collection, for code that reads or writes raw rows."""
        return self._collection

    def confine_images(self, folders: ImageFolders) -> None:
        """From now on, open images of nodes only in these folders; applies to copies too."""
        self._settings["image_folders"] = folders

    # A copy, or a loaded pickle, is a new store on the same collection.
    def __reduce__(self) -> tuple[Callable[..., MilvusStore], tuple[Any, ...]]:
        return _reopen, (type(self), self._settings)

    def __copy__(self) -> MilvusStore:
        return _reopen(type(self), self._settings)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> MilvusStore:
        return _reopen(type(self), self._settings)

    # --- writing ---------------------------------------------------------------------------------

    def add(
        self,
        nodes: Iterable[BaseNode],
        *,
        images: Mapping[str, str] | None = None,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        **add_kwargs: Any,
    ) -> list[str]:
        """Store nodes with their embeddings; a stored node with the same id is replaced.

        All nodes are checked before the first is written. Metadata is stored as JSON: dates, paths
        and decimals as text, sets and arrays as lists, NaN as null.

        Args:
            nodes: nodes with embeddings; if two have the same id, the later one is stored.
            images: by id, a digest of the image that the vector was made from, for ``compare``.
            labels: by id, texts to store with the node, for ``stored_rows``.
            **add_kwargs: none are accepted.

        Returns:
            The ids of the nodes, in order.

        Raises:
            ValueError: a node cannot be stored; names it.
            StoreError: the database refuses or does not answer; earlier batches stay written.
        """
        refuse_arguments("add", add_kwargs)
        nodes = list(each_node(nodes))
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
        """Write raw rows; each replaces a row with the same id.

        Args:
            rows: complete rows, as ``Collection.pages`` reads them, each with a vector.

        Raises:
            StoreError: the database refuses or does not answer; earlier batches stay written.
        """
        # On Lite, insert replaces a row, and upsert would keep the row's old dynamic keys. On a
        # server, upsert replaces a row, and insert would add a second one.
        write = "insert" if self._collection.connection.lite else "upsert"
        for batch in batches(rows, self.batch_size, row_bytes):
            self._collection.call(write, data=batch)

    def check(self, node: BaseNode) -> None:
        """Refuse a node that cannot be stored; its embedding is not checked, and may be missing.

        Args:
            node: any node.

        Raises:
            ValueError: the node cannot be stored; says why.
        """
        to_row(node, self._collection.max_lengths)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Like ``add``, without blocking the event loop."""
        return await in_thread(self.add, nodes, **kwargs)

    def checked_vector(self, embedding: Sequence[float], node_id: str) -> VectorArray:
        """An embedding in the form that is stored.

        Args:
            embedding: of a node.
            node_id: of the node, for messages.

        Raises:
            ValueError: the embedding does not fit the collection, or has no direction.
        """
        return self._to_vector(embedding, f"node {node_id[:100]!r}")

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document.

        Args:
            ref_doc_id: id of the source document.
            **delete_kwargs: none are accepted.
        """
        refuse_arguments("delete", delete_kwargs)
        ids = self._collection.find_ids(filter_expression(doc_ids=[ref_doc_id]))
        if ref_doc_id == "None":  # LlamaIndex's own store writes this for nodes without a document
            ids = [node.node_id for node in self._read_nodes(ids) if node.ref_doc_id == "None"]
        self._delete_ids(ids)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Like ``delete``, without blocking the event loop."""
        await in_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes with these ids, or that fit the filters; if both are given, both apply.

        Args:
            node_ids: ids; unknown ids are skipped, and an empty list deletes nothing.
            filters: conditions on the metadata.
            **delete_kwargs: none are accepted.

        Raises:
            ValueError: neither is given, or the filters restrict nothing.
        """
        refuse_arguments("delete_nodes", delete_kwargs)
        expression = filter_expression(filters, node_ids=node_ids)
        if not expression:
            raise InvalidValueError(
                "delete_nodes needs ids or filters; to delete all nodes, call clear()"
            )
        self._delete_ids(self._collection.find_ids(expression))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Like ``delete_nodes``, without blocking the event loop."""
        await in_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def _delete_ids(self, ids: Sequence[str]) -> None:
        for batch in batches(ids, IDS_PER_MESSAGE, len):
            self._collection.call("delete", filter=f"{ID_FIELD} in {literal_list(batch)}")
        if ids and not self._collection.connection.lite:
            # A server gives no timestamp of a deletion for later searches to wait for. A strongly
            # consistent read waits for it here.
            self.existing_ids(ids[-1:])

    def rename_source(self, ids: Sequence[str], source: str) -> None:
        """Change the name of the corpus that nodes were written from, and nothing else.

        Args:
            ids: of the nodes, which are changed in this order.
            source: the corpus' new name.
        """
        at_once = max(1, MESSAGE_BYTES // most_row_bytes(self._collection.dim))
        write = "insert" if self._collection.connection.lite else "upsert"
        for start in range(0, len(ids), at_once):
            rows = list(self._collection.read(ids[start : start + at_once], ["*"], at_once))
            if rows:
                self._collection.call(write, data=[{**row, SOURCE_KEY: source} for row in rows])

    def clear(self) -> None:
        """Delete all nodes; the collection and its properties stay."""
        self._collection.clear()

    async def aclear(self) -> None:
        """Like ``clear``, without blocking the event loop."""
        await in_thread(self.clear)

    def drop(self) -> None:
        """Delete the collection, and close the store."""
        try:
            self._collection.call("drop_collection")
        finally:
            self.close()

    def finish(self, *, flush: bool | None = None, timeout: float = LOAD_SECONDS) -> None:
        """End a build: write rows in memory to disk, and wait until they are indexed.

        Milvus Lite searches unflushed rows very slowly. A server indexes without a flush, and
        limits how often clients may flush.

        Args:
            flush: whether to flush. By default only on Milvus Lite, and only if this process, or a
                killed one, has written rows since the last flush.
            timeout: seconds to wait for the index.

        Raises:
            StoreError: the index is not ready in time; the database goes on building it.
        """
        self._collection.finish(flush, timeout)

    def keep(self) -> None:
        """End a build so that its rows survive even if the server is killed.

        A killed server (2.3.5) may lose rows that it accepted but had not flushed. Use this if the
        rows exist nowhere else.

        Raises:
            StoreError: as for ``finish``.
        """
        self.finish(flush=None if self._collection.connection.lite else True)

    # --- other collections of the database -------------------------------------------------------

    def has_collection(self, name: str) -> bool:
        """Whether the database has a collection of this name; does not open or load it."""
        return bool(self._collection.call("has_collection", beside=name))

    def drop_collection(self, name: str) -> None:
        """Delete another collection of the database, whatever it holds.

        Args:
            name: of the collection; if it does not exist, nothing happens.
        """
        if self.has_collection(name):
            self._collection.call("drop_collection", beside=name)

    # --- properties ------------------------------------------------------------------------------

    @property
    def one_at_a_time(self) -> bool:
        """Whether calls wait for each other (Milvus Lite), so that threads gain nothing."""
        return self._collection.connection.one_at_a_time

    @property
    def initial_properties(self) -> dict[str, str]:
        """The properties at the time when the store was opened; calls no database."""
        return dict(self._collection.initial_properties)

    def properties(self) -> dict[str, str]:
        """Read the properties that any ``set_properties`` wrote; the collection stores them."""
        return self._collection.properties()

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Write properties of the collection; its other properties stay.

        Args:
            properties: values by name, such as the model's name; both are strings.

        Raises:
            ValueError: a name or a value is not a string, or is too long for a server.
        """
        self._collection.set_properties(properties)

    def check_dim(self, dim: int | None) -> None:
        """Refuse vectors whose dimension differs from the collection's.

        Args:
            dim: dimension of the vectors; None if it is not known yet.

        Raises:
            ValueError: the collection has another dimension.
        """
        self._collection.check_dim(dim)


def _reopen(kind: type[MilvusStore], settings: dict[str, Any]) -> MilvusStore:
    return kind(**settings)
