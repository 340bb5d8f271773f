"""Which collections of a database make up an index, and which of them are whole."""

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
"""Property of a text collection: says what was begun and not yet completed, or is empty."""

_PARTS = sorted(
    [*get_args(CollectionName), *(companion(slot) for slot in get_args(CollectionName))],
    key=len,
    reverse=True,
)
_NAME = re.compile(rf"([A-Za-z_]\w*?)_({'|'.join(_PARTS)})(?:_v([1-9]\d{{0,8}}))?", re.ASCII)


def check_name(name: str) -> None:
    """Refuse a name that no index can have.

    Args:
        name: of an index.

    Raises:
        ValueError: says the rule.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise InvalidValueError(
            f"name={name!r}: Milvus takes letters, digits and _, and no digit first"
        )


def collection_name(name: str, part: str, version: int) -> str:
    """What a collection of an index is called.

    No two names of indexes, parts and versions give the same.

    Args:
        name: of the index.
        part: ``text``, ``image``, ``image_query``, or what ``companion`` gives for one of them.
        version: how often the index was embedded anew.
    """
    return f"{name}_{part}_v{version}" if version else f"{name}_{part}"


@dataclass(frozen=True)
class IndexAddress:
    """Where an index is.

    Attributes:
        uri: of its database.
        name: of the index, or what ``scope_of`` gives for a tenant of it.
        token: for a server.
        storage: folder of the images that it keeps, as ``storage_folder`` gives it.
        timeout: seconds that a server may take to answer a call.
        tenant: whose part of the index it is, for messages.
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
        """The name of the index, whosever part of it this is."""
        return self.name if self.tenant is None else self.name.rpartition("_tenant_")[0]

    @property
    def title(self) -> str:
        """The index, and whose part of it this is, in words."""
        tenant = "" if self.tenant is None else f", tenant {self.tenant!r}"
        return f"{self.index_name}{tenant}"

    @property
    def database(self) -> str:
        """What tells its database from others: an address, or a file, links followed."""
        return self.uri.rstrip("/") if is_server(self.uri) else str(Path(self.uri).resolve())

    def opened(self, collection: str, dim: int | None = None, **settings: Any) -> MilvusStore:
        """Open one of its collections.

        Args:
            collection: its name, as ``collection_name`` gives it.
            dim: to make it if it is not there.
            **settings: of the store.
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

    Embedding an index anew builds a version beside the one that is there. The newest that is whole
    is the index: it becomes so when one property, that it is unfinished, is taken off its text
    collection. Names are never used again, so that whoever still has the version before open gets
    an error, and never rows of another model.

    Attributes:
        name: of the index.
        versions: for each version its parts, and the names of their collections.
        unfinished: for each version that is not whole, what was begun.
        claimed: whether any of them says which models made it, or what was begun.
        tenant: whose part of an index it is, if it says so.
    """

    name: str
    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    unfinished: dict[int, str] = field(default_factory=dict)
    claimed: bool = False
    tenant: str | None = None

    @property
    def current(self) -> int | None:
        """The newest version that is whole; None if there is none."""
        return max(self.versions.keys() - self.unfinished.keys(), default=None)

    def others(self) -> dict[int, dict[str, str]]:
        """The versions that are not the current one, and their parts."""
        return {number: parts for number, parts in self.versions.items() if number != self.current}


def find_indexes(
    database: Database, name: str | None = None, *, held: Collection[str] | None = None
) -> list[StoredIndex]:
    """The indexes of a database, also what is left of one, by name.

    Args:
        database: is asked for all its collections; those that hold no nodes are passed over.
        name: only this index; by default all that say which models made them.
        held: the names of all collections, if they are known; by default the database is asked.

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
            told = {part: database.properties(parts[part]) for part in parts}
            for part in [part for part, properties in told.items() if properties is None]:
                del parts[part]  # somebody else's, by chance of this name
            properties = {part: each for part, each in told.items() if each is not None}
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
                index.unfinished[number] = "what is left of an index whose texts are gone"
        index.versions = {number: parts for number, parts in index.versions.items() if parts}
        if index.versions and (index.claimed or name is not None):
            indexes.append(index)
    return indexes


def the_index(database: Database, address: IndexAddress) -> StoredIndex:
    """An index that must be there, and whole.

    Args:
        database: where it is.
        address: of it.

    Raises:
        ValueError: there is none; names those that are there.
        StoreError: it is unfinished.
    """
    found = find_indexes(database, address.name)
    if not found or not found[0].claimed:
        there = ", ".join(each.name for each in find_indexes(database)) or "none"
        raise InvalidValueError(
            f"{address.uri} holds no index {address.name!r}; its indexes are: {there}"
        )
    check_whole(found[0], str(address))
    if found[0].current is None:
        raise StoreError(f"{address} is unfinished: {'; '.join(found[0].unfinished.values())}")
    return found[0]


def stored_models(address: IndexAddress) -> Identities:
    """What identifies the models of an index, as data that anybody may have written.

    Args:
        address: of the index.

    Raises:
        ValueError: there is no such index.
        StoreError: it is unfinished, or damaged.
    """
    with Database(address.uri, address.token, address.timeout) as database:
        index = the_index(database, address)
        texts = index.versions[index.current or 0]["text"]
        return stored_identities(database.properties(texts) or {}, str(address))


class OpenVersion:
    """The version of an index that is opened, and the others beside it.

    A reader that may see the index, and not which collections there are, sees the first version.

    Args:
        address: of the index.
        overwrite: it is about to be made anew, in place of whatever is there.

    Attributes:
        number: of the version.

    Raises:
        StoreError: the database cannot be opened, or there is an unfinished index only.
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
        """As ``tenants.check_tenancy``; a reader that may not list collections is not checked."""
        if self._held is not None:
            check_tenancy(self._held, self._database.uri, name, tenant, make=make)

    def drop_overwritten(self) -> None:
        """Delete all other versions, if the index was made anew."""
        if self._overwrite:
            others = self._index.versions.keys() - {self.number}
            for number in others:
                drop_parts(self._database, self._index.versions[number])

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()


def drop_parts(database: Database, parts: dict[str, str]) -> None:
    """Delete collections of an index; that of its texts, which says what it is, last.

    Args:
        database: where they are.
        parts: the names of the collections, by part.
    """
    for part in sorted(parts, key=lambda part: part == "text"):
        database.drop(parts[part])


def check_whole(index: StoredIndex, of: str) -> None:
    """Refuse an index of which there is an unfinished copy only.

    Args:
        index: as ``find_indexes`` gives it.
        of: the index, for the message.

    Raises:
        StoreError: says what was begun, and the way out.
    """
    begun = index.unfinished.get(0)
    if index.current is None and begun is not None and "text" in index.versions[0]:
        raise StoreError(
            f"{of} is unfinished: {begun}; run that again to complete it, or remove it with "
            f"'llama-gap drop {index.name}', or overwrite=True to start anew"
        )
