"""Reading the nodes of a collection: by id, by filter, by document, or a sample of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.vector_stores.milvus import MilvusVectorStore

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.nodes import as_ids, document_key
from llama_index_gap.store.collection import (
    IDS_PER_MESSAGE,
    MESSAGE_BYTES,
    SESSION,
    STRONG,
    Collection,
    batches,
)
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.filters import DOC_ID_FIELD, ID_FIELD, filter_expression, literal
from llama_index_gap.store.patience import patience
from llama_index_gap.store.rows import (
    BUCKET_KEY,
    BUCKETS,
    FINGERPRINT_KEY,
    LABEL_KEYS,
    NODE_FIELDS,
    SOURCE_KEY,
    VECTOR_FIELD,
    StoredRow,
    bucket_ranges,
    fingerprint,
    image_path_of,
    in_buckets,
    most_row_bytes,
    only_moved,
    to_node,
)
from llama_index_gap.threads import in_thread

logger = logging.getLogger(__name__)

STATE_SECONDS = 1.0
"""For this long ``state`` may not notice what another process wrote to a server."""
_NODES_PER_READ = 400
_ROW_FIELDS = [ID_FIELD, DOC_ID_FIELD, FINGERPRINT_KEY, *LABEL_KEYS]
# A row takes 2 kB of memory while it is read. Milvus Lite scans all rows for each answer.
_ROWS_PER_ANSWER, _ROWS_PER_LITE_ANSWER = 10_000, 50_000


class ReadableStore(MilvusVectorStore):
    """The part of ``MilvusStore`` that reads nodes, vectors and the data stored with them."""

    _collection: Collection = PrivateAttr()
    _settings: dict[str, Any] = PrivateAttr()
    _rows_asked: tuple[float, int] = PrivateAttr(default=(-math.inf, 0))

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        *,
        ref_doc_ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Read the nodes that fit all given conditions; without conditions, all nodes.

        Args:
            node_ids: ids; an empty list gives no nodes, and unknown ids are skipped.
            filters: conditions on the metadata.
            ref_doc_ids: ids of source documents.
            **kwargs: none are accepted.

        Returns:
            Nodes without embeddings (see ``get_vectors``), in the order of ``node_ids``.
        """
        refuse_arguments("get_nodes", kwargs)
        ids = None if node_ids is None else as_ids(node_ids, "node_ids")
        if ids is None or filters is not None or ref_doc_ids is not None:
            expression = filter_expression(filters, node_ids=ids, doc_ids=ref_doc_ids)
            found = dict.fromkeys(self._collection.find_ids(expression))
            ids = list(found) if ids is None else [node_id for node_id in ids if node_id in found]
        return self._read_nodes(ids)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Like ``get_nodes``, without blocking the event loop."""
        return await in_thread(self.get_nodes, node_ids, filters, **kwargs)

    def _read_nodes(self, ids: Sequence[str]) -> list[BaseNode]:
        rows = {
            row[ID_FIELD]: row for row in self._collection.read(ids, NODE_FIELDS, _NODES_PER_READ)
        }
        return [self._to_node(rows[node_id]) for node_id in dict.fromkeys(ids) if node_id in rows]

    def get_vectors(self, ids: Sequence[str], *, strong: bool = True) -> dict[str, VectorArray]:
        """Read the stored vectors.

        Args:
            ids: node ids; unknown ids are skipped.
            strong: whether to see rows that other processes have just written. For this a server
                takes up to 0.2 s. If False, it sees the same rows as a search.

        Returns:
            For each id a float32 vector of ``dim`` numbers.
        """
        at_once = max(1, MESSAGE_BYTES // (4 * self._collection.dim))
        at_once = min(at_once, IDS_PER_MESSAGE)
        rows = self._collection.read(ids, [VECTOR_FIELD], at_once, strong=strong)
        return {row[ID_FIELD]: np.asarray(row[VECTOR_FIELD], dtype=np.float32) for row in rows}

    def some_nodes(self, most: int, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Read a few nodes that fit filters: those that the database gives first.

        Args:
            most: maximum number of nodes.
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

        It sees the same rows as a search, so all documents that a search found are there.

        Args:
            keys: keys of documents, see ``document_key``: the ``ref_doc_id`` of a node, or the id
                of a node that belongs to no document; unknown keys are skipped.
            filters: conditions on the metadata.

        Returns:
            Each node with its stored vector of ``dim`` numbers, in no particular order.
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
            if len(found) == at_once:  # there may be more
                found = self._collection.read(
                    self._collection.find_ids(expression), fields, at_once
                )
            rows += found
        read = [
            (self._to_node(row), np.asarray(row[VECTOR_FIELD], dtype=np.float32)) for row in rows
        ]
        return [(node, vector) for node, vector in read if document_key(node, "document") in wanted]

    def documents_of(self, ids: Iterable[str]) -> dict[str, str]:
        """The document of each node: its ``ref_doc_id``, or else the node's id.

        Args:
            ids: any number of node ids; unknown ids are skipped.
        """
        rows = self._collection.read(ids, [ID_FIELD, DOC_ID_FIELD], IDS_PER_MESSAGE)
        return {row[ID_FIELD]: row[DOC_ID_FIELD] or row[ID_FIELD] for row in rows}

    def ids_of_documents(self, ref_doc_ids: Sequence[str]) -> list[str]:
        """The ids of the nodes of some documents, including rows that hold no readable node.

        Args:
            ref_doc_ids: ids of source documents.
        """
        return self._collection.find_ids(filter_expression(doc_ids=list(ref_doc_ids)))

    def image_paths(self, ids: Sequence[str]) -> dict[str, str]:
        """The path of each node's image file, by node id; nodes without one are left out.

        Args:
            ids: node ids; unknown ids are skipped.
        """
        paths: dict[str, str] = {}
        for row in self._collection.read(ids, ["_node_content"], _NODES_PER_READ):
            if (path := image_path_of(row)) is not None:
                paths[row[ID_FIELD]] = path
        return paths

    def existing_ids(self, ids: Iterable[str]) -> set[str]:
        """The ids of those nodes that are stored; for continuing an interrupted build.

        Args:
            ids: any number of node ids.
        """
        return {row[ID_FIELD] for row in self._collection.read(ids, [ID_FIELD], IDS_PER_MESSAGE)}

    def unchanged_ids(self, nodes: Iterable[BaseNode]) -> set[str]:
        """The ids of those nodes that are stored unchanged, vectors aside.

        Args:
            nodes: any number of nodes; one that cannot be stored is left out.
        """
        return self.compare(nodes, {})[0]

    def compare(
        self, nodes: Iterable[BaseNode], images: Mapping[str, str]
    ) -> tuple[set[str], set[str]]:
        """Compare nodes with the stored ones.

        Args:
            nodes: any number of nodes; one that cannot be stored is in neither set.
            images: by id, a digest of the image that its vector is made from.

        Returns:
            The ids of nodes that are stored unchanged; and the ids of nodes that differ only in the
            path of their image.
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
        """The data that is stored with some nodes, by id.

        Args:
            ids: any number of node ids; unknown ids are skipped.
            images: by id, a digest of an image, for rows without a fingerprint.
        """
        rows = self._collection.read(ids, _ROW_FIELDS, IDS_PER_MESSAGE)
        stored = {row[ID_FIELD]: StoredRow.of(row) for row in rows}
        # Rows of LlamaIndex's own store have no fingerprint.
        bare = [node_id for node_id, row in stored.items() if row.fingerprint is None]
        for row in self._collection.read(bare, NODE_FIELDS, _NODES_PER_READ):
            with suppress(StoreError):  # a damaged row will be replaced
                node = self._to_node(row)
                known = fingerprint(node, (images or {}).get(node.node_id, ""))
                stored[node.node_id] = replace(stored[node.node_id], fingerprint=known)
        return stored

    def rows_from(self, source: str | None) -> dict[str, StoredRow]:
        """The data that is stored with the nodes of a corpus, by id.

        Args:
            source: the corpus' name; None for all stored nodes.
        """
        return {node_id: row for page in self.pages_from(source) for node_id, row in page.items()}

    def pages_from(self, source: str | None) -> Iterator[dict[str, StoredRow]]:
        """Like ``rows_from``, about ten thousand rows at a time; more from Milvus Lite.

        Args:
            source: as for ``rows_from``.
        """
        lite = self._collection.connection.lite
        most = _ROWS_PER_LITE_ANSWER if lite else _ROWS_PER_ANSWER
        parts = math.ceil(self.count() / most)
        if source is None and parts > 1:  # rows of LlamaIndex's own store have no bucket
            for some in batches(self._collection.find_ids(""), IDS_PER_MESSAGE, len):
                yield self.stored_rows(some)
            return
        where = f"{ID_FIELD} != {literal('')}"
        if source is not None:
            where = f"$meta[{literal(SOURCE_KEY)}] == {literal(source)}"
        for part in bucket_ranges(parts):
            rows = self._collection.call(
                "query",
                filter=f"{where} and {part}" if part else where,
                output_fields=_ROW_FIELDS,
                **STRONG,
            )
            yield {row[ID_FIELD]: StoredRow.of(row) for row in rows}

    def sources(self, most: int) -> list[str]:
        """Names of corpora that rows were written from, one query for each.

        Args:
            most: maximum number of names.
        """
        found: list[str] = []
        field = f"$meta[{literal(SOURCE_KEY)}]"
        while len(found) < most:
            others = [f"{field} != {literal(each)}" for each in found]
            rows = self._collection.call(
                "query",
                filter=" and ".join([f"exists {field}", *others]),
                output_fields=[SOURCE_KEY],
                limit=1,
                **STRONG,
            )
            if not rows:
                break
            found.append(str(rows[0][SOURCE_KEY]))
        return found

    def count(self, *, strong: bool = True) -> int:
        """Count the nodes.

        Args:
            strong: as for ``get_vectors``.
        """
        consistency = STRONG if strong else SESSION
        rows = self._collection.call("query", filter="", output_fields=["count(*)"], **consistency)
        return int(rows[0]["count(*)"])

    def state(self) -> tuple[int, int]:
        """A value that changes with each write that a search can see, for invalidating caches.

        It notices all writes of this process, through any store. It notices another process' writes
        to a server if they change the number of rows. It reads that number at most once a second,
        since this takes milliseconds, and at most once in a search. A Milvus Lite file has no other
        writer, so its number of rows is not read.
        """
        connection, searching = self._collection.connection, patience()
        asked, rows = self._rows_asked
        now = time.monotonic()
        known = searching is not None and asked >= searching.began
        if not (connection.path or known or now - asked < STATE_SECONDS):
            rows = self.count(strong=False)
            self._rows_asked = now, rows
        return connection.written(self.collection_name), rows

    def sample(self, n: int, seed: int = 0) -> VectorArray:
        """Draw vectors at random, independently of their values and of the order of storing.

        The hash of a row's id puts it into one of 1,024 buckets; a sample is all rows of as many
        buckets as needed.

        Args:
            n: approximate number of vectors; all vectors if there are fewer.
            seed: another seed draws other buckets.

        Returns:
            float32 (m, dim) with m near n; of length 1 if the metric is COSINE.
        """
        return self.draw(n, seed)[1]

    def draw(self, n: int, seed: int = 0) -> tuple[list[str], VectorArray, int]:
        """Like ``sample``; gives the m nodes' ids, their vectors, and the number of all nodes.

        Args:
            n: as for ``sample``.
            seed: as for ``sample``.
        """
        if n < 1:
            raise InvalidValueError(f"n={n}: must be at least 1")
        size = self.count()
        vectors = self.get_vectors(self.sample_ids(n / size, seed) if size else [])
        rows = np.array(list(vectors.values()), dtype=np.float32)
        rows = rows.reshape(-1, self._collection.dim)
        if self.similarity_metric == "COSINE":
            rows = unit_rows(rows)
        kept = np.flatnonzero(np.isfinite(rows).all(axis=1))
        if len(kept) < len(rows):
            logger.warning(
                "%s: %d of %d sampled vectors have no direction and are left out; delete their "
                "nodes, or add them again",
                self._collection,
                len(rows) - len(kept),
                len(rows),
            )
        ids = list(vectors)
        return [ids[place] for place in kept], rows[kept], size

    def sample_ids(self, share: float, seed: int = 0) -> list[str]:
        """Draw node ids at random; a node in several collections is drawn in all or in none.

        Args:
            share: of all nodes, above 0; rounded up to a multiple of 1/1,024. From 1 on, all nodes.
            seed: another seed draws other buckets.
        """
        if not share > 0:
            raise InvalidValueError(f"share={share}: must be above 0")
        buckets = math.ceil(BUCKETS * share)
        ids = self._collection.find_ids(in_buckets(buckets, seed))
        if not ids and buckets >= BUCKETS // 4 and self.count():
            raise StoreError(
                f"{self._collection}: its rows have no {BUCKET_KEY!r}, so none can be drawn; "
                "another store wrote them: add their nodes again with this one"
            )
        return ids

    def _to_node(self, row: Mapping[str, Any]) -> BaseNode:
        return to_node(row, self._settings["image_folders"])


def refuse_arguments(method: str, arguments: Mapping[str, Any]) -> None:
    """Refuse unknown arguments of a method.

    Args:
        method: its name.
        arguments: the unknown arguments.
    """
    if arguments:
        raise InvalidValueError(
            f"{method}: unknown arguments {', '.join(arguments)}; leave them out"
        )
