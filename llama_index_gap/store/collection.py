"""A collection in Milvus or Milvus Lite: opens or creates it, checks it, and calls the client."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pymilvus import DataType, MilvusException

from llama_index_gap.errors import InvalidValueError, UnsupportedError
from llama_index_gap.nodes import MOST_TEXT_BYTES
from llama_index_gap.store.addresses import is_server
from llama_index_gap.store.connection import (
    FAILURES,
    Connection,
    StoreError,
    background_failures,
    caught_logs,
    one_line,
)
from llama_index_gap.store.filters import (
    DOC_ID_FIELD,
    ID_FIELD,
    TEXT_FIELD,
    literal,
    literal_list,
)
from llama_index_gap.store.lite_files import check_lite_files, drop_indexes, waits_for_index
from llama_index_gap.store.rows import VECTOR_FIELD, check_bytes, most_row_bytes
from llama_index_gap.threads import stop_if_given_up, to_its_end

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")

METRICS = ("COSINE", "IP", "L2")
DEFAULT_INDEX = {"index_type": "HNSW", "M": 16, "efConstruction": 200}
LOAD_SECONDS = 900.0
MESSAGE_BYTES = 16 * 2**20
"""Our limit for a message. Milvus' limit is 64 MB; the largest rows have about 0.4 MB."""
IDS_PER_MESSAGE = 5_000
STRONG: dict[str, Any] = {"consistency_level": "Strong"}
SESSION: dict[str, Any] = {"consistency_level": "Session"}
# Makes Milvus return rows in the order of their ids, as pymilvus' own iterator does. We do not use
# that iterator, because it writes ids into its filter without quotes.
_IN_ORDER: dict[str, Any] = {"iterator": "True", "reduce_stop_for_best": "True"}
_ROWS_WITHOUT_VECTORS = 400

_LITE_INDEXES = ("AUTOINDEX", "FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8")
_SERVER_INDEXES = (
    *(*_LITE_INDEXES, "DISKANN", "HNSW_PQ", "HNSW_PRQ", "IVF_PQ", "IVF_RABITQ", "SCANN"),
)
_INDEX_SETTINGS = ("M", "efConstruction", "nlist", "m", "nbits")
_PROPERTY_PREFIX = "gap."
_MOST_DIMENSIONS = 32_768
# A server stores properties in etcd, which limits a message to 1.5 MB. The server accepts a
# property of 1 MB, but then it can neither alter nor drop the collection.
_MOST_PROPERTY_BYTES = 131_072
_LOOKS_SECONDS = 0.02
_NOT_LOADED = 101
_NO_COLLECTION = 100
_WRITING = ("insert", "upsert", "delete", "create_collection", "drop_collection")


def check_settings(
    *,
    uri: str,
    collection_name: str,
    dim: int | None,
    metric: str,
    index_config: Mapping[str, Any] | None,
    batch_size: int,
    timeout: float,
) -> None:
    """Refuse settings that no collection can have.

    Raises:
        ValueError: names the first bad setting.
    """
    if not is_server(uri) and not uri.endswith(".db"):
        raise InvalidValueError(
            f"uri={uri!r}: must be a Milvus Lite file that ends in .db, or start with http(s)://"
        )
    if uri != (shown := re.sub(r"//[^/?#]*@", "//***@", uri)):
        raise InvalidValueError(
            f"uri={shown!r}: a password in the uri would be logged; pass it as the token"
        )
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection_name):
        raise InvalidValueError(
            f"collection_name={collection_name!r}: must be up to 255 letters, digits and "
            "underscores, with no digit first"
        )
    if dim is not None and not 1 <= dim <= _MOST_DIMENSIONS:
        raise InvalidValueError(f"dim={dim}: must be between 1 and {_MOST_DIMENSIONS:,}")
    if metric not in METRICS:
        raise InvalidValueError(
            f"similarity_metric={metric!r}: must be one of {', '.join(METRICS)}"
        )
    if index_config is not None and "index_type" not in index_config:
        raise InvalidValueError(f"index_config={dict(index_config)}: must have an index_type")
    if batch_size < 1:
        raise InvalidValueError(f"batch_size={batch_size}: must be at least 1")
    if not 0 < timeout < math.inf:
        raise InvalidValueError(f"timeout={timeout}: must be more than 0 seconds")


class Collection:
    """A collection of nodes; it is created if it does not exist.

    Args:
        connection: to its database; an error in this constructor closes it.
        name: of the collection.
        dim: dimension of the vectors; None only opens an existing collection.
        metric: compares vectors.
        index_config: for a new collection; None uses the default, and accepts any index that an
            existing collection has.
        overwrite: drop an existing collection first.
        properties: for a new collection, written when it is created.

    Attributes:
        dim: dimension of the vectors.
        max_lengths: maximum bytes of each text column.
        index_type: of its vector index.
        initial_properties: its properties at the time when it was opened.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        dim: int | None,
        metric: str,
        index_config: Mapping[str, Any] | None,
        overwrite: bool,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.connection, self.name = connection, name
        self._first_properties = dict(properties or {})
        self._metric, self._index_config = metric, dict(index_config or DEFAULT_INDEX)
        self._failures = background_failures()
        try:
            self._open(dim, (index_config or {}).get("index_type"), overwrite)
        except BaseException:
            connection.close()
            raise

    def __str__(self) -> str:
        return f"collection {self.name!r} in {self.connection.uri}"

    def _open(self, dim: int | None, asked_index: str | None, overwrite: bool) -> None:
        known = _LITE_INDEXES if self.connection.lite else _SERVER_INDEXES
        if asked_index is not None and asked_index.upper() not in known:
            raise InvalidValueError(
                f"index_type {asked_index!r}: must be one of {', '.join(known)}"
            )
        self._check_files(overwrite)
        left = self.connection.was_left_unflushed(self.name)
        exists = self.call("has_collection")
        if exists and overwrite:
            self.call("drop_collection")
            exists = False
        if not exists:
            if dim is None:
                raise InvalidValueError(
                    f"{self}: there is no such collection; check the name, or pass dim (for a "
                    "DualIndex, embed_model) to create it"
                )
            self._create(dim, self._first_properties)
        description = self.call("describe_collection")
        columns = self._checked_columns(description)
        self.dim = int(columns.pop(VECTOR_FIELD)["dim"])
        if dim is not None:
            self.check_dim(dim)
        self.max_lengths = {name: int(each["max_length"]) for name, each in columns.items()}
        self.initial_properties = own_properties(description)
        index = self.call("describe_index", index_name=VECTOR_FIELD)
        if index is None:
            self._create_index()
        self._check_index(index or {}, asked_index)
        self._load()
        if exists and left:
            self.finish(flush=True, timeout=LOAD_SECONDS)

    def _check_files(self, overwrite: bool) -> None:
        if (path := self.connection.path) is not None:
            check_lite_files(path, self.name, str(self), overwrite=overwrite)

    def _create(self, dim: int, properties: Mapping[str, str]) -> None:
        _check_properties(properties)
        schema = self.connection.client.create_schema(auto_id=False, enable_dynamic_field=True)
        for name in (ID_FIELD, DOC_ID_FIELD, TEXT_FIELD):
            schema.add_field(
                name, DataType.VARCHAR, max_length=MOST_TEXT_BYTES, is_primary=name == ID_FIELD
            )
        schema.add_field(VECTOR_FIELD, DataType.FLOAT_VECTOR, dim=dim)
        self.call(
            "create_collection",
            schema=schema,
            consistency_level="Session",
            properties=prefixed(properties),
        )
        self._create_index()

    def _create_index(self) -> None:
        config = dict(self._index_config)
        index = self.connection.client.prepare_index_params()
        index.add_index(
            field_name=VECTOR_FIELD,
            index_name=VECTOR_FIELD,
            index_type=config.pop("index_type"),
            metric_type=config.pop("metric_type", self._metric),
            params=config,
        )
        # With sync=True, pymilvus would sleep for half a second before it looks for the index.
        self.call("create_index", index_params=index, sync=False)

    def _checked_columns(self, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The parameters of each column."""
        types = {column["name"]: column["type"] for column in description["fields"]}
        text = DataType.VARCHAR
        expected = {ID_FIELD: text, DOC_ID_FIELD: text, TEXT_FIELD: text}
        expected[VECTOR_FIELD] = DataType.FLOAT_VECTOR
        if types != expected or not description.get("enable_dynamic_field"):
            raise InvalidValueError(
                f"{self} has the columns {', '.join(types)}; a collection of nodes must have "
                f"{', '.join(expected)} and dynamic fields: choose another name, or overwrite=True"
            )
        return {column["name"]: column["params"] for column in description["fields"]}

    def _check_index(self, index: Mapping[str, Any], asked_index: str | None) -> None:
        metric = str(index.get("metric_type", self._metric))
        if metric != self._metric:
            raise InvalidValueError(
                f"{self} was built with similarity_metric={metric!r}, not {self._metric!r}; pass "
                f"{metric!r}, or overwrite=True"
            )
        self.index_type = str(index.get("index_type", self._index_config["index_type"]))
        if asked_index is not None and self.index_type != asked_index.upper() != "AUTOINDEX":
            raise InvalidValueError(
                f"{self} has an index of type {self.index_type}, not {asked_index}; leave "
                "index_config out to use the existing index, or pass overwrite=True"
            )

    def _load(self) -> None:
        """Load the collection; Lite opens collections unloaded, and replays a log after a crash."""
        try:
            self.call("load_collection", timeout=LOAD_SECONDS)
        except StoreError as error:
            # A process that was killed while it wrote an index leaves an incomplete file.
            path = self.connection.path
            if path is None or not drop_indexes(path, self.name):
                raise
            logger.warning("%s: its index cannot be read and is rebuilt: %s", self, error)
            self.call("load_collection", timeout=LOAD_SECONDS)

    def check_dim(self, dim: int | None) -> None:
        """Refuse vectors whose dimension differs from the collection's.

        Args:
            dim: dimension of the vectors; None if it is not known yet.

        Raises:
            ValueError: the collection has another dimension.
        """
        if dim not in (None, self.dim):
            raise InvalidValueError(
                f"{self} holds vectors of {self.dim} dimensions, not {dim}; use the model that it "
                "was built with, another name, or overwrite=True"
            )

    def clear(self) -> None:
        """Drop it, and create it again with the same properties."""
        with self.connection.exclusive(), to_its_end():
            properties = self.properties()
            self.call("drop_collection")
            self._create(self.dim, properties)
            self._load()

    def finish(self, flush: bool | None, timeout: float) -> None:
        """Flush, and wait for the index; see ``MilvusStore.finish``."""
        connection, start = self.connection, time.monotonic()
        if flush is None:
            flush = connection.lite and connection.may_be_unflushed(self.name)
        if flush:
            logger.info("%s: flushing and indexing", self)
        with to_its_end():
            if connection.path is not None:
                self._finish_file(connection.path, start + timeout, flush=flush)
            elif flush and connection.lite:
                self._flush_released(timeout)
            elif flush:
                self.call("flush", timeout=timeout)
                self._wait_for_index(start + timeout)
        if flush:
            logger.info("%s: indexed in %.1f s", self, time.monotonic() - start)

    def _finish_file(self, path: str, deadline: float, *, flush: bool) -> None:
        """Flush a loaded collection of a Lite file, and wait until a thread of Lite has indexed it.

        Meanwhile it can be searched: only the flush itself locks the file.
        """
        if flush:
            self.flush_file()
        while (
            waits := waits_for_index(path, self.name)
        ) and self._failures == background_failures():
            if time.monotonic() > deadline:
                raise StoreError(f"{self}: its rows are still being indexed; call finish() again")
            time.sleep(_LOOKS_SECONDS)
        # Indexing has failed: repeat it, to raise the error. Or the layout of the file is unknown.
        if waits or (flush and waits is None):
            self._flush_released(max(deadline - time.monotonic(), 1))

    def flush_file(self) -> None:
        """Write the rows that Milvus Lite has in memory to disk; a thread of Lite indexes them."""
        with self.connection.exclusive():
            self._failures = background_failures()
            self.call("flush", timeout=LOAD_SECONDS)
            self.connection.note_flushed(self.name)

    def _flush_released(self, timeout: float) -> None:
        """Flush and index on Milvus Lite; the collection cannot be searched until it is done."""
        with self.connection.exclusive():
            self.call("release_collection")
            try:
                self.call("flush", timeout=timeout)
            finally:
                self.call("load_collection", timeout=timeout)
            self.connection.note_flushed(self.name)

    def _wait_for_index(self, deadline: float) -> None:
        while True:
            index = self.call("describe_index", index_name=VECTOR_FIELD)
            pending = int(index.get("pending_index_rows", 0))
            if pending == 0:
                return
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{self}: {pending} rows are still being indexed; call finish() again"
                )
            time.sleep(0.5)

    def properties(self) -> dict[str, str]:
        """Read the properties."""
        return own_properties(self.call("describe_collection"))

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Write properties; see ``MilvusStore.set_properties``."""
        _check_properties(properties)
        if properties:
            # Milvus 2.3.5 writes to disk only the state before the last change, so a server that is
            # killed forgets that change. Making the change twice keeps it.
            for _ in range(1 if self.connection.lite else 2):
                self.call("alter_collection_properties", properties=prefixed(properties))

    def index_config(self) -> dict[str, Any]:
        """Type and settings of its vector index, as far as the database tells (Lite: the type)."""
        index = self.call("describe_index", index_name=VECTOR_FIELD) or {}
        settings = {key: int(value) for key, value in index.items() if key in _INDEX_SETTINGS}
        kind = self.index_type
        usual = {"M": 16, "efConstruction": 200} if kind.startswith("HNSW") else {}
        usual |= {"nlist": 128} if kind.startswith(("IVF", "SCANN")) else {}
        return {"index_type": kind, **usual, **settings}

    def find_ids(self, expression: str) -> list[str]:
        """The ids of all rows that fit a filter; of all rows if the filter is empty."""
        rows = self.call(
            "query",
            # A server refuses a query without a filter and a limit.
            filter=expression or f"{ID_FIELD} != {literal('')}",
            output_fields=[ID_FIELD],
            **STRONG,
        )
        return [row[ID_FIELD] for row in rows]

    def read(
        self, ids: Iterable[str], fields: list[str], at_once: int, *, strong: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Read rows by their ids. Only the first read is strongly consistent, which is enough.

        Args:
            ids: of the rows; unknown ids are skipped.
            fields: columns and keys to read.
            at_once: maximum rows in one answer.
            strong: whether to see rows that other processes have just written. For this a server
                waits up to 0.2 s, which a search does not.
        """
        consistency = STRONG if strong else SESSION
        for batch in batches(dict.fromkeys(ids), at_once, len):
            yield from self.call(
                "query",
                filter=f"{ID_FIELD} in {literal_list(batch)}",
                output_fields=fields,
                **consistency,
            )
            consistency = SESSION

    def pages(self, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        """Read all rows in the order of their ids, in batches of bounded size.

        Only the first read is strongly consistent, which is enough.

        Args:
            fields: columns and keys to read; ``["*"]`` for all.

        Raises:
            StoreError: the database does not answer.
        """
        at_once = max(1, 3 * MESSAGE_BYTES // most_row_bytes(self.dim))
        if VECTOR_FIELD not in fields and "*" not in fields:
            at_once = _ROWS_WITHOUT_VECTORS
        consistency, after = STRONG, ""
        while True:
            stop_if_given_up()
            rows = self.call(
                "query",
                filter=f"{ID_FIELD} > {literal(after)}",
                output_fields=fields,
                limit=at_once,
                **_IN_ORDER,
                **consistency,
            )
            if not rows:
                return
            yield rows
            after = rows[-1][ID_FIELD]
            consistency = SESSION

    def call(
        self,
        method: str,
        *,
        beside: str | None = None,
        timeout: float | None = None,
        **arguments: Any,
    ) -> Any:
        """Call the client with a time limit; on Lite, one thread at a time. Errors have one line.

        Args:
            method: of the client.
            beside: name of another collection of the database, to call the method for that one.
            timeout: seconds to wait; by default the connection's timeout.
            **arguments: of the method.
        """
        name = beside or self.name
        connection = self.connection
        with connection.exclusive(), caught_logs():
            stop_if_given_up()
            if connection.closed:
                raise StoreError(f"{self} was closed; open a new MilvusStore")
            if method in _WRITING:
                connection.note_written(name, len(arguments.get("data", ())))
            try:
                try:
                    return connection.call(method, name, timeout, **arguments)
                except MilvusException as error:
                    if error.code != _NOT_LOADED or method == "load_collection":
                        raise
                    self._load()  # another client has released the collection
                    return connection.call(method, name, timeout, **arguments)
            except FAILURES as error:
                reason = one_line(error)
                if "unsupported pattern" in reason:
                    raise UnsupportedError(
                        "filter 'text_match': this server matches only the beginning of a text; "
                        "Milvus 2.4 and later match all of it"
                    ) from error
                if getattr(error, "code", None) == _NO_COLLECTION:
                    reason += "; it was dropped or re-embedded: open the index again"
                if connection.lost:
                    reason += "; is the server running? timeout= says how long to wait for it"
                raise StoreError(f"{self}: {method} failed: {reason}") from error
            finally:
                if method in _WRITING:
                    connection.note_written(name)


def batches(
    items: Iterable[_Item], most: int, size: Callable[[_Item], int]
) -> Iterator[list[_Item]]:
    """Cut items into lists that fit into a message.

    Args:
        items: any number of items.
        most: maximum items in a list.
        size: gives the bytes of an item.
    """
    batch: list[_Item] = []
    total = 0
    for item in items:
        item_size = size(item)
        if batch and (len(batch) == most or total + item_size > MESSAGE_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += item_size
    if batch:
        yield batch


def _check_properties(properties: Mapping[str, str]) -> None:
    for key, value in properties.items():
        if not (isinstance(key, str) and key and isinstance(value, str)):
            raise InvalidValueError(f"property {key!r}={value!r}: names and values must be strings")
        check_bytes(value, _MOST_PROPERTY_BYTES, f"property {key!r}", "keep it in a file")


def prefixed(properties: Mapping[str, str]) -> dict[str, str]:
    """Add our prefix to the names of properties, as Milvus stores them.

    Args:
        properties: by their names without the prefix, see ``own_properties``.
    """
    return {_PROPERTY_PREFIX + key: value for key, value in properties.items()}


def own_properties(description: Mapping[str, Any]) -> dict[str, str]:
    """The properties that ``set_properties`` wrote, by their names without our prefix.

    Args:
        description: Milvus' description of the collection.
    """
    return {
        key.removeprefix(_PROPERTY_PREFIX): str(value)
        for key, value in (description.get("properties") or {}).items()
        if key.startswith(_PROPERTY_PREFIX)
    }
