"""Finds the collections of an index and its versions, and which of these are complete."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.index.models import MODELS_PROPERTY, Identities, stored_identities
from llama_index_gap.index.query_sample import companion
from llama_index_gap.index.tenants import TENANT_PROPERTY, check_tenancy, is_scope_of
from llama_index_gap.modality import CollectionName
from llama_index_gap.store.addresses import TIMEOUT_SECONDS, is_server, lite_path
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.database import Database
from llama_index_gap.store.lite_files import check_lite_files, lite_collections
from llama_index_gap.store.milvus import MilvusStore

logger = logging.getLogger(__name__)

UNFINISHED_PROPERTY = "unfinished"
"""Property of a text collection: the work that was begun and not completed; empty if none."""

_PARTS = sorted(
    [*get_args(CollectionName), *(companion(slot) for slot in get_args(CollectionName))],
    key=len,
    reverse=True,
)
_NAME = re.compile(rf"([A-Za-z_]\w*?)_({'|'.join(_PARTS)})(?:_v([1-9]\d{{0,8}}))?", re.ASCII)


def check_name(name: str) -> None:
    """Reject a name that no index can have.

    Args:
        name: the name of an index.

    Raises:
        ValueError: the name is invalid; the message says the rule.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise InvalidValueError(
            f"name={name!r}: Milvus allows letters, digits and _, and no digit first"
        )


def collection_name(name: str, part: str, version: int) -> str:
    """The name of a collection of an index, unique to the index, the part and the version.

    Args:
        name: the name of the index.
        part: ``text``, ``image``, ``image_query``, or ``companion`` of one of them.
        version: how often the index was embedded again.
    """
    return f"{name}_{part}_v{version}" if version else f"{name}_{part}"


@dataclass(frozen=True)
class IndexAddress:
    """The address of an index.

    Attributes:
        uri: the file or URL of its database.
        name: the name of the index, or for a tenant the result of ``scope_of``.
        token: the credentials for a server.
        storage: the folder of its stored images, from ``storage_folder``.
        timeout: seconds that a server may take to answer a call.
        tenant: the tenant, if any, for messages.
    """

    uri: str
    name: str
    token: str | None = field(repr=False)
    storage: Path
    timeout: float = TIMEOUT_SECONDS
    tenant: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)

    def __str__(self) -> str:
        return f"{self.uri}: {self.title}"

    @property
    def index_name(self) -> str:
        """The name of the index, without the tenant."""
        return self.name if self.tenant is None else self.name.rpartition("_tenant_")[0]

    @property
    def title(self) -> str:
        """The name of the index and the tenant, in words."""
        tenant = "" if self.tenant is None else f", tenant {self.tenant!r}"
        return f"{self.index_name}{tenant}"

    @property
    def database(self) -> str:
        """What identifies the database: a URL, or the path of a file with links resolved."""
        return self.uri.rstrip("/") if is_server(self.uri) else str(Path(self.uri).resolve())

    def opened(self, collection: str, dim: int | None = None, **settings: Any) -> MilvusStore:
        """Open one of its collections.

        Args:
            collection: the name of the collection, from ``collection_name``.
            dim: the dimension, to create the collection if it is missing.
            **settings: settings of the store.
        """
        return MilvusStore(
            uri=self.uri,
            collection_name=collection,
            dim=dim,
            token=self.token,
            timeout=self.timeout,
            **settings,
        )


@dataclass
class StoredIndex:
    """The collections of an index.

    Embedding an index again builds a new version beside the current one. The newest complete
    version is the index. A version becomes complete when one property, the mark that it is
    unfinished, is removed from its text collection. Names are never reused, so whoever still has
    an older version open gets an error, and never rows of another model.

    Attributes:
        name: the name of the index.
        versions: for each version, the names of its collections by part.
        unfinished: for each incomplete version, the work that was begun.
        claimed: whether any collection names its models, or the work that was begun.
        tenant: the tenant, if the collections name one.
    """

    name: str
    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    unfinished: dict[int, str] = field(default_factory=dict)
    claimed: bool = False
    tenant: str | None = None

    @property
    def current(self) -> int | None:
        """The newest complete version; None if there is none."""
        return max(self.versions.keys() - self.unfinished.keys(), default=None)

    def others(self) -> dict[int, dict[str, str]]:
        """All versions but the current one, and their parts."""
        return {number: parts for number, parts in self.versions.items() if number != self.current}


def find_indexes(
    database: Database, name: str | None = None, *, held: Collection[str] | None = None
) -> list[StoredIndex]:
    """The indexes of a database, including remains of deleted ones, by name.

    Args:
        database: the database; its collections that hold no nodes are ignored.
        name: find only this index; by default all that name their models.
        held: the names of all collections, if known.

    Raises:
        StoreError: the database does not answer.
    """
    found: defaultdict[str, StoredIndex] = defaultdict(lambda: StoredIndex(""))
    for collection in database.names() if held is None else held:
        fits = _NAME.fullmatch(collection)
        if fits is None or (name is not None and fits[1] != name):
            continue
        found[fits[1]].versions.setdefault(int(fits[3] or 0), {})[fits[2]] = collection
    indexes = []
    for index_name, index in sorted(found.items()):
        index.name = index_name
        for number, parts in index.versions.items():
            each_part = {part: database.properties(parts[part]) for part in parts}
            for part in [part for part, each in each_part.items() if each is None]:
                del parts[part]  # a foreign collection that happens to have such a name
            properties = {part: each for part, each in each_part.items() if each is not None}
            index.claimed |= any(
                MODELS_PROPERTY in each or UNFINISHED_PROPERTY in each
                for each in properties.values()
            )
            tenant = properties.get("text", {}).get(TENANT_PROPERTY)
            if tenant is not None and is_scope_of(index_name, tenant):
                index.tenant = tenant
            if begun := properties.get("text", {}).get(UNFINISHED_PROPERTY):
                index.unfinished[number] = begun
            elif "text" not in parts:
                index.unfinished[number] = "the remains of an index whose texts are gone"
        index.versions = {number: parts for number, parts in index.versions.items() if parts}
        if index.versions and (index.claimed or name is not None):
            indexes.append(index)
    return indexes


def the_index(database: Database, address: IndexAddress) -> StoredIndex:
    """An index that must exist and be complete.

    Args:
        database: the database.
        address: the address of the index.

    Raises:
        ValueError: there is no such index; the message names the existing ones.
        StoreError: the index is unfinished.
    """
    found = find_indexes(database, address.name)
    if not found or not found[0].claimed:
        existing = ", ".join(each.name for each in find_indexes(database)) or "none"
        raise InvalidValueError(
            f"{address.uri} holds no index {address.name!r}; its indexes are: {existing}"
        )
    check_whole(found[0], str(address))
    if found[0].current is None:
        raise StoreError(f"{address} is unfinished: {'; '.join(found[0].unfinished.values())}")
    return found[0]


def stored_models(address: IndexAddress) -> Identities:
    """The identities of an index's models, read as untrusted data.

    Args:
        address: the address of the index.

    Raises:
        ValueError: there is no such index.
        StoreError: the index is unfinished or damaged.
    """
    with Database(address.uri, address.token, address.timeout) as database:
        index = the_index(database, address)
        texts = index.versions[index.current or 0]["text"]
        return stored_identities(database.properties(texts) or {}, str(address))


class OpenVersion:
    """The version of an index to open, and the others beside it.

    A reader that may read the index but not list collections gets the first version.

    Args:
        address: the address of the index.
        overwrite: whether a new index will replace everything that is there.

    Attributes:
        number: the number of the version.

    Raises:
        StoreError: the database cannot be opened, or has only an unfinished index.
    """

    def __init__(self, address: IndexAddress, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        if (path := lite_path(address.uri)) is not None and not overwrite:
            for collection in lite_collections(path):
                fits = _NAME.fullmatch(collection)
                if fits is not None and fits[1] == address.name:
                    of = f"collection {collection!r} in {address.uri}"
                    check_lite_files(path, collection, of, overwrite=False)
        self._database = Database(address.uri, address.token, address.timeout)
        try:
            self._held: list[str] | None = None
            found = []
            try:
                self._held = self._database.names()
                found = find_indexes(self._database, address.name, held=self._held)
            except StoreError as error:
                logger.info("%s", error)
            self._index = found[0] if found else StoredIndex(address.name)
            if not overwrite:
                check_whole(self._index, str(address))
        except BaseException:
            self.close()
            raise
        self.number = self._index.current or 0

    def check_tenancy(self, name: str, tenant: str | None, *, make: bool) -> None:
        """Like ``tenants.check_tenancy``; skipped for a reader that may not list collections."""
        if self._held is not None:
            check_tenancy(self._held, self._database.uri, name, tenant, make=make)

    def drop_overwritten(self) -> None:
        """Delete all other versions, if the index was overwritten."""
        if self._overwrite:
            others = self._index.versions.keys() - {self.number}
            for number in others:
                drop_parts(self._database, self._index.versions[number])

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def drop_parts(database: Database, parts: dict[str, str]) -> None:
    """Delete collections of an index; the text collection, which describes it, comes last.

    Args:
        database: the database.
        parts: the names of the collections, by part.
    """
    for part in sorted(parts, key=lambda part: part == "text"):
        database.drop(parts[part])


def check_whole(index: StoredIndex, of: str) -> None:
    """Reject an index that is only an unfinished copy.

    Args:
        index: the index, from ``find_indexes``.
        of: the name of the index, for the message.

    Raises:
        StoreError: it is unfinished; the message says what was begun, and the way out.
    """
    begun = index.unfinished.get(0)
    if index.current is None and begun is not None and "text" in index.versions[0]:
        raise StoreError(
            f"{of} is unfinished: {begun}; run that again to complete it, remove it with "
            f"'llama-gap drop {index.name}', or pass overwrite=True to start over"
        )
