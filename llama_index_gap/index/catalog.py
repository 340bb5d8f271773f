"""What a database holds: its indexes, and the documents of one; loads no model."""

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
    """What is known of an index without its models.

    Attributes:
        address: where it is.
        collections: for each part that holds nodes its collection's name, rows and dimension.
        models: what identifies its models.
        queries_learnt: how many queries of each modality it has learnt from.
        bytes_on_disk: of its collections; None where a server keeps them.
        images_kept: how many images lie in its storage.
        image_folders: where its other images lay when they were inserted, and whether they are
            opened there.
        unfinished: what was begun and is not completed.
        damage: why nothing else is known of it.
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
    """What an index holds of a document.

    Attributes:
        key: as searches name it.
        title: the first one that its nodes have, or nothing.
        passages: how many texts, captions aside.
        images: how many images.
    """

    key: str
    title: str = ""
    passages: int = 0
    images: int = 0


def list_indexes(
    uri: str, token: str | None = None, timeout: float = TIMEOUT_SECONDS
) -> list[IndexFacts]:
    """All indexes of a database, unfinished and damaged ones too, by name.

    Args:
        uri: a Milvus Lite file, or the address of a server.
        token: for a server.
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
    """What is known of one index.

    Args:
        address: of it.

    Raises:
        ValueError: there is no such index.
        StoreError: it is damaged, or the database cannot be read.
    """
    with Database(address.uri, address.token, address.timeout) as database:
        found = find_indexes(database, address.name)
        index = found[0] if found else the_index(database, address)
        return _facts(database, index, address)


def documents_of(address: IndexAddress) -> list[DocumentFacts]:
    """The documents of an index, by key.

    Args:
        address: of the index.

    Raises:
        ValueError: there is no such index.
        StoreError: it is unfinished, or the database cannot be read.
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
    """Of the version that is whole, or else of what there is."""
    number = max(index.versions) if index.current is None else index.current
    parts = index.versions[number]
    facts = IndexFacts(address, queries_learnt=dict.fromkeys(MODALITIES, 0))
    facts.unfinished = [index.unfinished[each] for each in sorted(index.unfinished)]
    sizes = [
        database.bytes_on_disk(name) for each in index.versions.values() for name in each.values()
    ]
    facts.bytes_on_disk = sum(s for s in sizes if s is not None) if None not in sizes else None
    facts.images_kept = count_kept(address.storage)
    if index.current is None:  # not opened: that makes a vector index where there is none
        told = database.properties(parts["text"]) if "text" in parts else None
        facts.models = stored_identities(told or {}, str(address))
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
    """Where images lay, as the index says, and as this machine notes."""
    allowed = images.folders.allowed
    states: dict[str, FolderState] = {}
    for folder in [*allowed, *images.folders.known]:
        opened = any(folder.is_relative_to(each) for each in allowed)
        try:
            there = folder.is_dir()
        except (OSError, ValueError):  # said by whomever: too long, a NUL, …
            there = False
        states[str(folder)] = "gone" if not there else "opened" if opened else "not opened here"
    return states
