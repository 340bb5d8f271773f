"""Reading a corpus of texts and images into LlamaIndex nodes."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
)
from llama_index.core.utils import get_tqdm_iterable

from llama_index_gap.errors import GapError, InvalidValueError
from llama_index_gap.images.opening import MAX_PIXELS, ImageError, check_image, describe
from llama_index_gap.readers.markdown import parse_markdown
from llama_index_gap.readers.splitting import default_splitter

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp"]
)
_NO_IMAGE = dict.fromkeys(
    (".heic", ".heif"), "is HEIC, which is not read; convert it to JPEG or PNG"
)
_MARKDOWN_SUFFIXES = frozenset([".md", ".markdown"])
_TABLE_FILES = ("docs.jsonl", "docs.csv", "docs.tsv")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LIST_SEPARATOR = "|"
_LONGEST_CELL = 2**31 - 1
_CAPTION_KEYS = ("caption", "alt")
_FIELDS = frozenset(["id", "title", "text", "image", "images", *_CAPTION_KEYS, "captions", "alts"])
_LONGEST_SHOWN = 80


class CorpusError(GapError, ValueError):
    """A corpus that cannot be read, or, with ``strict=True``, not in full."""


@dataclass(frozen=True)
class Skipped:
    """A document or an image that was left out.

    Attributes:
        source: where it stands: a file, a file and line, or a document and the image in it.
        reason: why it was left out.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """What ``read_corpus`` read, and what it left out.

    Attributes:
        nodes: text nodes and image nodes, document by document.
        skipped: everything that was left out, with its reason.
    """

    nodes: list[BaseNode]
    skipped: list[Skipped]

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


@dataclass(frozen=True)
class _ImageReference:
    """A reference to an image, as a document makes it."""

    path: str
    caption: str = ""
    folder: Path | None = None  # where a relative path starts; None for the corpus' folder


@dataclass(frozen=True)
class _Record:
    """A document as it stands in a corpus, whatever the format."""

    id: str
    source: str
    title: str = ""
    text: str = ""
    images: list[_ImageReference] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # parts that were left out while reading


_Read: TypeAlias = Iterator[_Record | Skipped]


def read_corpus(
    path: str | Path,
    *,
    root: str | Path | None = None,
    splitter: NodeParser | None = None,
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
    - a folder of images, each a document; ``name.txt`` beside ``name.jpg`` is its caption.

    Node ids are made from the document's id and the place in it, so they are the same at every
    reading. Documents without an id are named after their file and line. The title is part of what
    is embedded; other metadata is not. LazyImage files are checked, not decoded.

    Args:
        path: a file or a folder.
        root: folder that images must lie in; by default the folder of the corpus.
        splitter: cuts long texts; by default LlamaIndex's ``SentenceSplitter`` with chunks of 512
            tokens that overlap by 64.
        max_pixels: skip images with more pixels than this.
        strict: raise at the first document or image that would be skipped.
        show_progress: show a progress bar.

    Raises:
        CorpusError: no such path, a format that is not read, no document in it at all, or, with
            ``strict=True``, anything to skip.
    """
    path = Path(path).expanduser()
    records, folder = _records(path)
    reader = _NodeMaker(
        root=Path(root) if root is not None else folder,
        folder=folder,
        splitter=splitter or default_splitter(),
        max_pixels=max_pixels,
    )
    return _corpus(records, reader, str(path), strict=strict, show_progress=show_progress)


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
    folder = Path(folder)
    reader = _NodeMaker(
        root=folder, folder=folder, splitter=default_splitter(), max_pixels=max_pixels
    )
    checked = _checked(records)
    return _corpus(checked, reader, str(folder), strict=strict, show_progress=show_progress)


def _checked(records: Iterable[Mapping[str, Any]]) -> _Read:
    for number, fields in enumerate(records, start=1):
        source = f"document {number}"
        try:
            yield _record(fields, source)
        except ValueError as error:
            yield Skipped(source, str(error))


def _corpus(
    records: _Read, reader: _NodeMaker, name: str, *, strict: bool, show_progress: bool
) -> Corpus:
    nodes: list[BaseNode] = []
    skipped: list[Skipped] = []
    for record in get_tqdm_iterable(records, show_progress, "Reading documents"):
        made, left_out = ([], [record]) if isinstance(record, Skipped) else reader.nodes(record)
        if strict and left_out:
            raise CorpusError(f"{left_out[0].source}: {left_out[0].reason} (strict=True)")
        nodes += made
        skipped += left_out
    if not nodes:
        why = "; ".join(f"{skip.source}: {skip.reason}" for skip in skipped[:3])
        raise CorpusError(f"{name}: no document could be read ({why or 'it holds none'})")
    return Corpus(nodes, skipped)


def _records(path: Path) -> tuple[_Read, Path]:
    """Choose the format; returns the documents and the folder that relative paths start from."""
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".jsonl":
            return _read_jsonl(path), path.parent
        if suffix in _DELIMITERS:
            return _read_table(path, _DELIMITERS[suffix]), path.parent
        raise CorpusError(
            f"{path}: {suffix or 'a file without a suffix'} is not read; pass .jsonl, .csv, .tsv, "
            "or a folder of Markdown files or images"
        )
    if not path.is_dir():
        raise CorpusError(f"{path}: no such file or folder")
    tables = [path / name for name in _TABLE_FILES if (path / name).is_file()]
    if len(tables) > 1:
        names = " and ".join(table.name for table in tables)
        raise CorpusError(f"{path}: holds {names}; pass the one that is meant")
    if tables:
        return _records(tables[0])
    files = sorted(_files(path))
    if any(file.suffix.lower() in _MARKDOWN_SUFFIXES for file in files):
        return _read_markdown(path, files), path
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in files):
        return _read_images(path, files), path
    raise CorpusError(
        f"{path}: holds no {', '.join(_TABLE_FILES)}, no Markdown files and no images"
    )


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, links followed, but for hidden ones; broken links among them."""
    walked: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent)
        if here.resolve() in walked:  # a link that leads back
            folders.clear()
            continue
        walked.add(here.resolve())
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (here / name for name in names if not name.startswith("."))


class _NodeMaker:
    """Turns records into nodes; remembers which ids are taken."""

    def __init__(self, *, root: Path, folder: Path, splitter: NodeParser, max_pixels: int) -> None:
        self._root = root.expanduser().resolve()
        self._folder = folder.resolve()
        self._splitter = splitter
        self._max_pixels = max_pixels
        self._ids: set[str] = set()

    def nodes(self, record: _Record) -> tuple[list[BaseNode], list[Skipped]]:
        """The nodes of one document, and what of it was left out."""
        if record.id in self._ids:
            return [], [Skipped(record.source, f"the id {record.id!r} is taken by an earlier one")]
        try:
            self._check_text(record)
            texts = self._text_nodes(record)
        except ValueError as error:
            return [], [Skipped(record.source, str(error))]
        images, skipped = self._image_nodes(record)
        skipped += [Skipped(record.source, problem) for problem in record.problems]
        made = [*texts, *images]
        if not made and not skipped:
            skipped = [Skipped(record.source, "has neither a text nor an image")]
        twice = self._ids.intersection(node.node_id for node in made)
        if twice:
            reason = f"its node id {min(twice)!r} is taken by an earlier document"
            return [], [Skipped(record.source, reason)]
        source = RelatedNodeInfo(
            node_id=record.id, node_type=ObjectType.DOCUMENT, hash=_digest(record)
        )
        title = {"title": record.title} if record.title else {}
        for node in made:
            node.metadata = {**node.metadata, **title, **record.metadata}
            node.excluded_embed_metadata_keys += record.metadata
            node.relationships[NodeRelationship.SOURCE] = source
        self._ids.update(node.node_id for node in made)
        self._ids.add(record.id)
        return made, skipped

    @staticmethod
    def _check_text(record: _Record) -> None:
        texts = [record.id, record.title, record.text, *(p.caption for p in record.images)]
        written = json.dumps([*texts, record.metadata], ensure_ascii=False, default=str)
        try:
            written.encode("utf-8")
        except UnicodeEncodeError as error:
            broken = written[error.start]
            raise InvalidValueError(
                f"holds half a character ({broken!r}), which is not text"
            ) from error
        if any("\x00" in text for text in texts):
            raise InvalidValueError("holds a NUL character, which is not text")

    def _text_nodes(self, record: _Record) -> list[BaseNode]:
        text = record.text if record.text.strip() else record.title
        if not text.strip():
            return []
        splitter = self._splitter.model_copy(
            update={"id_func": lambda index, _: f"{record.id}#text-{index}"}
        )
        return splitter.get_nodes_from_documents([Document(text=text, id_=record.id)])

    def _image_nodes(self, record: _Record) -> tuple[list[ImageNode], list[Skipped]]:
        nodes: list[ImageNode] = []
        skipped: list[Skipped] = []
        seen: Counter[str] = Counter()
        for image in record.images:
            try:
                file = self._checked_file(image)
            except ImageError as error:
                source = record.source
                if image.path != source:
                    source += f", image {image.path[:_LONGEST_SHOWN]}"
                skipped.append(Skipped(source, error.reason))
                continue
            name = self._place(file)
            seen[name] += 1
            again = f"~{seen[name]}" if seen[name] > 1 else ""
            nodes.append(
                ImageNode(
                    id_=f"{record.id}#image-{name}{again}",
                    text=image.caption,
                    image_path=str(file),
                )
            )
        return nodes, skipped

    def _checked_file(self, image: _ImageReference) -> Path:
        path = image.path
        if "://" in path or path.startswith("//") or path.lower().startswith("data:"):
            raise ImageError(describe(path), "is a URL; readers fetch nothing, download it first")
        file = (image.folder or self._folder) / image.path
        check_image(file, root=self._root, max_pixels=self._max_pixels)
        return file.resolve()

    def _place(self, file: Path) -> str:
        """An image's name in ids: the same wherever the corpus' folder is moved to."""
        for folder in (self._folder, self._root):
            if file.is_relative_to(folder):
                return file.relative_to(folder).as_posix()
        return file.as_posix()


def _digest(record: _Record) -> str:
    """Changes whenever the document does, so that a refresh can tell."""
    content = [record.title, record.text, [(p.path, p.caption) for p in record.images]]
    text = json.dumps([*content, record.metadata], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# --- JSONL -------------------------------------------------------------------------------------


def _read_jsonl(path: Path) -> _Read:
    for number, line in enumerate(_lines(path), start=1):
        source = f"{path.name}:{number}"
        if isinstance(line, UnicodeDecodeError):
            yield Skipped(source, _not_utf8(line))
            continue
        if not line.strip():
            continue
        try:
            fields = json.loads(
                line,
                parse_float=_finite,
                parse_constant=_finite,
                object_pairs_hook=_without_doubles,
            )
            if not isinstance(fields, dict):
                raise InvalidValueError(f"is a JSON {type(fields).__name__}, not an object")
            yield _record(fields, source)
        except RecursionError:
            yield Skipped(source, "is nested too deeply")
        except json.JSONDecodeError as error:
            yield Skipped(source, f"is not JSON; {error.msg} at column {error.colno}")
        except ValueError as error:
            yield Skipped(source, str(error))


def _lines(path: Path) -> Iterator[str | UnicodeDecodeError]:
    """The lines of a UTF-8 file; for one that is not UTF-8, the error in its place."""
    with path.open("rb") as file:
        for index, line in enumerate(file):
            try:
                yield line.decode("utf-8-sig" if index == 0 else "utf-8")
            except UnicodeDecodeError as error:
                yield error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidValueError(f"holds {text}, which is not a number that JSON can say")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        doubled = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise InvalidValueError(f"says {doubled} twice")
    return fields


def _record(fields: Mapping[str, Any], source: str) -> _Record:
    """Check a document's fields; raises ValueError that says which one is wrong, and how."""
    rest: dict[str, Any] = {}
    for name, value in fields.items():
        known = _known(name)
        if known in rest:
            raise InvalidValueError(f"says {known} twice, once as {name}")
        rest[known] = value
    identifier = rest.pop("id", None)
    if identifier is None:
        identifier = source
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier.strip():
        raise InvalidValueError(f"its id is {_shown(identifier)}, not a text or a number")
    title, text = (_text_field(rest, name) for name in ("title", "text"))
    images, problems = _image_references(rest)
    return _Record(identifier, source, title.strip(), text, images, rest, problems)


def _known(name: str) -> str:
    """The field that a name means: case and blanks around it do not matter."""
    plain = name.strip().casefold()
    return plain if plain in _FIELDS else name


def _text_field(fields: dict[str, Any], name: str) -> str:
    value = fields.pop(name, None)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidValueError(f"its {name} is {_shown(value)}, not a text")
    return value


def _image_references(fields: dict[str, Any]) -> tuple[list[_ImageReference], list[str]]:
    """Take the images out of a document's fields, and say what is wrong with the others."""
    if fields.get("image") and fields.get("images"):
        raise InvalidValueError("has both image and images; keep one of them")
    image = fields.pop("image", None)
    images = fields.pop("images", None)
    if image:
        # With a single image, its caption may stand beside it.
        beside = {key: fields.pop(key) for key in _CAPTION_KEYS if key in fields}
        own = image if isinstance(image, dict) else {"path": image}
        images = [{**beside, **{key: value for key, value in own.items() if value}}]
    if images is None:
        return [], []
    if not isinstance(images, list):
        return [], [f"its images are {_shown(images)}, not a list"]
    found: list[_ImageReference] = []
    problems: list[str] = []
    for item in images:
        try:
            found.append(_image_reference(item))
        except ValueError as error:
            problems.append(str(error))
    return found, problems


def _image_reference(image: Any) -> _ImageReference:
    if isinstance(image, str):
        image = {"path": image}
    if not isinstance(image, dict):
        raise InvalidValueError(
            f"an image of it is {_shown(image)}, not a path or an object with one"
        )
    path = image.get("path")
    if not isinstance(path, str) or not path.strip():
        raise InvalidValueError(f"an image of it has the path {_shown(path)}, not a text")
    caption = next((image[key] for key in _CAPTION_KEYS if image.get(key)), "")
    if not isinstance(caption, str):
        raise InvalidValueError(f"the caption of {path!r} is {_shown(caption)}, not a text")
    return _ImageReference(path, caption.strip())


# --- CSV and TSV -------------------------------------------------------------------------------


def _read_table(path: Path, delimiter: str) -> _Read:
    limit = csv.field_size_limit(_LONGEST_CELL)  # the module's own, 131,072, is less than a report
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
            _check_header(path, rows.fieldnames, delimiter)
            for row in rows:
                line = rows.line_num
                source = f"{path.name}:{line}"
                try:
                    yield _record(_cells(row), source)
                except ValueError as error:
                    yield Skipped(source, str(error))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: {_not_utf8(error)}; save it as UTF-8") from error
    except csv.Error as error:
        kind = path.suffix[1:].upper()
        raise CorpusError(f"{path}: is not {kind} after line {line}; {error}") from error
    finally:
        csv.field_size_limit(limit)


def _check_header(path: Path, header: Iterable[str] | None, delimiter: str) -> None:
    columns = list(header or [])
    known = {"title", "text", "image", "images"}
    if not known & {_known(name) for name in columns}:
        found = ", ".join(columns) or "nothing"
        hint = f"; separate the columns by {delimiter!r}" if len(columns) == 1 else ""
        raise CorpusError(
            f"{path}: its first line names no column that is read ({', '.join(sorted(known))}); "
            f"it has {found[:_LONGEST_SHOWN]}{hint}"
        )
    counts = Counter(_known(name) for name in columns if name)
    doubled = [name for name, count in counts.items() if count > 1]
    if doubled:
        raise CorpusError(f"{path}: the column {doubled[0]!r} stands twice in its first line")


def _cells(row: dict[str | None, Any]) -> dict[str, Any]:
    """One row as the fields of a JSONL line would be; an empty cell is a field left out."""
    if None in row:
        raise InvalidValueError(f"has {len(row[None])} cells more than the first line has columns")
    if None in row.values():
        missing = sum(value is None for value in row.values())
        raise InvalidValueError(f"has {missing} cells fewer than the first line has columns")
    fields: dict[str, Any] = {_known(str(name)): value for name, value in row.items() if value}
    if "" in fields:
        raise InvalidValueError(f"has {_shown(fields[''])} in a column without a name")
    if "images" in fields:
        paths = [path for path in _split(fields["images"]) if path]
        captions: list[str] = []
        for key in _CAPTION_KEYS:
            for name in (f"{key}s", key):
                captions = captions or _split(fields.pop(name, ""))
        if captions and len(captions) != len(paths):
            raise InvalidValueError(f"has {len(paths)} images but {len(captions)} captions")
        captions = captions or [""] * len(paths)
        fields["images"] = [
            {"path": path, "caption": caption}
            for path, caption in zip(paths, captions, strict=True)
        ]
    return fields


def _split(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(_LIST_SEPARATOR)] if cell else []


# --- Markdown ----------------------------------------------------------------------------------


def _read_markdown(folder: Path, files: list[Path]) -> _Read:
    shown: set[Path] = set()
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() not in _MARKDOWN_SUFFIXES:
            continue
        try:
            record = _page(folder, file, name)
        except ValueError as error:  # MarkdownError among them
            yield Skipped(name, str(error))
            continue
        shown.update((p.folder / p.path).resolve() for p in record.images if p.folder)
        yield record
    for file in files:
        suffix = file.suffix.lower()
        if suffix in _MARKDOWN_SUFFIXES or file.resolve() in shown:
            continue
        reason = (
            "no page shows this image; a folder with Markdown files is read as pages, so keep "
            "images of their own in another"
            if suffix in IMAGE_SUFFIXES
            else _NO_IMAGE.get(suffix, "is neither a page nor an image by its suffix")
        )
        yield Skipped(file.relative_to(folder).as_posix(), reason)


def _page(folder: Path, file: Path, name: str) -> _Record:
    page = parse_markdown(_text_of(file))
    fields = {_known(key): value for key, value in page.metadata.items()}
    problems = [f"looks like an image, but is no Markdown; {unread}" for unread in page.unread]
    if "text" in fields:
        problems.append("its front matter says text; the page's own is taken")
        del fields["text"]
    title = fields.get("title")
    if isinstance(title, bool | int | float):  # as YAML reads "title: 2024"
        fields["title"] = str(title)
    record = _record({"id": name, **fields}, name)
    in_text = [_ImageReference(image.path, image.alt) for image in page.images]
    text = page.text
    if not record.title:  # the heading becomes the title, so it need not stand in the text too
        text = text.removeprefix(page.heading).lstrip()
    return _Record(
        record.id,
        name,
        record.title or page.heading,
        text,
        [_placed(image, folder, file.parent) for image in [*record.images, *in_text]],
        record.metadata,
        [*record.problems, *problems],
    )


def _placed(image: _ImageReference, site: Path, page_folder: Path) -> _ImageReference:
    """A leading slash means the site's root, as the generators of sites have it."""
    if image.path.startswith("//"):
        return image  # a URL
    if image.path.startswith("/"):
        return _ImageReference(image.path.lstrip("/"), image.caption, site)
    return _ImageReference(image.path, image.caption, page_folder)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidValueError(_not_utf8(error)) from error
    except OSError as error:
        raise InvalidValueError(f"cannot be read ({error.strerror})") from error


# --- images ----------------------------------------------------------------------------------


def _read_images(folder: Path, files: list[Path]) -> _Read:
    captions = {file for file in files if file.suffix.lower() == ".txt"}
    used: set[Path] = set()
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file in captions:
            continue
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            reason = _NO_IMAGE.get(file.suffix.lower(), "is not an image by its suffix")
            yield Skipped(name, reason)
            continue
        # name.jpg.txt for one image, name.txt for all of that name
        beside = [file.with_name(file.name + ".txt"), file.with_suffix(".txt")]
        sidecar = next((caption for caption in beside if caption in captions), None)
        caption = ""
        if sidecar is not None:
            used.add(sidecar)
            try:
                caption = _text_of(sidecar).strip()
            except ValueError as error:
                yield Skipped(sidecar.relative_to(folder).as_posix(), str(error))
        yield _Record(name, name, images=[_ImageReference(name, caption)])
    for caption_file in sorted(captions - used):
        yield Skipped(caption_file.relative_to(folder).as_posix(), "no image has this name")


# --- messages ----------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8; byte 0x{error.object[error.start]:02x} at position {error.start}"
