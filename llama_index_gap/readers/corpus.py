"""Reading a corpus of texts and images into LlamaIndex nodes."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, ImageNode

from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.nodes import each_node
from llama_index_gap.progress import Progress
from llama_index_gap.readers.columns import NamedFields
from llama_index_gap.readers.folders import PAGE_SUFFIXES, PDF_SUFFIX, read_folder, read_page
from llama_index_gap.readers.pdf.reader import PdfReader
from llama_index_gap.readers.records import (
    OF_IMAGE,
    CorpusError,
    NodeMaker,
    Note,
    Records,
    Skipped,
)
from llama_index_gap.readers.sites import Site, site_above
from llama_index_gap.readers.splitting import chosen_splitter, default_splitter
from llama_index_gap.readers.tables import names_files, read_objects, read_table

_TABLE_FILES = ("docs.jsonl", "docs.csv", "docs.tsv")
_IMAGE_FOLDER_TABLES = ("metadata.jsonl", "metadata.csv")  # with a file_name, as in data sets


_MOST_KEPT = 10_000
"""The most nodes that stay in memory when a corpus is read only to describe it."""


class NotReadError(CorpusError, TypeError):
    """The answer is known only after the corpus was read, and it was not read yet."""


@dataclass(frozen=True)
class ReadDocument:
    """A document of a corpus as it was read.

    Attributes:
        id: its id.
        place: its file, and in a table its line; empty if unknown.
        nodes: its nodes; empty if nothing of it could be read.
        skipped: its parts that were left out, with the reasons.
    """

    id: str
    place: str
    nodes: list[BaseNode]
    skipped: list[Skipped] = field(default_factory=list)


@dataclass
class _Reading:
    """The findings of one reading of a corpus, without the nodes."""

    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    troubled: dict[str, str] = field(default_factory=dict)
    documents: int = 0
    passages: int = 0
    images: int = 0
    captions: int = 0

    def count(self, nodes: Iterable[BaseNode]) -> None:
        for node in nodes:
            if isinstance(node, ImageNode):
                self.images += 1
                self.captions += bool(node.text)
            else:
                self.passages += 1


Reads: TypeAlias = Callable[[_Reading], Iterator[ReadDocument]]


@dataclass
class _Fields:
    nodes: list[BaseNode]
    skipped: list[Skipped]
    root: Path | None
    path: Path | None
    places: Mapping[str, str]
    notes: list[str]


class Corpus:
    """The documents that ``read_corpus`` reads, and a record of what it leaves out.

    Iterating reads the corpus node by node and keeps nothing; iterating again reads it again.
    ``nodes`` reads it into memory once; from then on, these nodes are the corpus. Only a complete
    reading tells what is skipped: ``skipped``, ``notes`` and ``summary()`` read the whole corpus
    if nothing has yet. After a complete reading, ``len`` counts the nodes; before, it is an error,
    so that ``list(corpus)`` reads only once.

    Args:
        nodes: text nodes and image nodes, document by document.
        skipped: everything that was left out, with its reason.
        root: folder that holds all images; None if unknown.
        path: file or folder that was read, as the user named it; None if there is none.
        places: for each document id, its file, and in a table its line; documents that could not
            be read are included.
        notes: how the corpus was read, where that is not obvious: the roles and types of a
            table's columns.
    """

    # This lets dataclasses.replace(corpus, nodes=…) make another corpus.
    __dataclass_fields__ = _Fields.__dataclass_fields__

    def __init__(  # noqa: PLR0917
        self,
        nodes: Iterable[BaseNode],
        skipped: Iterable[Skipped] = (),
        root: Path | None = None,
        path: Path | None = None,
        places: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.root, self.path = root, path
        self._given = list(skipped), list(notes)
        self._places = dict(places or {})
        self._begun: tuple[_Reading, Iterator[ReadDocument]] | None = None
        self._last: _Reading | None = None
        self._reads: Reads | None = None
        self._once = isinstance(nodes, Iterator)
        self._nodes: list[BaseNode] | None = None
        if isinstance(nodes, Sequence):
            self._nodes = nodes if isinstance(nodes, list) else list(nodes)
        else:
            self._reads = _documents_of(nodes)

    @classmethod
    def _read_anew(
        cls, reads: Reads, root: Path, path: Path | None, *, once: bool = False
    ) -> Corpus:
        corpus = cls((), root=root, path=path)
        corpus._nodes, corpus._reads, corpus._once = None, reads, once
        return corpus

    # --- reading ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[BaseNode]:
        for document in self.documents():
            yield from document.nodes

    def documents(self) -> Iterator[ReadDocument]:
        """Read the corpus document by document, including documents without a readable part."""
        if self._nodes is not None:
            skipped: dict[str, list[Skipped]] = {}
            for skip in self._last.skipped if self._last is not None else self._given[0]:
                skipped.setdefault(skip.source.partition(OF_IMAGE)[0], []).append(skip)
            for key, place in self._places.items():
                yield ReadDocument(key, place, [], skipped.get(place, []))
            for node in each_node(self._nodes):
                yield ReadDocument(node.ref_doc_id or node.node_id, "", [node])
            return
        reading, documents = self._begin()
        yield from documents
        self._last = reading

    def _begin(self) -> tuple[_Reading, Iterator[ReadDocument]]:
        if (begun := self._begun) is not None:
            self._begun = None
            return begun
        if self._reads is None:
            raise CorpusError(
                "the corpus was read from an iterator, which gives its documents only once; read "
                "corpus.nodes first, which keeps them, or pass a list"
            )
        reads = self._reads
        if self._once:
            self._reads = None
        skipped, notes = self._given
        reading = _Reading(list(skipped), list(notes))
        return reading, reads(reading)

    def _read_to_first(self, name: str) -> None:
        """Read up to the first document that has a node, so that errors come early."""
        reading, documents = self._begin()
        first: list[ReadDocument] = []
        for document in documents:
            first.append(document)
            if document.nodes:
                self._begun = reading, chain(first, documents)
                return
        skipped = reading.skipped[:3]
        why = "; ".join(f"{skip.source}: {skip.reason}" for skip in skipped)
        raise CorpusError(f"{name}: no document could be read ({why or 'it holds none'})")

    def _read_through(self, most: float = _MOST_KEPT) -> _Reading:
        """Read the whole corpus; keep the nodes in memory if there are at most ``most`` of them."""
        nodes: list[BaseNode] | None = []
        places: dict[str, str] = {}
        most = math.inf if self._once else most
        for document in self.documents():
            if nodes is not None:
                nodes += document.nodes
                places.setdefault(document.id, document.place)
                if len(nodes) > most:
                    nodes, places = None, {}
        assert self._last is not None
        if nodes is not None:
            self._nodes, self._places = nodes, {k: v for k, v in places.items() if v}
        return self._last

    @property
    def _found(self) -> _Reading:
        if self._nodes is None:
            return self._last or self._read_through()
        known = self._last or _Reading(*self._given, self._places)
        found = _Reading(known.skipped, known.notes, known.troubled, len(self.document_ids))
        found.count(self._nodes)  # the caller may have changed them
        return found

    # --- results of reading ----------------------------------------------------------------------

    def __len__(self) -> int:
        if self._nodes is not None:
            return len(self._nodes)
        if self._last is None:
            raise NotReadError(
                "the number of nodes is unknown until the corpus is read; iterate over it, or "
                "call len(corpus.nodes), which reads all of them into memory"
            )
        return self._last.passages + self._last.images

    def __bool__(self) -> bool:
        return self._nodes is None or bool(self._nodes)

    def __repr__(self) -> str:
        held = "not in memory" if self._nodes is None else f"{len(self._nodes):,} nodes"
        return f"Corpus({str(self.path) if self.path else 'of no path'!r}, {held})"

    def __reduce__(self) -> tuple[Any, ...]:
        found = (self.nodes, self.skipped, self.root, self.path, dict(self.places), self.notes)
        return Corpus, found

    @property
    def nodes(self) -> list[BaseNode]:
        """Text nodes and image nodes, document by document; reads all of them into memory."""
        if self._nodes is None:
            self._read_through(math.inf)
        assert self._nodes is not None
        return self._nodes

    @property
    def skipped(self) -> list[Skipped]:
        """Everything that was left out, with its reason."""
        return self._found.skipped

    @property
    def notes(self) -> list[str]:
        """How the corpus was read, where that is not obvious."""
        return self._found.notes

    @property
    def places(self) -> Mapping[str, str]:
        """For each document id, its file, and in a table its line."""
        if self._nodes is not None:
            return self._places
        found: dict[str, str] = {}
        for document in self.documents():
            found.setdefault(document.id, document.place)
        return found

    @property
    def troubled(self) -> Mapping[str, str]:
        """The ``places`` of documents that are incomplete or could not be read."""
        return self._found.troubled

    @property
    def text_nodes(self) -> list[BaseNode]:
        """The text nodes, read into memory as by ``nodes``: passages of the documents."""
        return [node for node in self.nodes if not isinstance(node, ImageNode)]

    @property
    def image_nodes(self) -> list[ImageNode]:
        """The image nodes, read into memory as by ``nodes``; a caption is the node's text."""
        return [node for node in self.nodes if isinstance(node, ImageNode)]

    @property
    def document_ids(self) -> list[str]:
        """The documents' ids, in the order of ``nodes``, which are read into memory."""
        return list(dict.fromkeys(str(node.ref_doc_id) for node in self.nodes))

    def summary(self) -> str:
        """Counts, notes on how the corpus was read, and each reason for skipping with its count."""
        found = self._found
        lines = [
            f"{found.documents:,} documents: {found.passages:,} passages, "
            f"{found.images:,} images ({found.captions:,} with a caption); "
            f"{len(found.skipped):,} skipped"
        ]
        lines += [f"  {note}" for note in found.notes]
        reasons = Counter(skip.reason.split(";")[0] for skip in found.skipped)
        lines += [f"  {count:,} × {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines)


def read_corpus(
    path: str | Path,
    *,
    root: str | Path | None = None,
    splitter: NodeParser | None = None,
    chunk_size: int | None = None,
    text_field: str | Sequence[str] | None = None,
    image_field: str | Sequence[str] | None = None,
    id_field: str | Sequence[str] | None = None,
    pages: bool = False,
    passwords: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
    drafts: bool = False,
    strict: bool = False,
    show_progress: bool = False,
) -> Corpus:
    """Read documents with their images.

    ``path`` decides the format:

    - a ``.jsonl`` file: an object per line, with ``id``, ``title``, ``text``, ``images`` (a list of
      ``{"path": …, "caption" or "alt": …}``, or of paths), or a single ``image`` with its
      ``caption`` or ``alt`` beside it; every other key is metadata;
    - a ``.csv`` or ``.tsv`` file with these names as columns, or with column names that are usual
      in shops and data sets (docs/catalogues.md); a ``.json`` file with a list of such objects;
    - a folder that holds ``docs.jsonl``, ``docs.csv`` or ``docs.tsv``, or ``metadata.jsonl`` or
      ``metadata.csv`` with a ``file_name``;
    - a folder of pages in Markdown, MDX, HTML or plain text, a part of a site of a usual
      generator, or one such page: front matter is metadata, alt texts are captions;
    - a ``.pdf`` file, or PDF files beside pages (extra ``pdf``): each page's text in reading order,
      figures with their captions, scanned pages as images;
    - a folder of images, each a document; ``name.txt`` is the caption of ``name.jpg``.

    Node ids are made from the document's id and the place in it, so they are the same at every
    reading. Documents without an id are named after their file and line. The title is embedded
    with the text; other metadata is not. Image files are checked, not decoded.

    This call reads only up to the first readable document. The others are read as the corpus is
    consumed: see ``Corpus``.

    Args:
        path: a file or a folder.
        root: folder that images must lie in, and that links to texts may lead to; by default the
            folder of the corpus. If the corpus is a part of a site, its pages may also show images
            from the folders that the whole site publishes (Hugo's ``static`` beside ``content``).
        splitter: cuts long texts; by default LlamaIndex's ``SentenceSplitter`` with chunks of 512
            tokens that overlap by 64. An index cuts chunks again that are too long for its model.
        chunk_size: the most tokens of a chunk, as LlamaIndex counts them; instead of ``splitter``.
        text_field: the text column or columns of a table; by default found by their names.
        image_field: likewise, the image columns.
        id_field: likewise, the id columns; values of several columns are joined by ``/``.
        max_pixels: skip images with more pixels than this.
        drafts: also read unpublished pages (``draft: true``, ``_drafts``).
        strict: read the whole corpus now, and raise at the first document or image that would be
            skipped. Drafts, templates, and the parts of a page around its article are counted but
            do not raise.
        pages: also make an image of every PDF page, for late interaction.
        passwords: passwords to try in turn on encrypted PDF files.
        show_progress: show a progress bar.

    Raises:
        CorpusError: the path does not exist, its format is not read, it holds no document, a named
            column does not exist, or, with ``strict=True``, something would be skipped.
    """
    named = NamedFields.of(text_field, image_field, id_field)
    path = _without_dots(path)
    folder = path if path.is_dir() else path.parent
    site = site_above(folder) if root is None and _holds_pages(path) else None
    root = folder if root is None else _without_dots(root)
    image_root = site.folder if site else root
    splits = chosen_splitter(splitter, chunk_size)
    passwords = [passwords] if isinstance(passwords, str) else list(passwords)

    def reads(reading: _Reading) -> Iterator[ReadDocument]:
        maker = NodeMaker(image_root, folder, splits, max_pixels)
        with PdfReader(
            pages=pages, passwords=passwords, max_pixels=max_pixels, show_progress=show_progress
        ) as pdfs:
            records = _records(path, root, site, named, pdfs, drafts=drafts)
            yield from _documents(records, maker, reading, strict, show_progress)

    where = Path(os.path.abspath(path))  # noqa: PTH100 - links stay
    corpus = Corpus._read_anew(reads, image_root.resolve(), where)
    corpus._read_to_first(str(path))
    if strict:
        corpus._read_through()
    return corpus


def corpus_from_records(
    records: Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    text_field: str | Sequence[str] | None = None,
    image_field: str | Sequence[str] | None = None,
    id_field: str | Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
    show_progress: bool = False,
) -> Corpus:
    """Make nodes from documents that another program has read.

    Args:
        records: the documents, with the keys of a ``docs.jsonl`` line (see ``read_corpus``); any
            iterable. An iterator can be read only once.
        folder: where relative paths of images start; images must lie in it.
        text_field: as for ``read_corpus``.
        image_field: as for ``read_corpus``.
        id_field: as for ``read_corpus``.
        max_pixels: as for ``read_corpus``.
        strict: as for ``read_corpus``.
        show_progress: as for ``read_corpus``.

    Raises:
        CorpusError: as for ``read_corpus``.
    """
    folder = Path(folder).expanduser()
    named = NamedFields.of(text_field, image_field, id_field)
    splits = default_splitter()
    given = _refused_unless_records(records)

    def reads(reading: _Reading) -> Iterator[ReadDocument]:
        maker = NodeMaker(folder, folder, splits, max_pixels)
        objects = ((f"document {number}", each) for number, each in enumerate(given, start=1))
        read = read_objects(objects, named, "records", str(folder))
        yield from _documents(read, maker, reading, strict, show_progress)

    once = isinstance(records, Iterator)
    corpus = Corpus._read_anew(reads, folder.resolve(), None, once=once)
    corpus._read_to_first(str(folder))
    if strict:
        corpus._read_through()
    return corpus


def _refused_unless_records(records: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
        raise CorpusError(
            f"records are {type(records).__name__}; pass an iterable of mappings, such as a list "
            "of dictionaries"
        )
    return records


def _documents(
    records: Records, maker: NodeMaker, reading: _Reading, strict: bool, show_progress: bool
) -> Iterator[ReadDocument]:
    """The documents of the records, one by one; everything else is noted in the reading."""
    for record in Progress(records, "Reading documents", disable=not show_progress):
        if isinstance(record, Note):
            reading.notes.append(record.text)
            continue
        taken = not isinstance(record, Skipped) and maker.has(record.id)
        made, left_out = ([], [record]) if isinstance(record, Skipped) else maker.nodes(record)
        if strict and (stops := [each for each in left_out if not each.by_rule]):
            raise CorpusError(f"{stops[0].source}: {stops[0].reason} (strict=True)")
        reading.skipped += left_out
        if isinstance(record, Skipped):
            continue
        if not taken and (left_out or not made):
            reading.troubled.setdefault(record.id, record.source)
        reading.documents += bool(made)
        reading.count(made)
        yield ReadDocument(record.id, record.source, made, left_out)


def _documents_of(nodes: Iterable[BaseNode]) -> Reads:
    """A function that reads the nodes that the caller has made."""

    def reads(reading: _Reading) -> Iterator[ReadDocument]:
        before = None
        for node in each_node(nodes):
            key = node.ref_doc_id or node.node_id
            reading.documents += key != before
            before = key
            reading.count([node])
            yield ReadDocument(key, "", [node])

    return reads


def _without_dots(path: str | Path) -> Path:
    """A path as it was named, resolved if it has "..", which may not lead where it seems to."""
    path = Path(path).expanduser()
    return path.resolve() if ".." in path.parts else path


def _holds_pages(path: Path) -> bool:
    if path.is_dir():
        return not any((path / name).is_file() for name in _TABLE_FILES)
    return path.suffix.lower() in PAGE_SUFFIXES


def _records(
    path: Path,
    root: Path,
    site: Site | None,
    named: NamedFields,
    pdfs: PdfReader,
    *,
    drafts: bool,
) -> Records:
    if path.suffix.lower() == PDF_SUFFIX and path.is_file():
        return iter([pdfs.read(path, path.name)])
    if path.is_file():  # the user named it, so it may link anywhere
        if path.suffix.lower() in PAGE_SUFFIXES:
            return read_page(path, root, site=site, drafts=drafts)
        return read_table(path, named=named)
    if not path.is_dir():
        raise CorpusError(f"{path}: no such file or folder")
    text_root = root if path.resolve().is_relative_to(root.resolve()) else path
    tables = [path / name for name in _TABLE_FILES if (path / name).is_file()]
    tables = tables or [
        path / name for name in _IMAGE_FOLDER_TABLES if names_files(path / name, text_root)
    ]
    if len(tables) > 1:
        names = " and ".join(table.name for table in tables)
        raise CorpusError(f"{path}: holds {names}; pass the one that is meant")
    if tables:
        return read_table(tables[0], text_root, named)
    if named:
        raise CorpusError(
            f"{path}: text_field, image_field and id_field name columns of a table, but this is a "
            "folder of pages or images"
        )
    return read_folder(path, text_root, pdfs=pdfs, site=site, drafts=drafts)
