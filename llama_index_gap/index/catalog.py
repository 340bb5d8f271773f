"""Lists the indexes of a database and the documents of an index, without loading a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from llama_index.core.schema import ImageNode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.images.folders import count_kept
from llama_index_gap.index.image_storage import default_storage, storage_folder
from llama_index_gap.index.indexed_images import IndexedImages
from llama_index_gap.index.models import Identities, stored_identities
from llama_index_gap.index.query_sample import LEARN_AGAIN, companion, kept_queries
from llama_index_gap.index.versions import IndexAddress, StoredIndex, find_indexes, the_index
from llama_index_gap.modality import MODALITIES, CollectionName, Modality
from llama_index_gap.store.addresses import TIMEOUT_SECONDS
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.database import Database
from llama_index_gap.store.filters import DOC_ID_FIELD, ID_FIELD

FolderState: TypeAlias = Literal["opened", "gone", "not opened here"]


@dataclass
class IndexFacts:
    """Facts about an index that need no model.

    Attributes:
        address: the address of the index.
        collections: for each part with nodes, the name, rows and dimension of its collection.
        models: the identities of its models.
        queries_learnt: the number of queries of each modality that it has learnt from.
        bytes_on_disk: the size of its collections; None on a server.
        images_kept: the number of its stored images.
        image_folders: the folders of its other images when they were inserted, and whether images
            are opened there.
        unfinished: work that was begun and not completed.
        damage: if the index is damaged, how; then nothing else is known.
    """

    address: IndexAddress
    collections: dict[CollectionName, dict[str, Any]] = field(default_factory=dict)
    models: Identities = field(default_factory=dict)
    queries_learnt: dict[Modality, int] = field(default_factory=dict)
    bytes_on_disk: int | None = None
    images_kept: int = 0
    image_folders: dict[str, FolderState] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    damage: str = ""


@dataclass
class DocumentFacts:
    """Facts about a document in an index.

    Attributes:
        key: the key of the document, as in searches.
        title: the first title among its nodes; may be empty.
        passages: the number of its texts, without captions.
        images: the number of its images.
    """

    key: str
    title: str = ""
    passages: int = 0
    images: int = 0


def list_indexes(
    uri: str, token: str | None = None, timeout: float = TIMEOUT_SECONDS
) -> list[IndexFacts]:
    """All indexes of a database, including unfinished and damaged ones, by name.

    Args:
        uri: a Milvus Lite file, or the URL of a server.
        token: the credentials for a server.
        timeout: seconds that a server may take to answer a call.

    Raises:
        StoreError: the database cannot be read.
    """
    listed = []
    with Database(uri, token, timeout) as database:
        for index in find_indexes(database):
            folder = default_storage(uri, index.name).absolute()
            address = IndexAddress(uri, index.name, token, folder, timeout, index.tenant)
            try:
                address = replace(address, storage=storage_folder(uri, index.name, None))
                listed.append(_facts(database, index, address))
            except (StoreError, InvalidValueError) as error:
                listed.append(IndexFacts(address, damage=str(error)))
    return listed


def index_facts(address: IndexAddress) -> IndexFacts:
    """Facts about one index.

    Args:
        address: the address of the index.

    Raises:
        ValueError: there is no such index.
        StoreError: the index is damaged, or the database cannot be read.
    """
    with Database(address.uri, address.token, address.timeout) as database:
        found = find_indexes(database, address.name)
        index = found[0] if found else the_index(database, address)
        return _facts(database, index, address)


def documents_of(address: IndexAddress) -> list[DocumentFacts]:
    """The documents of an index, by key.

    Args:
        address: the address of the index.

    Raises:
        ValueError: there is no such index.
        StoreError: the index is unfinished, or the database cannot be read.
    """
    documents: dict[str, DocumentFacts] = {}
    with Database(address.uri, address.token, address.timeout) as database:
        index = the_index(database, address)
        parts = index.versions[index.current or 0]
    for part in ("text", "image"):
        for row in _rows(address, parts[part]):
            key = str(row.get(DOC_ID_FIELD) or row[ID_FIELD])
            document = documents.setdefault(key, DocumentFacts(key))
            document.title = document.title or str(row.get("title") or "")
            document.images += part == "image"
            document.passages += part == "text" and row.get("_node_type") != ImageNode.class_name()
    return [documents[key] for key in sorted(documents)]


def _rows(address: IndexAddress, collection: str) -> Iterator[dict[str, Any]]:
    with address.opened(collection) as store:
        for page in store.collection.pages([ID_FIELD, DOC_ID_FIELD, "_node_type", "title"]):
            yield from page


def _facts(database: Database, index: StoredIndex, address: IndexAddress) -> IndexFacts:
    """Facts about the complete version, or if there is none, about the newest one."""
    number = max(index.versions) if index.current is None else index.current
    parts = index.versions[number]
    facts = IndexFacts(address, queries_learnt=dict.fromkeys(MODALITIES, 0))
    facts.unfinished = [index.unfinished[each] for each in sorted(index.unfinished)]
    sizes = [
        database.bytes_on_disk(name) for each in index.versions.values() for name in each.values()
    ]
    facts.bytes_on_disk = sum(s for s in sizes if s is not None) if None not in sizes else None
    facts.images_kept = count_kept(address.storage)
    if index.current is None:  # do not open it: that would build a missing vector index
        properties = database.properties(parts["text"]) if "text" in parts else None
        facts.models = stored_identities(properties or {}, str(address))
        return facts
    for part in get_args(CollectionName):
        if part not in parts:
            continue
        with address.opened(parts[part]) as store:
            known = stored_identities(store.initial_properties, str(address))
            facts.models = known or facts.models
            facts.collections[part] = {
                "name": parts[part],
                "rows": store.count(),
                "dimension": store.dim,
            }
            if part == "image":
                facts.image_folders = _folders(
                    IndexedImages(store, address.uri, address.name, None, address.storage)
                )
    for slot in get_args(CollectionName):
        if name := parts.get(companion(slot)):
            with address.opened(name) as store:
                try:
                    kept = kept_queries(store)
                except StoreError as error:
                    raise StoreError(
                        f"{address.uri}: {name} is damaged ({error}); {LEARN_AGAIN}"
                    ) from error
            for modality in MODALITIES:
                if modality in kept:
                    count = len(kept[modality][0])
                    facts.queries_learnt[modality] = max(facts.queries_learnt[modality], count)
    return facts


def _folders(images: IndexedImages) -> dict[str, FolderState]:
    """The folders of images, from the index and from the notes of this machine."""
    allowed = images.folders.allowed
    states: dict[str, FolderState] = {}
    for folder in [*allowed, *images.folders.known]:
        opened = any(folder.is_relative_to(each) for each in allowed)
        try:
            exists = folder.is_dir()
        except (OSError, ValueError):  # untrusted path: too long, with a NUL, …
            exists = False
        states[str(folder)] = "gone" if not exists else "opened" if opened else "not opened here"
    return states
