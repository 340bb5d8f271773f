"""Reading a corpus of texts and images into LlamaIndex nodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, ImageNode
from llama_index.core.utils import get_tqdm_iterable

from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.readers.columns import NamedFields
from llama_index_gap.readers.folders import PAGE_SUFFIXES, PDF_SUFFIX, read_folder, read_page
from llama_index_gap.readers.pdf.reader import PdfReader
from llama_index_gap.readers.records import CorpusError, NodeMaker, Note, Records, Skipped
from llama_index_gap.readers.sites import Site, site_above
from llama_index_gap.readers.splitting import chosen_splitter, default_splitter
from llama_index_gap.readers.tables import names_files, read_objects, read_table

_TABLE_FILES = ("docs.jsonl", "docs.csv", "docs.tsv")
_IMAGE_FOLDER_TABLES = ("metadata.jsonl", "metadata.csv")  # with a file_name, as data sets have it


@dataclass(frozen=True)
class Corpus:
    """What ``read_corpus`` read, and what it left out.

    Attributes:
        nodes: text nodes and image nodes, document by document.
        skipped: everything that was left out, with its reason.
        root: folder that all images lie in; None if that is not known.
        path: file or folder that was read, as the user named it; None if no path was.
        places: the file, and in a table the line, that each document stands in, by its id; those
            of which nothing could be read too.
        notes: how the corpus was read, where that is not plain from what it is: what became of
            the columns of tables, and which have types.
    """

    nodes: list[BaseNode]
    skipped: list[Skipped]
    root: Path | None = None
    path: Path | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def text_nodes(self) -> list[BaseNode]:
        """The passages of the documents' texts."""
        return [node for node in self.nodes if not isinstance(node, ImageNode)]

    @property
    def image_nodes(self) -> list[ImageNode]:
        """The images; a caption is the node's text."""
        return [node for node in self.nodes if isinstance(node, ImageNode)]

    @property
    def document_ids(self) -> list[str]:
        """The documents' ids in the order they were read."""
        return list(dict.fromkeys(str(node.ref_doc_id) for node in self.nodes))

    def summary(self) -> str:
        """The counts, how it was read, and each reason for skipping with how often it came."""
        captions = sum(bool(node.text) for node in self.image_nodes)
        lines = [
            f"{len(self.document_ids):,} documents: {len(self.text_nodes):,} passages, "
            f"{len(self.image_nodes):,} images ({captions:,} with a caption); "
            f"{len(self.skipped):,} skipped"
        ]
        lines += [f"  {note}" for note in self.notes]
        reasons = Counter(skip.reason.split(";")[0] for skip in self.skipped)
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

    Formats, told apart by what ``path`` is:

    - a ``.jsonl`` file: an object a line, with ``id``, ``title``, ``text``, ``images`` (a list of
      ``{"path": …, "caption" or "alt": …}``, or of paths), or a single ``image`` with its
      ``caption`` or ``alt`` beside it; every other key is metadata;
    - a ``.csv`` or ``.tsv`` file with the same names as columns, or with those that shops and data
      sets have (docs/catalogues.md); a ``.json`` file with a list of such objects;
    - a folder that holds ``docs.jsonl``, ``docs.csv`` or ``docs.tsv``, or ``metadata.jsonl`` or
      ``metadata.csv`` with a ``file_name``;
    - a folder of pages in Markdown, MDX, HTML or plain text, or a part of a site of the usual
      generators, or one such page: front matter is metadata, alt texts are captions;
    - a ``.pdf`` file, or PDF files beside pages (extra ``pdf``): each page's text in reading order,
      figures with their captions, scanned pages as images;
    - a folder of images, each a document; ``name.txt`` beside ``name.jpg`` is its caption.

    Node ids are made from the document's id and the place in it, so they are the same at every
    reading. Documents without an id are named after their file and line. The title is part of what
    is embedded; other metadata is not. Image files are checked, not decoded.

    Args:
        path: a file or a folder.
        root: folder that images must lie in, and that links to texts may lead to; by default the
            folder of the corpus. Pages of a part of a site may also show what the whole site
            publishes from its own folders for images (``../static`` of Hugo's ``content``).
        splitter: cuts long texts; by default LlamaIndex's ``SentenceSplitter`` with chunks of 512
            tokens that overlap by 64. An index cuts what is longer than its model reads once more.
        chunk_size: the most tokens of a chunk, as LlamaIndex counts them; in place of ``splitter``.
        text_field: of a table, the column or columns of the text; by default found by their names.
        image_field: likewise of the images.
        id_field: likewise of the id; values of several columns are joined by ``/``.
        max_pixels: skip images with more pixels than this.
        drafts: read pages that are not published, too (``draft: true``, ``_drafts``).
        strict: raise at the first document or image that would be skipped. Drafts, templates and
            what stands around the article of a page are counted, and stop nothing.
        pages: of PDF files, make every page an image, too, as late interaction reads them.
        passwords: are tried in turn on encrypted PDF files.
        show_progress: show a progress bar.

    Raises:
        CorpusError: no such path, a format that is not read, no document in it at all, a column
            that is named and not there, or, with ``strict=True``, anything to skip.
    """
    named = NamedFields.of(text_field, image_field, id_field)
    path = _without_dots(path)
    folder = path if path.is_dir() else path.parent
    site = site_above(folder) if root is None and _holds_pages(path) else None
    root = folder if root is None else _without_dots(root)
    image_root = site.folder if site else root
    maker = NodeMaker(image_root, folder, chosen_splitter(splitter, chunk_size), max_pixels)
    with PdfReader(
        pages=pages, passwords=passwords, max_pixels=max_pixels, show_progress=show_progress
    ) as pdfs:
        records = _records(path, root, site, named, pdfs, drafts=drafts)
        corpus = _corpus(records, maker, str(path), strict=strict, show_progress=show_progress)
    return replace(corpus, path=Path(os.path.abspath(path)))  # noqa: PTH100 - links stay


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
    """Make nodes of documents that some other program has read.

    Args:
        records: the documents, with the keys that a line of ``docs.jsonl`` has (``read_corpus``).
        folder: where relative paths of images start; images must lie in it.
        text_field: as for ``read_corpus``, like all that follow.
        image_field: likewise.
        id_field: likewise.
        max_pixels: as for ``read_corpus``.
        strict: as for ``read_corpus``.
        show_progress: as for ``read_corpus``.

    Raises:
        CorpusError: as ``read_corpus``.
    """
    folder = Path(folder).expanduser()
    maker = NodeMaker(folder, folder, default_splitter(), max_pixels)

    named = NamedFields.of(text_field, image_field, id_field)
    objects = ((f"document {number}", each) for number, each in enumerate(records, start=1))
    read = read_objects(objects, named, "records", str(folder))
    return _corpus(read, maker, str(folder), strict=strict, show_progress=show_progress)


def _corpus(
    records: Records, maker: NodeMaker, name: str, *, strict: bool, show_progress: bool
) -> Corpus:
    nodes: list[BaseNode] = []
    skipped: list[Skipped] = []
    places: dict[str, str] = {}
    notes: list[str] = []
    for record in get_tqdm_iterable(records, show_progress, "Reading documents"):
        if isinstance(record, Note):
            notes.append(record.text)
            continue
        made, left_out = ([], [record]) if isinstance(record, Skipped) else maker.nodes(record)
        if strict and (stops := [each for each in left_out if not each.by_rule]):
            raise CorpusError(f"{stops[0].source}: {stops[0].reason} (strict=True)")
        if not isinstance(record, Skipped):
            places.setdefault(record.id, record.source)
        nodes += made
        skipped += left_out
    if not nodes:
        why = "; ".join(f"{skip.source}: {skip.reason}" for skip in skipped[:3])
        raise CorpusError(f"{name}: no document could be read ({why or 'it holds none'})")
    return Corpus(nodes, skipped, maker.root, places=places, notes=notes)


def _without_dots(path: str | Path) -> Path:
    """A path as it was named, but for "..", which may lead elsewhere than the text says."""
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
    if path.is_file():  # as the user names it, it may be a link to anywhere
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
            f"{path}: text_field, image_field and id_field name columns of a table, and this is a "
            "folder of pages or images"
        )
    return read_folder(path, text_root, pdfs=pdfs, site=site, drafts=drafts)
