"""A whole database: its collections of nodes, and their properties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index_gap.store.addresses import TIMEOUT_SECONDS
from llama_index_gap.store.collection import check_settings, own_properties, prefixed
from llama_index_gap.store.connection import (
    FAILURES,
    Connection,
    StoreError,
    caught_logs,
    one_line,
)
from llama_index_gap.store.filters import DOC_ID_FIELD, ID_FIELD, TEXT_FIELD
from llama_index_gap.store.lite_files import is_whole, lite_collections
from llama_index_gap.store.rows import VECTOR_FIELD

_NODE_COLUMNS = frozenset({ID_FIELD, DOC_ID_FIELD, TEXT_FIELD, VECTOR_FIELD})


class Database:
    """The collections of a database; it loads none of them.

    Args:
        uri: a Milvus Lite file, or the address of a server.
        token: for a server.
        timeout: seconds that a server may take to answer a call.

    Raises:
        ValueError: ``uri`` is not the address of a database.
        StoreError: the database cannot be opened.
    """

    def __init__(self, uri: str, token: str | None, timeout: float = TIMEOUT_SECONDS) -> None:
        check_settings(
            uri=uri,
            collection_name="any",
            dim=None,
            metric="COSINE",
            index_config=None,
            batch_size=1,
            timeout=timeout,
        )
        self.uri, self._timeout = uri, timeout
        self._connection = Connection(uri, token or "", timeout)

    def close(self) -> None:
        """Close the connection to the database."""
        self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def names(self) -> list[str]:
        """The names of all collections, with or without nodes."""
        connection = self._connection
        if connection.path is not None and (held := lite_collections(connection.path)):
            return [name for name in held if is_whole(connection.path, name)]
        with connection.exclusive(), caught_logs():
            try:
                return sorted(connection.client.list_collections(timeout=self._timeout))
            except FAILURES as error:
                raise StoreError(
                    f"{self.uri}: cannot list its collections ({one_line(error)})"
                ) from error

    def properties(self, name: str) -> dict[str, str] | None:
        """The properties of a collection; None if it is not a collection of nodes.

        Args:
            name: of an existing collection.
        """
        description = self._call("describe_collection", name)
        columns = {column["name"] for column in description["fields"]}
        return own_properties(description) if columns >= _NODE_COLUMNS else None

    def dim(self, name: str) -> int:
        """The dimension of a collection's vectors.

        Args:
            name: of a collection of nodes.
        """
        fields = self._call("describe_collection", name)["fields"]
        return next(int(each["params"]["dim"]) for each in fields if each["name"] == VECTOR_FIELD)

    def set_property(self, name: str, key: str, value: str) -> None:
        """Write a property of a collection; see ``MilvusStore.set_properties``.

        Args:
            name: of the collection.
            key: of the property.
            value: a short text.
        """
        for _ in range(1 if self._connection.lite else 2):  # see Collection.set_properties
            self._call("alter_collection_properties", name, properties=prefixed({key: value}))

    def drop(self, name: str) -> None:
        """Delete a collection.

        Args:
            name: of the collection; if it does not exist, nothing happens.
        """
        self._connection.note_written(name)
        self._call("drop_collection", name)
        self._connection.note_written(name)

    def bytes_on_disk(self, name: str) -> int | None:
        """The total size of a collection's files; None if a server keeps them.

        Args:
            name: of the collection.
        """
        if self._connection.path is None:
            return None
        folder = Path(self._connection.path) / "collections" / name
        files = [path for path in folder.rglob("*") if path.is_file()]
        return sum(path.lstat().st_size for path in files)

    def _call(self, method: str, name: str, **arguments: Any) -> Any:
        connection = self._connection
        with connection.exclusive(), caught_logs():
            try:
                return connection.call(method, name, None, **arguments)
            except FAILURES as error:
                raise StoreError(
                    f"collection {name!r} in {self.uri}: {method} failed: {one_line(error)}"
                ) from error
