"""Compares the nodes of a call with the stored rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from llama_index.core.schema import MetadataMode, TextNode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.index.ledger import Ledger
from llama_index_gap.modality import CollectionName
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import (
    CONTENT_KEY,
    PLACE_KEY,
    SOURCE_KEY,
    StoredRow,
    fingerprint,
    only_moved,
    text_digest,
)
from llama_index_gap.threads import stop_if_given_up

MOST_SOURCE_BYTES = 1_000
"""The most bytes that the name of a corpus may have, since every row stores it."""


@dataclass(frozen=True)
class Origin:
    """Where the documents of a call come from.

    Attributes:
        source: the name of the corpus; None keeps the stored name of each node.
        places: the file of the corpus that contains each document, by document id.
    """

    source: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def named_source(source: str | None, path: Path | None) -> str | None:
    """The name of a corpus as rows store it; None if it has none.

    Args:
        source: the name that the user gave, if any.
        path: the path that the corpus was read from, if any.

    Raises:
        ValueError: the name is empty or too long.
    """
    if source is None:
        return None if path is None else _storable(str(path))
    size = len(source.encode(errors="surrogatepass"))
    if not source.strip() or size > MOST_SOURCE_BYTES:
        raise InvalidValueError(
            f"source={source[:60]!r}: must be a name of 1 to {MOST_SOURCE_BYTES:,} bytes; it says "
            "which corpus a row comes from"
        )
    return source


@dataclass
class Compared:
    """The given rows of a collection, compared with the stored ones.

    Attributes:
        rows: the given rows.
        stored: the stored rows of the given nodes, by node id.
        labels: the labels to store with each row, by node id.
        contents: for rows that are not stored exactly as given, digests of the content that their
            vectors are made from, by node id; empty if unknown.
        unchanged: ids of rows that are stored exactly as given.
        relabelled: ids of rows that differ only in the path of their image, or in their origin.
        lost: ids of given nodes that no longer have a row in this collection.
    """

    rows: list[TextNode]
    stored: dict[str, StoredRow] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    unchanged: set[str] = field(default_factory=set)
    relabelled: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)


Comparison: TypeAlias = Mapping[CollectionName, Compared]


def compare(
    stores: Mapping[CollectionName, MilvusStore],
    rows: Mapping[CollectionName, list[TextNode]],
    digests: Mapping[str, str],
    *,
    ledger: Ledger,
    source: str | None,
    whole: bool,
) -> Comparison:
    """Compare rows with the stored ones.

    Args:
        stores: the collections.
        rows: the rows for each collection.
        digests: digests of images, by node id.
        ledger: what is known about the stored rows; for whole documents, more is noted in it.
        source: the corpus that the rows come from; None keeps the stored origin of each node.
        whole: whether all nodes of their documents are given.
    """
    compared = {name: Compared(of_collection) for name, of_collection in rows.items()}
    everywhere = {row.node_id for each in compared.values() for row in each.rows}
    documents = sorted(documents_of(compared)) if whole else []
    origin = Origin(source, ledger.places(keys_of(compared)) if source is not None else {})
    for name, each in compared.items():
        stop_if_given_up()
        images = {} if name == "text" else digests
        each.stored = ledger.stored(name, stores[name], everywhere, images, documents, keep=whole)
        each.lost = everywhere & each.stored.keys() - {row.node_id for row in each.rows}
        for row in each.rows:
            _compare_row(each, row, images.get(row.node_id, ""), origin)
            if row.node_id not in each.unchanged:
                content = _content_of(name, row, digests)
                each.contents[row.node_id] = content
                if content:
                    each.labels[row.node_id][CONTENT_KEY] = content
    return compared


def file_of(place: str) -> str:
    """The file part of a place in a corpus, without the line number in a table."""
    file, _, line = place.rpartition(":")
    return _storable(file if file and line.isdecimal() else place)


def _storable(path: str) -> str:
    """A path in a form that a row can store, even if it is long or not valid text."""
    text = path.encode(errors="backslashreplace").decode()
    if len(text.encode()) <= MOST_SOURCE_BYTES:
        return text
    return f"{text[:200]}…{text_digest(text)}"


def documents_of(compared: Comparison) -> set[str]:
    """The ids of the given documents."""
    rows = (row for each in compared.values() for row in each.rows)
    return {row.ref_doc_id for row in rows if row.ref_doc_id}


def keys_of(compared: Comparison) -> set[str]:
    """The keys of the rows' documents, as ``document_key`` gives them."""
    return {row.ref_doc_id or row.node_id for each in compared.values() for row in each.rows}


def _content_of(name: CollectionName, row: TextNode, digests: Mapping[str, str]) -> str:
    """A digest of the content that the vector of a row is made from; empty if unknown."""
    if name != "text":
        return digests.get(row.node_id, "")
    with suppress(ValueError, RecursionError):
        return text_digest(row.get_content(MetadataMode.EMBED))
    return ""


def vectors_there(
    compared: Compared, of_contents: Callable[[set[str]], Mapping[str, str]]
) -> dict[str, str]:
    """For new and changed rows, the node whose stored vector can be reused, by node id.

    This is the row's own stored vector if its content is unchanged. If not, it may be the vector of
    another node that stays or goes, since a document or an image may have got a new name.

    Args:
        compared: the rows.
        of_contents: finds, for each content digest, a node that has its vector and stays as it is
            or goes.
    """
    found: dict[str, str] = {}
    others: dict[str, str] = {}
    for node_id, content in compared.contents.items():
        known = compared.stored.get(node_id)
        same = known is not None and content and known.labels.get(CONTENT_KEY) == content
        if same or node_id in compared.relabelled:
            found[node_id] = node_id
        elif content:
            others[node_id] = content
    renamed = of_contents(set(others.values())) if others else {}
    return found | {
        node_id: renamed[content] for node_id, content in others.items() if content in renamed
    }


def contents_there(compared: Compared) -> dict[str, str]:
    """For each content digest, the given node that has its vector and stays as it is."""
    return {
        row.labels[CONTENT_KEY]: node_id
        for node_id, row in compared.stored.items()
        if CONTENT_KEY in row.labels and node_id not in compared.contents
    }


def _compare_row(compared: Compared, row: TextNode, image: str, origin: Origin) -> None:
    known = compared.stored.get(row.node_id)
    stored = known.labels if known is not None else {}
    if origin.source is None:
        labels = {key: stored[key] for key in (SOURCE_KEY, PLACE_KEY) if key in stored}
    else:
        place = origin.places.get(row.ref_doc_id or row.node_id, "")
        labels = {SOURCE_KEY: origin.source, PLACE_KEY: place}
    compared.labels[row.node_id] = labels
    if known is None or known.fingerprint is None:
        return
    with suppress(InvalidValueError, RecursionError):  # such a row is skipped or replaced later
        given = fingerprint(row, image)
        same = known.fingerprint == given
        if same and labels.items() <= stored.items():
            compared.unchanged.add(row.node_id)
        elif same or only_moved(known.fingerprint, given):
            compared.relabelled.add(row.node_id)
