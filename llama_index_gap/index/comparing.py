"""What a call gives an index, beside what the index holds of it."""

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
"""Most bytes of the name of a corpus: it stands in every row."""


@dataclass(frozen=True)
class Origin:
    """Where the documents of a call come from.

    Attributes:
        source: names the corpus; None keeps what is stored of each node.
        places: the file of the corpus that each document stands in, by its id.
    """

    source: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def named_source(source: str | None, path: Path | None) -> str | None:
    """The name of a corpus, as its rows have it; None if it has none.

    Args:
        source: its name, if the user has given one.
        path: where it was read, if it was.

    Raises:
        ValueError: the name is empty, or too long.
    """
    if source is None:
        return None if path is None else _storable(str(path))
    size = len(source.encode(errors="surrogatepass"))
    if not source.strip() or size > MOST_SOURCE_BYTES:
        raise InvalidValueError(
            f"source={source[:60]!r}: must be a name of up to {MOST_SOURCE_BYTES:,} bytes; it says "
            "which corpus a row was written from"
        )
    return source


@dataclass
class Compared:
    """What is to be in a collection, beside what is stored there.

    Attributes:
        rows: what is to be there.
        stored: what is stored of the nodes that were given, by node id.
        labels: what is stored beside each row, by node id.
        contents: digests of what the vectors of rows are made from that are not there just so, by
            node id; empty where nobody can tell.
        unchanged: ids of the rows that are there, just so.
        relabelled: ids of those that differ in nothing but the path of their image, or where they
            come from.
        lost: ids of nodes that were given, and have no row in this collection any more.
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
    """Compare rows with what is stored.

    Args:
        stores: the collections.
        rows: what is to be in each.
        digests: of images, by node id.
        ledger: what is known of what is stored; for whole documents, more is noted there.
        source: the corpus that the rows come from; None keeps what is stored of each node.
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
    """The file of a place in a corpus, without the line of a table."""
    file, _, line = place.rpartition(":")
    return _storable(file if file and line.isdecimal() else place)


def _storable(path: str) -> str:
    """A path as a row takes it: of any length, and of bytes that are no text too."""
    text = path.encode(errors="backslashreplace").decode()
    if len(text.encode()) <= MOST_SOURCE_BYTES:
        return text
    return f"{text[:200]}…{text_digest(text)}"


def documents_of(compared: Comparison) -> set[str]:
    """The ids of the documents that were given."""
    rows = (row for each in compared.values() for row in each.rows)
    return {row.ref_doc_id for row in rows if row.ref_doc_id}


def keys_of(compared: Comparison) -> set[str]:
    """The documents that the rows belong to, as ``document_key`` names them."""
    return {row.ref_doc_id or row.node_id for each in compared.values() for row in each.rows}


def _content_of(name: CollectionName, row: TextNode, digests: Mapping[str, str]) -> str:
    """A digest of what the vector of a row is made from; empty where nobody can tell."""
    if name != "text":
        return digests.get(row.node_id, "")
    with suppress(ValueError, RecursionError):
        return text_digest(row.get_content(MetadataMode.EMBED))
    return ""


def vectors_there(
    compared: Compared, of_contents: Callable[[set[str]], Mapping[str, str]]
) -> dict[str, str]:
    """Of rows that are not there just so, which node's stored vector is theirs, by node id.

    It is the row's own if what it was made from is as it was. If not, it may be that of a node
    that stays as it is, or goes: a document or an image has got another name.

    Args:
        compared: the rows.
        of_contents: which node, that is not written anew, has the vector of each content.
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
    """Which of the nodes that were given, and stay as they are, has the vector of each content."""
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
    with suppress(InvalidValueError, RecursionError):  # it will be skipped, or replaced
        asked = fingerprint(row, image)
        same = known.fingerprint == asked
        if same and labels.items() <= stored.items():
            compared.unchanged.add(row.node_id)
        elif same or only_moved(known.fingerprint, asked):
            compared.relabelled.add(row.node_id)
