"""Reading a corpus of texts and images into LlamaIndex nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode, ImageNode
from llama_index.core.utils import get_tqdm_iterable

from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.readers.folders import read_folder
from llama_index_gap.readers.pdf.reader import PdfReader
from llama_index_gap.readers.records import (
    CorpusError,
    NodeMaker,
    Records,
    Skipped,
    record_from_fields,
)
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
    """

    nodes: list[BaseNode]
    skipped: list[Skipped]
    root: Path | None = None

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
        """One paragraph: the counts, and each reason for skipping with how often it came."""
        captions = sum(bool(node.text) for node in self.image_nodes)
        lines = [
            f"{len(self.document_ids):,} documents: {len(self.text_nodes):,} passages, "
            f"{len(self.image_nodes):,} images ({captions:,} with a caption); "
            f"{len(self.skipped):,} skipped"
        ]
        reasons = Counter(skip.reason.split(";")[0] for skip in self.skipped)
        lines += [f"  {count:,} × {reason}" for reason, count in reasons.most_common()]
        return "\n".join(lines)


def read_corpus(
    path: str | Path,
    *,
    root: str | Path | None = None,
    splitter: NodeParser | None = None,
    pages: bool = False,
    passwords: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
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
    - a folder of Markdown files: front matter is metadata, alt texts are captions;
    - a ``.pdf`` file, or a folder of PDF files, Markdown beside them or not (extra ``pdf``): each
      page's text in reading order, figures with their captions, scanned pages as images;
    - a folder of images, each a document; ``name.txt`` beside ``name.jpg`` is its caption.

    Node ids are made from the document's id and the place in it, so they are the same at every
    reading. Documents without an id are named after their file and line. The title is part of what
    is embedded; other metadata is not. Image files are checked, not decoded.

    Args:
        path: a file or a folder.
        root: folder that images must lie in, and that links to texts may lead to; by default the
            folder of the corpus.
        splitter: cuts long texts; by default LlamaIndex's ``SentenceSplitter`` with chunks of 512
            tokens that overlap by 64.
        pages: of PDF files, make every page an image, too, as late interaction reads them.
        passwords: are tried in turn on encrypted PDF files.
        max_pixels: skip images with more pixels than this.
        strict: raise at the first document or image that would be skipped. What is left out of PDF
            files as decoration (headers, logos) is counted, and stops nothing.
        show_progress: show a progress bar.

    Raises:
        CorpusError: no such path, a format that is not read, no document in it at all, or, with
            ``strict=True``, anything to skip.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    root = folder if root is None else Path(root).expanduser()
    maker = NodeMaker(root, folder, splitter or default_splitter(), max_pixels)
    with PdfReader(
        pages=pages, passwords=passwords, max_pixels=max_pixels, show_progress=show_progress
    ) as pdfs:
        records = _records(path, root, pdfs)
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
    for record in get_tqdm_iterable(records, show_progress, "Reading documents"):
        made, left_out = ([], [record]) if isinstance(record, Skipped) else maker.nodes(record)
        if strict and (stops := [each for each in left_out if not each.by_rule]):
            raise CorpusError(f"{stops[0].source}: {stops[0].reason} (strict=True)")
        nodes += made
        skipped += left_out
    if not nodes:
        why = "; ".join(f"{skip.source}: {skip.reason}" for skip in skipped[:3])
        raise CorpusError(f"{name}: no document could be read ({why or 'it holds none'})")
    return Corpus(nodes, skipped, maker.root)


def _records(path: Path, root: Path, pdfs: PdfReader) -> Records:
    if path.suffix.lower() == ".pdf" and path.is_file():
        return iter([pdfs.read(path, path.name)])
    if path.is_file():  # as the user names it, it may be a link to anywhere
        return read_table(path)
    if not path.is_dir():
        raise CorpusError(f"{path}: no such file or folder")
    text_root = root if path.resolve().is_relative_to(root.resolve()) else path
    tables = [path / name for name in _TABLE_FILES if (path / name).is_file()]
    if len(tables) > 1:
        names = " and ".join(table.name for table in tables)
        raise CorpusError(f"{path}: holds {names}; pass the one that is meant")
    return read_table(tables[0], text_root) if tables else read_folder(path, root, text_root, pdfs)
