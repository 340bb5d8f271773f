"""What a call gives an index, beside what the index holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from llama_index.core.schema import MetadataMode, TextNode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.modality import CollectionName
from llama_index_gap.store.collection import IDS_PER_MESSAGE, batches
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
        is_part: whether only a part of the corpus is given, so that nothing else is asked of it.
    """

    source: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    is_part: bool = False

    @classmethod
    def of(cls, source: str | None, path: Path | None, places: Mapping[str, str]) -> Origin:
        """Of a corpus that is named, or else known by its path.

        Args:
            source: its name, if the user has given one.
            path: where it was read, if it was.
            places: of its documents; only the files are kept.
        """
        if source is None and path is not None:
            source = _storable(str(path))
        return cls(source, {key: file_of(place) for key, place in places.items()})

    def __post_init__(self) -> None:
        if self.source is None:
            return
        size = len(self.source.encode(errors="surrogatepass"))
        if not self.source.strip() or size > MOST_SOURCE_BYTES:
            raise InvalidValueError(
                f"source={self.source[:60]!r}: must be a name of up to {MOST_SOURCE_BYTES:,} "
                "bytes; it says which corpus a row was written from"
            )


@dataclass
class Compared:
    """What is to be in a collection, beside what is stored there.

    Attributes:
        rows: what is to be there.
        stored: what is stored of the nodes that were given, of all others from their corpus, and,
            where whole documents were given, of all others of these; by node id.
        labels: what is stored beside each row, by node id.
        unchanged: ids of the rows that are there, just so.
        relabelled: ids of those that differ in nothing but the path of their image, or where they
            come from.
        lost: ids of nodes that were given, and have no row in this collection any more.
    """

    rows: list[TextNode]
    stored: dict[str, StoredRow] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    unchanged: set[str] = field(default_factory=set)
    relabelled: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)


Comparison: TypeAlias = Mapping[CollectionName, Compared]


def compare(
    stores: Mapping[CollectionName, MilvusStore],
    rows: Mapping[CollectionName, list[TextNode]],
    digests: Mapping[str, str],
    *,
    origin: Origin,
    whole: bool,
    everything: bool,
) -> Comparison:
    """Compare rows with what is stored.

    Args:
        stores: the collections.
        rows: what is to be in each.
        digests: of images, by node id.
        origin: where the rows come from.
        whole: whether all nodes of their documents are given.
        everything: whether all that is stored is read.
    """
    compared = {name: Compared(of_collection) for name, of_collection in rows.items()}
    everywhere = {row.node_id for each in compared.values() for row in each.rows}
    documents = sorted(documents_of(compared)) if whole else []
    for name, each in compared.items():
        stop_if_given_up()
        store, images = stores[name], {} if name == "text" else digests
        if everything or (origin.source is not None and not origin.is_part):
            each.stored |= store.rows_from(None if everything else origin.source)
        if not each.stored or store.count() > len(each.stored):  # else that is all there is
            missing = sorted(everywhere - each.stored.keys())
            each.stored |= store.stored_rows(missing, images=images)
        if documents and store.count() > len(each.stored):
            for batch in batches(documents, IDS_PER_MESSAGE, len):
                others = set(store.ids_of_documents(batch)) - each.stored.keys()
                each.stored |= store.stored_rows(sorted(others))
        each.lost = everywhere & each.stored.keys() - {row.node_id for row in each.rows}
        for row in each.rows:
            _compare_row(each, row, images.get(row.node_id, ""), origin)
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


def content_of(name: CollectionName, row: TextNode, digests: Mapping[str, str]) -> str:
    """A digest of what the vector of a row is made from; empty where nobody can tell."""
    if name != "text":
        return digests.get(row.node_id, "")
    with suppress(ValueError, RecursionError):
        return text_digest(row.get_content(MetadataMode.EMBED))
    return ""


def vectors_there(
    name: CollectionName, compared: Compared, digests: Mapping[str, str]
) -> dict[str, str]:
    """Of rows that are not there just so, which node's stored vector is theirs, by node id.

    It is the row's own if what it was made from is as it was. If not, it may be that of a node
    that stays as it is, or goes: a document or an image has got another name.
    """
    written = {row.node_id for row in compared.rows} - compared.unchanged
    renamed = {
        row.labels[CONTENT_KEY]: node_id
        for node_id, row in compared.stored.items()
        if CONTENT_KEY in row.labels and node_id not in written
    }
    found: dict[str, str] = {}
    for row in compared.rows:
        if row.node_id in compared.unchanged:
            continue
        content = content_of(name, row, digests)
        if content:
            compared.labels[row.node_id][CONTENT_KEY] = content
        known = compared.stored.get(row.node_id)
        same = known is not None and content and known.labels.get(CONTENT_KEY) == content
        if same or row.node_id in compared.relabelled:
            found[row.node_id] = row.node_id
        elif content in renamed:
            found[row.node_id] = renamed[content]
    return found


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
