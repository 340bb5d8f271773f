"""Reading a corpus of texts and images into LlamaIndex nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, ImageNode
from llama_index.core.utils import get_tqdm_iterable

from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.readers.folders import PAGE_SUFFIXES, read_folder, read_page
from llama_index_gap.readers.records import (
    CorpusError,
    NodeMaker,
    Note,
    Records,
    Skipped,
    record_from_fields,
)
from llama_index_gap.readers.sites import Site, site_above
from llama_index_gap.readers.splitting import default_splitter
from llama_index_gap.readers.tables import read_table

_TABLE_FILES = ("docs.jsonl", "docs.csv", "docs.tsv")


@dataclass(frozen=True)
class Corpus:
    """What ``read_corpus`` read, and what it left out.

    Attributes:
        nodes: text nodes and image nodes, document by document.
        skipped: everything that was left out, with its reason.
        root: folder that all images lie in; None if that is not known.
        notes: how the corpus was read, where that is not plain from what it is.
    """

    nodes: list[BaseNode]
    skipped: list[Skipped]
    root: Path | None = None
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
    - a ``.csv`` or ``.tsv`` file with the same names as columns; several images, and their
      captions, in one cell are separated by ``|``;
    - a folder that holds ``docs.jsonl``, ``docs.csv`` or ``docs.tsv``;
    - a folder of pages in Markdown, MDX, HTML or plain text, or a part of a site of the usual
      generators, or one such page: front matter is metadata, alt texts are captions;
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
            tokens that overlap by 64.
        max_pixels: skip images with more pixels than this.
        drafts: read pages that are not published, too (``draft: true``, ``_drafts``).
        strict: raise at the first document or image that would be skipped. Drafts, templates and
            what stands around the article of a page are counted, and stop nothing.
        show_progress: show a progress bar.

    Raises:
        CorpusError: no such path, a format that is not read, no document in it at all, or, with
            ``strict=True``, anything to skip.
    """
    path = _without_dots(path)
    folder = path if path.is_dir() else path.parent
    site = site_above(folder) if root is None and _holds_pages(path) else None
    root = folder if root is None else _without_dots(root)
    image_root = site.folder if site else root
    maker = NodeMaker(image_root, folder, splitter or default_splitter(), max_pixels)
    records = _records(path, root, site, drafts=drafts)
    return _corpus(records, maker, str(path), strict=strict, show_progress=show_progress)


def corpus_from_records(
    records: Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
    show_progress: bool = False,
) -> Corpus:
    """Make nodes of documents that some other program has read.

    Args:
        records: the documents, with the keys that a line of ``docs.jsonl`` has (``read_corpus``).
        folder: where relative paths of images start; images must lie in it.
        max_pixels: as for ``read_corpus``.
        strict: as for ``read_corpus``.
        show_progress: as for ``read_corpus``.

    Raises:
        CorpusError: as ``read_corpus``.
    """
    folder = Path(folder).expanduser()
    maker = NodeMaker(folder, folder, default_splitter(), max_pixels)

    def checked() -> Records:
        for number, fields in enumerate(records, start=1):
            source = f"document {number}"
            try:
                yield record_from_fields(fields, source)
            except ValueError as error:
                yield Skipped(source, str(error))

    return _corpus(checked(), maker, str(folder), strict=strict, show_progress=show_progress)


def _corpus(
    records: Records, maker: NodeMaker, name: str, *, strict: bool, show_progress: bool
) -> Corpus:
    nodes: list[BaseNode] = []
    skipped: list[Skipped] = []
    notes: list[str] = []
    for record in get_tqdm_iterable(records, show_progress, "Reading documents"):
        if isinstance(record, Note):
            notes.append(record.text)
            continue
        made, left_out = ([], [record]) if isinstance(record, Skipped) else maker.nodes(record)
        if strict and (stops := [each for each in left_out if not each.by_rule]):
            raise CorpusError(f"{stops[0].source}: {stops[0].reason} (strict=True)")
        nodes += made
        skipped += left_out
    if not nodes:
        why = "; ".join(f"{skip.source}: {skip.reason}" for skip in skipped[:3])
        raise CorpusError(f"{name}: no document could be read ({why or 'it holds none'})")
    return Corpus(nodes, skipped, maker.root, notes)


def _without_dots(path: str | Path) -> Path:
    """A path as it was named, but for "..", which may lead elsewhere than the text says."""
    path = Path(path).expanduser()
    return path.resolve() if ".." in path.parts else path


def _holds_pages(path: Path) -> bool:
    if path.is_dir():
        return not any((path / name).is_file() for name in _TABLE_FILES)
    return path.suffix.lower() in PAGE_SUFFIXES


def _records(path: Path, root: Path, site: Site | None, *, drafts: bool) -> Records:
    if path.is_file():  # as the user names it, it may be a link to anywhere
        if path.suffix.lower() in PAGE_SUFFIXES:
            return read_page(path, root, site=site, drafts=drafts)
        return read_table(path)
    if not path.is_dir():
        raise CorpusError(f"{path}: no such file or folder")
    text_root = root if path.resolve().is_relative_to(root.resolve()) else path
    tables = [path / name for name in _TABLE_FILES if (path / name).is_file()]
    if len(tables) > 1:
        names = " and ".join(table.name for table in tables)
        raise CorpusError(f"{path}: holds {names}; pass the one that is meant")
    if tables:
        return read_table(tables[0], text_root)
    return read_folder(path, text_root, site=site, drafts=drafts)
