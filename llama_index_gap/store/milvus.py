"""MilvusStore: LlamaIndex's Milvus store as a multimodal index needs it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, Node, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from llama_index.vector_stores.milvus import MilvusVectorStore
from pymilvus import DataType, MilvusClient, MilvusException

from llama_index_gap.errors import GapError, InvalidValueError, UnsupportedError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.nodes import CaptionedImageNode
from llama_index_gap.store.filters import (
    DOC_ID_FIELD,
    ID_FIELD,
    TEXT_FIELD,
    filter_expression,
    literal,
    literal_list,
)

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")

METRICS = ("COSINE", "IP", "L2")
_BUCKETS = 1024
_BUCKET_KEY = "gap_bucket"
_PROPERTY_PREFIX = "gap."
_VECTOR_FIELD = "embedding"
_RESERVED_KEYS = frozenset(
    {"$meta", "_node_content", "_node_type", ID_FIELD, TEXT_FIELD, _VECTOR_FIELD, _BUCKET_KEY}
)
_DOC_ID_KEYS = (DOC_ID_FIELD, "document_id", "ref_doc_id")
_LITE_INDEXES = ("AUTOINDEX", "FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8")
_SERVER_INDEXES = (
    *_LITE_INDEXES,
    "DISKANN",
    "HNSW_PQ",
    "HNSW_PRQ",
    "IVF_PQ",
    "IVF_RABITQ",
    "SCANN",
)
_DEFAULT_INDEX = {"index_type": "HNSW", "M": 16, "efConstruction": 200}
_DEFAULT_EF = 64

# A server's own limits, kept on Milvus Lite too: a corpus that fits one fits the other.
_MOST_DYNAMIC_BYTES = 65_536
_MOST_RESULTS = 16_384
_MOST_DIMENSIONS = 32_768
_INT64 = 2**63
# A server keeps properties in etcd, whose messages hold 1.5 MB: it takes a property of 1 MB, and
# can then neither alter nor drop the collection.
_MOST_PROPERTY_BYTES = 131_072
# A message holds 64 MB; a row of the largest kind is about 0.4 MB.
_MESSAGE_BYTES = 16 * 2**20
_NODES_PER_READ = 400
_IDS_PER_MESSAGE = 5_000

_CONNECT_SECONDS = 10.0
_CALL_SECONDS = 60.0
_LOAD_SECONDS = 900.0
_NOT_LOADED = 101
_STRONG: dict[str, Any] = {"consistency_level": "Strong"}
_URI = re.compile(r"(https?|tcp)://|unix:")
_COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


class StoreError(GapError, RuntimeError):
    """A database that cannot be opened, does not answer, or refuses a request."""


@dataclass
class _LiteFile:
    """A Milvus Lite file that this process holds open.

    Lite has one writer and is pure Python: a lock around each call costs nothing there and makes
    it safe under threads.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    users: int = 0


_lite_files: dict[str, _LiteFile] = {}
_opening = threading.Lock()


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

    Raises:
        ValueError: a setting is unknown or does not fit the existing collection, or there is none
            and ``dim`` is None.
        StoreError: the file is held by another process, or the server does not answer.
    """

    _lite: bool = PrivateAttr()
    _token: str = PrivateAttr()
    _file: _LiteFile | None = PrivateAttr(default=None)
    _max_lengths: dict[str, int] = PrivateAttr()
    _closed: bool = PrivateAttr(default=True)
    _settings: dict[str, Any] = PrivateAttr()

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
    ) -> None:
        uri, metric = str(uri), similarity_metric.upper()
        _check_settings(
            uri=uri,
            collection_name=collection_name,
            dim=dim,
            metric=metric,
            index_config=index_config,
            batch_size=batch_size,
        )
        # The parent's constructor opens an asynchronous client, and takes unknown metrics for L2.
        fields: dict[str, Any] = {
            "uri": uri,
            "collection_name": collection_name,
            "dim": dim,
            "overwrite": overwrite,
            "upsert_mode": True,
            "similarity_metric": metric,
            "index_config": dict(index_config or _DEFAULT_INDEX),
            "search_config": dict(search_config or {}),
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
        self._token = token or ""
        self._settings = {
            "uri": uri,
            "collection_name": collection_name,
            "token": token,
            "index_config": index_config,
            "search_config": search_config,
            "similarity_metric": similarity_metric,
            "batch_size": batch_size,
        }
        self._connect()
        try:
            self._open(asked_index=(index_config or {}).get("index_type"))
        except BaseException:
            self.close()
            raise
        self._settings["dim"] = self.dim

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex knows the store by."""
        return "MilvusStore"

    # --- opening and closing ---------------------------------------------------------------------

    def _connect(self) -> None:
        path = _lite_path(self.uri)
        with _opening if path else nullcontext(), _log_catcher.catching() as records:
            try:
                # A connection of its own: closing it disturbs no other store.
                self._milvusclient = MilvusClient(
                    self.uri, token=self._token, timeout=_CONNECT_SECONDS, dedicated=True
                )
                version = str(self._milvusclient.get_server_version(timeout=_CONNECT_SECONDS))
            except (MilvusException, grpc.RpcError, OSError) as error:
                if path and path not in _lite_files:
                    _free_lite_file(path)
                raise StoreError(_why_not_open(self.uri, error, records)) from error
            if path:
                self._file = _lite_files.setdefault(path, _LiteFile())
                self._file.users += 1
        self._closed = False
        # `milvus-lite server` serves the embedded engine under an http address.
        self._lite = version.startswith("milvus_lite")

    def _open(self, asked_index: str | None) -> None:
        known = _LITE_INDEXES if self._lite else _SERVER_INDEXES
        if asked_index is not None and asked_index.upper() not in known:
            raise InvalidValueError(
                f"index_type {asked_index!r}: is none of {', '.join(known)}; choose one of them"
            )
        exists = self._call("has_collection")
        if exists and self.overwrite:
            self._call("drop_collection")
            exists = False
        if not exists:
            self._create({})
        description = self._call("describe_collection")
        self._check_schema(description)
        if not self._call("list_indexes"):
            self._create_index()
        index = self._call("describe_index", index_name=_VECTOR_FIELD)
        self._check_index(index or {}, asked_index)
        self._load()
        self._collection_initialized = True

    def _create(self, properties: dict[str, str]) -> None:
        if self.dim is None:
            raise InvalidValueError(
                f"{self._name}: there is no such collection; check the name, or pass dim (to a "
                "DualIndex: embed_model) to create it"
            )
        schema = self._milvusclient.create_schema(auto_id=False, enable_dynamic_field=True)
        self._call(
            "create_collection",
            schema=self._add_fields_to_schema(schema),
            consistency_level=self.consistency_level,
            properties=properties,
        )
        self._create_index()

    def _create_index(self) -> None:
        index = self._add_dense_index_params(self._milvusclient.prepare_index_params())
        # pymilvus would sleep for half a second before it looks whether an index is there.
        self._call("create_index", index_params=index, sync=False)

    def _check_schema(self, description: Mapping[str, Any]) -> None:
        fields = {column["name"]: column for column in description["fields"]}
        types = {name: column["type"] for name, column in fields.items()}
        text = DataType.VARCHAR
        expected = {ID_FIELD: text, DOC_ID_FIELD: text, TEXT_FIELD: text}
        expected[_VECTOR_FIELD] = DataType.FLOAT_VECTOR
        if types != expected or not description.get("enable_dynamic_field"):
            raise InvalidValueError(
                f"{self._name} has the columns {', '.join(types)}; a collection of nodes has "
                f"{', '.join(expected)} and dynamic fields: choose another name, or overwrite=True"
            )
        stored = int(fields[_VECTOR_FIELD]["params"]["dim"])
        if self.dim not in (None, stored):
            raise InvalidValueError(
                f"{self._name} holds vectors of {stored} dimensions, and dim={self.dim} was asked "
                "for; use the model it was built with, another name, or overwrite=True"
            )
        self.dim = stored
        self._max_lengths = {
            name: int(column["params"]["max_length"])
            for name, column in fields.items()
            if column["type"] == text
        }

    def _check_index(self, index: Mapping[str, Any], asked_index: str | None) -> None:
        metric = str(index.get("metric_type", self.similarity_metric))
        if metric != self.similarity_metric:
            raise InvalidValueError(
                f"{self._name} was built with similarity_metric={metric!r}, and "
                f"{self.similarity_metric!r} was asked for; pass {metric!r}, or overwrite=True"
            )
        kind = str(index.get("index_type", "FLAT"))
        if asked_index is not None and kind != asked_index.upper() != "AUTOINDEX":
            raise InvalidValueError(
                f"{self._name} has an index of type {kind}, and {asked_index} was asked for; leave "
                "index_config out to use it as it is, or overwrite=True"
            )
        if not self.search_config and kind.startswith("HNSW"):
            self.search_config = {"ef": _DEFAULT_EF}

    def _load(self) -> None:
        """Load the collection: Lite opens each one released, and after a crash replays its log."""
        self._call("load_collection", timeout=_LOAD_SECONDS)

    def close(self) -> None:
        """Close the connection; the last store on a Lite file frees it for other processes."""
        path = _lite_path(self.uri)
        with _opening if path else nullcontext():
            if self._closed:
                return
            self._closed = True
            self._milvusclient.close()
            if path and self._file is not None:
                self._file.users -= 1
                if self._file.users == 0:
                    del _lite_files[path]
                    _free_lite_file(path)

    async def aclose(self) -> None:
        """Asynchronous ``close``."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> MilvusStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # A copy, and what a pickle becomes, is a store of its own on the same collection.
    def __reduce__(self) -> tuple[Callable[..., MilvusStore], tuple[Any, ...]]:
        return _reopen, (type(self), self._settings)

    def __copy__(self) -> MilvusStore:
        return _reopen(type(self), self._settings)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> MilvusStore:
        return _reopen(type(self), self._settings)

    # --- writing ---------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes with their embeddings; a node whose id is there already is replaced.

        All nodes are checked before the first is written. Metadata is stored as JSON: dates and
        paths as text, decimals as text, sets and arrays as lists, NaN as null.

        Args:
            nodes: nodes with embeddings; of two with one id the later one stays.
            **add_kwargs: none are known.

        Returns:
            The ids of the nodes, in order.

        Raises:
            ValueError: a node that cannot be stored; names it.
            StoreError: the database refuses or does not answer; earlier batches are then written.
        """
        _refuse_arguments("add", add_kwargs)
        rows = {node.node_id: self._to_row(node) for node in nodes}
        # Lite's insert replaces a row, and its upsert keeps the row's old dynamic keys; a server's
        # upsert replaces, and its insert adds a second row.
        write = "insert" if self._lite else "upsert"
        for batch in _batches(rows.values(), self.batch_size, _row_bytes):
            self._call(write, data=batch)
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Asynchronous ``add``."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def upsert(self, nodes: Sequence[BaseNode]) -> list[str]:
        """Store nodes, replacing those that are there: what ``add`` does, under a plainer name."""
        return self.add(nodes)

    async def aupsert(self, nodes: Sequence[BaseNode]) -> list[str]:
        """Asynchronous ``upsert``."""
        return await asyncio.to_thread(self.upsert, nodes)

    def _to_row(self, node: BaseNode) -> dict[str, Any]:
        name = f"node {node.node_id[:100]!r}"
        _refuse_pixels(node, name)
        columns = {
            ID_FIELD: node.node_id,
            DOC_ID_FIELD: node.ref_doc_id or "",
            TEXT_FIELD: _text_of(node),
        }
        if not node.node_id:
            raise InvalidValueError(f"{name}: has an empty id; give each node one of its own")
        for column, value in columns.items():
            _check_bytes(value, self._max_lengths[column], f"{name}: its {column}", "shorten it")
        return {
            **columns,
            _VECTOR_FIELD: self._to_vector(node.embedding, name),
            **_dynamic_fields(node, name),
        }

    def _to_vector(self, embedding: Sequence[float] | None, name: str) -> VectorArray:
        if embedding is None:
            raise InvalidValueError(f"{name}: has no embedding; embed it first")
        with np.errstate(over="ignore"):
            vector = np.asarray(embedding, dtype=np.float32)
        if vector.shape != (self.dim,):
            raise InvalidValueError(
                f"{name}: its embedding has the shape {vector.shape}, and {self._name} holds "
                f"vectors of {self.dim} dimensions; embed it with the collection's model"
            )
        if not np.isfinite(vector).all():
            raise InvalidValueError(f"{name}: its embedding holds NaN or infinity; embed it again")
        if self.similarity_metric == "COSINE" and not vector.any():
            raise InvalidValueError(
                f"{name}: its embedding is zero and has no direction; leave it out"
            )
        return vector

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document.

        Args:
            ref_doc_id: id of the source document.
            **delete_kwargs: none are known.
        """
        _refuse_arguments("delete", delete_kwargs)
        ids = self._find_ids(filter_expression(doc_ids=[ref_doc_id]))
        if ref_doc_id == "None":  # what LlamaIndex's own store writes where there is no source
            ids = [node.node_id for node in self._read_nodes(ids) if node.ref_doc_id == "None"]
        self._delete_ids(ids)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Asynchronous ``delete``."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

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
        self._delete_ids(self._find_ids(expression))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Asynchronous ``delete_nodes``."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def _delete_ids(self, ids: Sequence[str]) -> None:
        for batch in _batches(ids, _IDS_PER_MESSAGE, len):
            self._call("delete", filter=f"{ID_FIELD} in {literal_list(batch)}")
        if ids and not self._lite:
            # A server tells no time of a deletion that a search could wait for; a strong read does.
            self.existing_ids(ids[-1:])

    def clear(self) -> None:
        """Delete all nodes; the collection stays, with its properties, ready for new ones."""
        with self._exclusive():
            properties = self._call("describe_collection").get("properties") or {}
            self._call("drop_collection")
            self._create({key: value for key, value in properties.items() if _is_ours(key)})
            self._load()

    async def aclear(self) -> None:
        """Asynchronous ``clear``."""
        await asyncio.to_thread(self.clear)

    def drop(self) -> None:
        """Delete the collection itself, and close."""
        self._call("drop_collection")
        self.close()

    def finish(self, *, flush: bool | None = None, timeout: float = _LOAD_SECONDS) -> None:
        """End a build: write what is in memory to disk and wait until its index is there.

        Milvus Lite searches rows that were not flushed very slowly. A server indexes by itself, and
        limits how often it may be asked to flush.

        Args:
            flush: by default on Milvus Lite only.
            timeout: seconds to wait for the index.

        Raises:
            StoreError: the index is not there in time; it goes on being built.
        """
        if not (self._lite if flush is None else flush):
            return
        start = time.monotonic()
        logger.info("%s: flushing and indexing", self._name)
        with self._exclusive():
            if self._lite:
                # Loading builds the index before it returns; a flush of a loaded collection builds
                # it later, in a thread that tells nobody when it is done.
                self._call("release_collection")
                try:
                    self._call("flush", timeout=timeout)
                finally:
                    self._call("load_collection", timeout=timeout)
            else:
                self._call("flush", timeout=timeout)
                self._wait_for_index(start + timeout)
        logger.info("%s: indexed in %.1f s", self._name, time.monotonic() - start)

    async def afinish(self, *, flush: bool | None = None, timeout: float = _LOAD_SECONDS) -> None:
        """Asynchronous ``finish``."""
        await asyncio.to_thread(self.finish, flush=flush, timeout=timeout)

    def _wait_for_index(self, deadline: float) -> None:
        while True:
            index = self._call("describe_index", index_name=_VECTOR_FIELD)
            pending = int(index.get("pending_index_rows", 0))
            if pending == 0:
                return
            if time.monotonic() > deadline:
                raise StoreError(f"{self._name}: {pending} rows are still being indexed; wait on")
            time.sleep(0.5)

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
            query.filters, node_ids=query.node_ids or None, doc_ids=query.doc_ids or None
        )
        hits = self._search(vector, k, expression) if k else []
        sign = -1.0 if self.similarity_metric == "L2" else 1.0
        return VectorStoreQueryResult(
            nodes=[_to_node(hit["entity"]) for hit in hits],
            similarities=[sign * float(hit["distance"]) for hit in hits],
            ids=[str(hit[ID_FIELD]) for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Asynchronous ``query``."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _search(self, vector: VectorArray, k: int, expression: str) -> list[dict[str, Any]]:
        settings = dict(self.search_config or {})
        if "ef" in settings:  # HNSW cannot find more than it looks at
            settings["ef"] = max(int(settings["ef"]), k)
        found = self._call(
            "search",
            data=[vector],
            anns_field=_VECTOR_FIELD,
            limit=k,
            filter=expression,
            output_fields=[TEXT_FIELD, "_node_content", "_node_type"],
            search_params={"metric_type": self.similarity_metric, "params": settings},
            consistency_level="Session",
        )
        return list(found[0])

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
            found = dict.fromkeys(self._find_ids(expression))
            ids = list(found) if ids is None else [node_id for node_id in ids if node_id in found]
        return self._read_nodes(ids)

    def nodes_of_documents(
        self, keys: Sequence[str], filters: MetadataFilters | None = None
    ) -> list[tuple[BaseNode, VectorArray]]:
        """Placeholder."""
        nodes = {
            node.node_id: node
            for node in [
                *self.get_nodes(ref_doc_ids=list(keys), filters=filters),
                *self.get_nodes(node_ids=list(keys), filters=filters),
            ]
        }
        vectors = self.get_vectors(list(nodes))
        return [(nodes[node_id], vector) for node_id, vector in vectors.items()]

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        *,
        ref_doc_ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Asynchronous ``get_nodes``."""
        return await asyncio.to_thread(
            self.get_nodes, node_ids, filters, ref_doc_ids=ref_doc_ids, **kwargs
        )

    def _read_nodes(self, ids: Sequence[str]) -> list[BaseNode]:
        fields = [TEXT_FIELD, "_node_content", "_node_type"]
        rows = {row[ID_FIELD]: row for row in self._read(ids, fields, _NODES_PER_READ)}
        return [_to_node(rows[node_id]) for node_id in dict.fromkeys(ids) if node_id in rows]

    def get_vectors(self, ids: Sequence[str]) -> dict[str, VectorArray]:
        """Read vectors as they are stored.

        Args:
            ids: node ids; unknown ones are passed over.

        Returns:
            For each id a float32 vector of ``dim`` numbers.
        """
        at_once = max(1, _MESSAGE_BYTES // (4 * (self.dim or 1)))
        rows = self._read(ids, [_VECTOR_FIELD], min(at_once, _IDS_PER_MESSAGE))
        return {row[ID_FIELD]: np.asarray(row[_VECTOR_FIELD], dtype=np.float32) for row in rows}

    async def aget_vectors(self, ids: Sequence[str]) -> dict[str, VectorArray]:
        """Asynchronous ``get_vectors``."""
        return await asyncio.to_thread(self.get_vectors, ids)

    def documents_of(self, ids: Iterable[str]) -> dict[str, str]:
        """Say which document each node belongs to: its ``ref_doc_id``, or else its own id.

        Args:
            ids: any number of node ids; unknown ones are passed over.
        """
        rows = self._read(ids, [ID_FIELD, DOC_ID_FIELD], _IDS_PER_MESSAGE)
        return {row[ID_FIELD]: row[DOC_ID_FIELD] or row[ID_FIELD] for row in rows}

    async def adocuments_of(self, ids: Iterable[str]) -> dict[str, str]:
        """Asynchronous ``documents_of``."""
        return await asyncio.to_thread(self.documents_of, ids)

    def existing_ids(self, ids: Iterable[str]) -> set[str]:
        """Say which of these nodes are stored; for going on with an interrupted build.

        Args:
            ids: any number of node ids.
        """
        return {row[ID_FIELD] for row in self._read(ids, [ID_FIELD], _IDS_PER_MESSAGE)}

    async def aexisting_ids(self, ids: Iterable[str]) -> set[str]:
        """Asynchronous ``existing_ids``."""
        return await asyncio.to_thread(self.existing_ids, ids)

    def count(self) -> int:
        """Count the nodes."""
        rows = self._call("query", filter="", output_fields=["count(*)"], **_STRONG)
        return int(rows[0]["count(*)"])

    async def acount(self) -> int:
        """Asynchronous ``count``."""
        return await asyncio.to_thread(self.count)

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
        if n < 1:
            raise InvalidValueError(f"n={n}: a sample has at least 1 vector")
        ids = self.sample_ids(n / max(self.count(), 1), seed)
        vectors = list(self.get_vectors(ids).values())
        rows = np.array(vectors, dtype=np.float32).reshape(-1, self.dim or 0)
        if self.similarity_metric == "COSINE":
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    async def asample(self, n: int, seed: int = 0) -> VectorArray:
        """Asynchronous ``sample``."""
        return await asyncio.to_thread(self.sample, n, seed)

    def sample_ids(self, share: float, seed: int = 0) -> list[str]:
        """Draw node ids at random; a node that is in several collections is drawn in all or none.

        Args:
            share: of all nodes, above 0; rounded up to the next of 1,024 parts. All from 1 on.
            seed: another seed draws other parts.
        """
        if not share > 0:
            raise InvalidValueError(f"share={share}: must be above 0")
        buckets = math.ceil(_BUCKETS * share)
        ids = self._find_ids(_in_buckets(buckets, seed))
        if not ids and buckets >= _BUCKETS // 4 and self.count():
            raise StoreError(
                f"{self._name}: its rows have no {_BUCKET_KEY!r}, so that none can be drawn; they "
                "were written by another store: add them again with this one"
            )
        return ids

    async def asample_ids(self, share: float, seed: int = 0) -> list[str]:
        """Asynchronous ``sample_ids``."""
        return await asyncio.to_thread(self.sample_ids, share, seed)

    def _find_ids(self, expression: str) -> list[str]:
        rows = self._call(
            "query",
            # A server answers nothing without a filter or a limit.
            filter=expression or f"{ID_FIELD} != {literal('')}",
            output_fields=[ID_FIELD],
            **_STRONG,
        )
        return [row[ID_FIELD] for row in rows]

    def _read(
        self, ids: Iterable[str], fields: list[str], at_once: int
    ) -> Iterator[dict[str, Any]]:
        """Read rows by their ids. The first read is a strong one; the others see as much."""
        consistency = _STRONG
        for batch in _batches(dict.fromkeys(ids), at_once, len):
            yield from self._call(
                "query",
                filter=f"{ID_FIELD} in {literal_list(batch)}",
                output_fields=fields,
                **consistency,
            )
            consistency = {"consistency_level": "Session"}

    # --- properties ------------------------------------------------------------------------------

    @property
    def one_at_a_time(self) -> bool:
        """Whether calls wait for each other (Milvus Lite), so that threads bring nothing."""
        return self._file is not None

    @property
    def properties(self) -> dict[str, str]:
        """What ``set_properties`` wrote; it stays with the collection."""
        stored = self._call("describe_collection").get("properties") or {}
        return {
            key.removeprefix(_PROPERTY_PREFIX): str(value)
            for key, value in stored.items()
            if _is_ours(key)
        }

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Write properties of the collection; those not named stay.

        Args:
            properties: names and texts, such as the model's name.

        Raises:
            ValueError: a name or a value that is not text, or is too long for a server.
        """
        for key, value in properties.items():
            if not (isinstance(key, str) and key and isinstance(value, str)):
                raise InvalidValueError(
                    f"property {key!r}={value!r}: names and values must be text"
                )
            _check_bytes(value, _MOST_PROPERTY_BYTES, f"property {key!r}", "keep it in a file")
        if properties:
            prefixed = {_PROPERTY_PREFIX + key: value for key, value in properties.items()}
            self._call("alter_collection_properties", properties=prefixed)

    async def aset_properties(self, properties: Mapping[str, str]) -> None:
        """Asynchronous ``set_properties``."""
        await asyncio.to_thread(self.set_properties, properties)

    # --- calls -----------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"collection {self.collection_name!r} in {self.uri}"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep the other threads of this process off a Lite file; a server needs no help."""
        if self._file is None:
            yield
        else:
            with self._file.lock:
                yield

    def _call(self, method: str, *, timeout: float = _CALL_SECONDS, **arguments: Any) -> Any:
        """Call the client, with a time limit, one thread at a time on Lite, and one-line errors."""
        with self._exclusive(), _log_catcher.catching():
            if self._closed:
                raise StoreError(f"{self._name} was closed; open a new MilvusStore")
            call = getattr(self._milvusclient, method)
            try:
                try:
                    return call(self.collection_name, timeout=timeout, **arguments)
                except MilvusException as error:
                    if error.code != _NOT_LOADED or method == "load_collection":
                        raise
                    self._load()  # somebody released it
                    return call(self.collection_name, timeout=timeout, **arguments)
            except (MilvusException, grpc.RpcError) as error:
                raise self._explain(method, error) from error

    def _explain(self, method: str, error: MilvusException | grpc.RpcError) -> Exception:
        reason = _one_line(error)
        if "unsupported pattern" in reason:
            return UnsupportedError(
                "filter 'text_match': this server searches text by its beginning only (Milvus 2.4 "
                "and later search all of it)"
            )
        return StoreError(f"{self._name}: {method} failed: {reason}")


# --- settings ------------------------------------------------------------------------------------


def _check_settings(
    *,
    uri: str,
    collection_name: str,
    dim: int | None,
    metric: str,
    index_config: Mapping[str, Any] | None,
    batch_size: int,
) -> None:
    if not _URI.match(uri) and not uri.endswith(".db"):
        raise InvalidValueError(
            f"uri={uri!r}: must be a Milvus Lite file that ends in .db, or http(s)://"
        )
    if uri != (shown := re.sub(r"//[^/?#]*@", "//***@", uri)):
        raise InvalidValueError(
            f"uri={shown!r}: a password in it would be logged; pass it as the token"
        )
    if not _COLLECTION_NAME.fullmatch(collection_name):
        raise InvalidValueError(
            f"collection_name={collection_name!r}: must be up to 255 letters, digits and "
            "underscores, with no digit first"
        )
    if dim is not None and not 1 <= dim <= _MOST_DIMENSIONS:
        raise InvalidValueError(f"dim={dim}: must be between 1 and {_MOST_DIMENSIONS:,}")
    if metric not in METRICS:
        raise InvalidValueError(f"similarity_metric={metric!r}: is none of {', '.join(METRICS)}")
    if index_config is not None and "index_type" not in index_config:
        raise InvalidValueError(f"index_config={dict(index_config)}: names no index_type")
    if batch_size < 1:
        raise InvalidValueError(f"batch_size={batch_size}: must be at least 1")


def _lite_path(uri: str) -> str | None:
    return None if _URI.match(uri) else str(Path(uri).absolute())


def _free_lite_file(path: str) -> None:
    """Stop the engine that pymilvus started for a file; pymilvus itself never does."""
    if importlib.util.find_spec("milvus_lite") is not None:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(path)


def _reopen(kind: type[MilvusStore], settings: dict[str, Any]) -> MilvusStore:
    return kind(**settings)


class _LogCatcher(logging.Filter):
    """Keeps what is logged during a call by the thread that makes it."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        caught: list[logging.LogRecord] | None = getattr(self._local, "records", None)
        if caught is None:
            return True
        caught.append(record)
        return False

    @contextmanager
    def catching(self) -> Iterator[list[logging.LogRecord]]:
        outer = getattr(self._local, "records", None)
        records: list[logging.LogRecord] = []
        self._local.records = records
        try:
            yield records
        finally:
            self._local.records = outer


# pymilvus and Milvus Lite log a traceback for each request that fails, before they raise. Where the
# failure becomes an error of ours, or is made good, that would be printed for nothing.
_log_catcher = _LogCatcher()
for _logger_name in (
    "milvus_lite.server_manager",
    "pymilvus.client.connection_manager",
    "pymilvus.client.grpc_handler",
    "pymilvus.decorators",
):
    logging.getLogger(_logger_name).addFilter(_log_catcher)


def _why_not_open(uri: str, error: Exception, records: Iterable[logging.LogRecord]) -> str:
    if _URI.match(uri):
        return (
            f"{uri}: does not answer, in {_CONNECT_SECONDS:.0f} s at most ({_one_line(error)}); "
            "is the server running, and is the token right?"
        )
    path = Path(uri)
    if not path.parent.is_dir():
        return f"{uri}: there is no folder {path.parent}; create it first"
    if importlib.util.find_spec("milvus_lite") is None:
        return f"{uri}: Milvus Lite is not installed; run: pip install milvus-lite"
    if _is_rpc(error, grpc.StatusCode.UNIMPLEMENTED):
        return (
            f"{uri}: this Milvus Lite is too old: it keeps no properties, and has no HNSW; run: "
            "pip install 'milvus-lite>=3.2'"
        )
    causes = [record.exc_info[1] for record in records if record.exc_info]
    if any(type(cause).__name__ == "DataDirLockedError" for cause in causes):
        return (
            f"{uri}: is open in another process, and Milvus Lite allows one; close it there, or "
            f"share it: milvus-lite server --data-dir {uri} --host 127.0.0.1 --port 19530"
        )
    return f"{uri}: cannot be opened ({_one_line(causes[-1] if causes else error)})"


def _is_rpc(error: BaseException, code: grpc.StatusCode) -> bool:
    return isinstance(error, grpc.Call) and error.code() is code


def _one_line(error: BaseException | None) -> str:
    message: object = error
    if isinstance(error, MilvusException):
        message = error.message
    elif isinstance(error, grpc.Call):
        message = f"{error.code().name}: {error.details()}"
    lines = str(message).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


# --- rows ----------------------------------------------------------------------------------------


def _dynamic_fields(node: BaseNode, name: str) -> dict[str, Any]:
    """What a row carries besides its columns: the node, and its metadata to filter on."""
    content = _to_json(node, name)
    metadata: dict[str, Any] = content["metadata"]
    source = node.ref_doc_id or ""
    clash = sorted(_RESERVED_KEYS & metadata.keys())
    clash += [key for key in _DOC_ID_KEYS if key in metadata and metadata[key] != source]
    if clash:
        raise InvalidValueError(
            f"{name}: metadata key {clash[0]!r} is a field of the collection's own; rename it"
        )
    dynamic = {
        # A null or an empty list cannot be asked for in a filter; a missing key can.
        **{key: value for key, value in metadata.items() if value is not None and value != []},
        "_node_content": json.dumps(content, ensure_ascii=False),
        "_node_type": node.class_name(),
        "document_id": source,
        "ref_doc_id": source,
        _BUCKET_KEY: _bucket(node.node_id),
    }
    _check_integers(metadata, name)
    written = json.dumps(dynamic, ensure_ascii=False, separators=(",", ":"))
    _check_bytes(
        written,
        _MOST_DYNAMIC_BYTES,
        f"{name}: its metadata and relationships",
        "they are stored twice, for filters and for reading; keep long texts out of them",
    )
    return dynamic


def _to_json(node: BaseNode, name: str) -> dict[str, Any]:
    """The node as JSON knows it, without its text and embedding, which have columns."""
    bare = node.model_copy(update={"embedding": None})
    try:
        content: dict[str, Any] = bare.model_dump(mode="json", fallback=_to_plain)
    except ValueError as error:
        raise InvalidValueError(
            f"{name}: its metadata is not JSON ({_one_line(error)}); use texts, numbers and lists"
        ) from error
    if isinstance(content.get("text_resource"), dict):
        content["text_resource"]["text"] = None
    elif "text" in content:
        content["text"] = ""
    return content


def _to_plain(value: Any) -> Any:
    """What JSON has for a value of NumPy's."""
    match value:
        case np.datetime64() | np.timedelta64():
            return str(value)
        case np.ndarray() | np.generic():
            return value.tolist()
    raise InvalidValueError(f"{type(value).__name__} {str(value)[:60]!r}")


def _to_node(row: Mapping[str, Any]) -> BaseNode:
    try:
        return _parsed_node(row)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"row {row.get(ID_FIELD)!r} holds no LlamaIndex node ({_one_line(error)}); delete it, "
            "or add its node again"
        ) from error


def _parsed_node(row: Mapping[str, Any]) -> BaseNode:
    content, kind, text = row["_node_content"], row.get("_node_type"), row.get(TEXT_FIELD) or ""
    if kind == ImageNode.class_name():
        image_node = CaptionedImageNode.from_json(content)
        image_node.text = text
        return image_node
    node = metadata_dict_to_node({"_node_content": content, "_node_type": kind})
    if isinstance(node, Node):
        if node.text_resource is not None:
            node.text_resource.text = text
        elif text:  # written by LlamaIndex's own store, which drops the whole resource
            node.set_content(text)
    elif isinstance(node, TextNode):
        node.text = text
    return node


def _text_of(node: BaseNode) -> str:
    if isinstance(node, Node):
        return (node.text_resource.text if node.text_resource else None) or ""
    return node.text if isinstance(node, TextNode) else node.get_content(MetadataMode.NONE)


def _refuse_pixels(node: BaseNode, name: str) -> None:
    pixels: str | bytes | None = node.image if isinstance(node, ImageNode) else None
    if isinstance(node, Node) and node.image_resource is not None:
        pixels = node.image_resource.data
    if pixels:
        raise InvalidValueError(
            f"{name}: pixels are never stored in Milvus: write the {len(pixels):,} bytes of base64 "
            "to a file and set the node's image_path"
        )


def _check_bytes(text: str, limit: int, name: str, way_out: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"{name}: is no valid Unicode ({error.reason}); clean it"
        ) from error
    if size > limit:
        raise InvalidValueError(f"{name}: {size:,} bytes, more than Milvus' {limit:,}; {way_out}")


def _check_integers(value: Any, name: str) -> None:
    match value:
        case dict():
            for inner in value.values():
                _check_integers(inner, name)
        case list():
            for inner in value:
                _check_integers(inner, name)
        case int() if not -_INT64 <= value < _INT64:
            raise InvalidValueError(
                f"{name}: metadata holds {value}, more than 64 bits; store it as text"
            )


def _row_bytes(row: Mapping[str, Any]) -> int:
    """An upper bound, roughly, of what a row takes in a message."""
    vector: VectorArray = row[_VECTOR_FIELD]
    return vector.nbytes + 4 * (len(row[TEXT_FIELD]) + len(row[ID_FIELD])) + _MOST_DYNAMIC_BYTES


def _batches(
    items: Iterable[_Item], most: int, size: Callable[[_Item], int]
) -> Iterator[list[_Item]]:
    """Cut items into lists of at most so many, which fit into a message."""
    batch: list[_Item] = []
    total = 0
    for item in items:
        item_size = size(item)
        if batch and (len(batch) == most or total + item_size > _MESSAGE_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += item_size
    if batch:
        yield batch


def _bucket(node_id: str) -> int:
    digest = hashlib.blake2b(node_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _BUCKETS


def _in_buckets(count: int, seed: int) -> str:
    """The rows of so many buckets, from one that the seed chooses, round the end."""
    if count >= _BUCKETS:
        return ""
    key = f"$meta[{literal(_BUCKET_KEY)}]"
    start = int(np.random.default_rng(seed).integers(_BUCKETS)) if seed else 0
    stop = start + count
    if stop <= _BUCKETS:
        return f"({key} >= {start}) and ({key} < {stop})"
    return f"({key} >= {start}) or ({key} < {stop - _BUCKETS})"


def _is_ours(property_name: str) -> bool:
    return property_name.startswith(_PROPERTY_PREFIX)


def _refuse_arguments(method: str, arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise InvalidValueError(
            f"{method}: unknown arguments {', '.join(arguments)}; leave them out"
        )
