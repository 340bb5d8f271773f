"""A document of a corpus, whatever its format, and the nodes made from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
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

from llama_index_gap.errors import GapError, InvalidValueError
from llama_index_gap.images.opening import ImageError, check_image
from llama_index_gap.nodes import MOST_METADATA_BYTES, MOST_TEXT_BYTES, not_a_text
from llama_index_gap.readers.image_paths import ImagePaths
from llama_index_gap.readers.taken_ids import TakenIds

_CAPTION_KEYS = ("caption", "alt")
_PATH_KEYS = ("path", "file_name", "filename", "src", "image", "file")
_URL_KEYS = ("url", "image_url", "href", "link")
OF_IMAGE = ", image "
"""Separates a document from its image in ``Skipped.source``."""
_FIELDS = frozenset(["id", "title", "text", "image", "images", *_CAPTION_KEYS, "captions", "alts"])
_MOST_IMAGES = 10_000
_MAX_DEPTH = 50  # copying metadata or writing it as JSON recurses once per level
TOO_DEEP = f"is nested too deeply; at most {_MAX_DEPTH} levels are read"


class CorpusError(GapError, ValueError):
    """A corpus cannot be read, or, with ``strict=True``, cannot be read completely."""


@dataclass(frozen=True)
class Skipped:
    """A document or an image that was left out.

    Attributes:
        source: where it is: a file, a file and line, or a document and the image in it.
        reason: why it was left out.
        by_rule: whether it is decoration, or its author wants it left out; ``strict=True`` does not
            stop at it, and an index may delete its older version.
        on_purpose: whether it was readable but empty; an index may delete its older version.
    """

    source: str
    reason: str
    by_rule: bool = field(default=False, compare=False)
    on_purpose: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Note:
    """A remark in the summary on how a corpus was read; it reports nothing left out."""

    text: str


@dataclass(frozen=True)
class ImageReference:
    """A document's reference to an image."""

    path: str
    caption: str = ""
    folder: Path | None = None  # where a relative path starts; None: the corpus' folder
    others: tuple[str, ...] = field(default=(), compare=False)  # tried if path does not exist
    by_name: str = field(default="", compare=False)  # search by name: "nearest" or "only"
    optional: bool = field(default=False, compare=False)  # meant for search engines and the like
    problem: str = field(default="", compare=False)  # why it cannot be read
    # For an image that a reader made: its folder instead of the corpus' root, its name in node ids,
    # and its metadata.
    made_in: Path | None = None
    name: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPart:
    """A part of a document's text, such as a page; no passage crosses its bounds."""

    name: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A document as the corpus holds it."""

    id: str
    source: str
    title: str = ""
    text: str = ""
    images: list[ImageReference] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # parts that were left out while reading
    parts: list[TextPart] = field(default_factory=list)  # in place of the text
    decoration: list[str] = field(default_factory=list)  # left out by rule
    version: str = ""  # changes with the document's file


Records: TypeAlias = Iterator[Record | Skipped | Note]


def record_from_fields(fields: Mapping[str, Any], source: str) -> Record:
    """Make a record of a document's fields; an ``InvalidValueError`` names the wrong one."""
    check_depth(fields)
    rest: dict[str, Any] = {}
    for name, value in fields.items():
        known = known_field(name)
        if known in rest:
            raise InvalidValueError(f"has {known} twice, once as {name}")
        rest[known] = value
    identifier = rest.pop("id", None)
    if identifier is None:
        identifier = source
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier.strip():
        raise InvalidValueError(f"its id is {shown(identifier)}, not a text or a number")
    texts = {}
    for name in ("title", "text"):
        value = rest.pop(name, None)
        texts[name] = "" if value is None else value
        if not isinstance(texts[name], str):
            raise InvalidValueError(f"its {name} is {shown(value)}, not a text")
    images, problems = _image_references(rest)
    return Record(identifier, source, texts["title"].strip(), texts["text"], images, rest, problems)


def check_depth(fields: Mapping[str, Any]) -> None:
    """Raise an ``InvalidValueError`` if fields are nested too deeply."""
    level: list[Any] = [fields]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, Mapping) else value)
            if isinstance(inner, Mapping | list | tuple)
        ]
    if level:
        raise InvalidValueError(TOO_DEEP)


def known_field(name: str) -> str:
    """The field that a name means; case and surrounding spaces do not matter."""
    plain = name.strip().casefold()
    return plain if plain in _FIELDS else name


def shown(value: Any) -> str:
    """A wrong value, shortened for messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _image_references(fields: dict[str, Any]) -> tuple[list[ImageReference], list[str]]:
    """Take the images out of a document's fields; also return what is wrong with the others."""
    if fields.get("image") and fields.get("images"):
        raise InvalidValueError("has both image and images; keep one of them")
    image = fields.pop("image", None)
    images = fields.pop("images", None)
    if image:
        # The caption of a single image may be in a field beside it.
        beside = {key: fields.pop(key) for key in _CAPTION_KEYS if key in fields}
        own = image if isinstance(image, dict) else {"path": image}
        images = [{**beside, **{key: value for key, value in own.items() if value}}]
    if images is None:
        return [], []
    if not isinstance(images, list):
        return [], [f"its images are {shown(images)}, not a list"]
    found: list[ImageReference] = []
    problems: list[str] = []
    for item in images:
        image = {"path": item} if isinstance(item, str) else item
        if not isinstance(image, dict):
            problems.append(f"one of its images is {shown(item)}, not a path or an object with one")
            continue
        path = next((image[key] for key in _PATH_KEYS if image.get(key)), image.get("path"))
        caption = next((image[key] for key in _CAPTION_KEYS if image.get(key)), "")
        if not isinstance(path, str) or not path.strip():
            what = f"has the path {shown(path)}, not a text"
            problems.append(f"one of its images {what}{_no_path(image)}")
        elif not isinstance(caption, str):
            problems.append(f"the caption of {path!r} is {shown(caption)}, not a text")
        else:
            found.append(ImageReference(path, caption.strip()))
    return found, problems


def _no_path(image: Mapping[str, Any]) -> str:
    """What to do about an image without a path, for the message."""
    if any(isinstance(image.get(key), str) for key in _URL_KEYS):
        return "; readers fetch no URL: download it, and name the file as path"
    names = f"name its file as {', '.join(_PATH_KEYS)}"
    return f"; {names} (it has {', '.join(map(str, list(image)[:10]))})" if image else f"; {names}"


class NodeMaker:
    """Turns records into nodes; remembers which ids are in use.

    Attributes:
        root: folder that images must lie in.
    """

    def __init__(self, root: Path, folder: Path, splitter: NodeParser, max_pixels: int) -> None:
        self.root = root.resolve()
        self._folder = folder.resolve()
        self._folders = dict.fromkeys(
            each for f in (folder, root) for each in (f.resolve(), f.absolute())
        )
        self._paths = ImagePaths(folder, root)
        self._splitter = splitter
        self._max_pixels = max_pixels
        self._ids = TakenIds()

    def has(self, document_id: str) -> bool:
        """Whether a document with this id was read."""
        return document_id in self._ids

    def nodes(self, record: Record) -> tuple[list[BaseNode], list[Skipped]]:
        """The nodes of one document, and its parts that were left out."""
        if record.id in self._ids:
            return [], [Skipped(record.source, f"the id {record.id!r} is already taken")]
        try:
            texts = self._text_nodes(record)
        except ValueError as error:
            return [], [Skipped(record.source, str(error))]
        except (RecursionError, TimeoutError) as error:  # NLTK times out slow regular expressions
            reason = f"its text cannot be cut into passages ({type(error).__name__}: {error})"
            return [], [Skipped(record.source, reason)]
        images, skipped = self._image_nodes(record)
        skipped += [Skipped(record.source, problem) for problem in record.problems]
        by_rule = [Skipped(record.source, each, by_rule=True) for each in record.decoration]
        skipped += by_rule
        made = [*texts, *images]
        if not made and not skipped:
            reason = "has neither a text nor an image"
            skipped = [Skipped(record.source, reason, on_purpose=True)]
        twice = [node.node_id for node in made if node.node_id in self._ids]
        if twice:
            reason = f"its node id {min(twice)!r} is already taken"
            return [], [Skipped(record.source, reason)]
        # The hash changes whenever the document does, so that a refresh notices.
        named = [(each.name or self._named(each.path), each.caption) for each in record.images]
        content: list[Any] = [record.title, record.text, named]
        if record.version:
            content += [record.version, [(part.text, part.metadata) for part in record.parts]]
        written = json.dumps([*content, record.metadata], sort_keys=True, default=str)
        digest = hashlib.sha256(written.encode()).hexdigest()
        source = RelatedNodeInfo(node_id=record.id, node_type=ObjectType.DOCUMENT, hash=digest)
        title = {"title": record.title} if record.title else {}
        for node in made:
            node.metadata = {**node.metadata, **title, **record.metadata}
            node.excluded_embed_metadata_keys += record.metadata
            node.relationships[NodeRelationship.SOURCE] = source
        self._ids.add([record.id, *(node.node_id for node in made)])
        return made, skipped

    def _named(self, path: str) -> str:
        """A path relative to the corpus, so that it survives moving the corpus' folder."""
        for folder in self._folders:
            if Path(path).is_absolute() and Path(path).is_relative_to(folder):
                return Path(path).relative_to(folder).as_posix()
        return path

    def _text_nodes(self, record: Record) -> list[BaseNode]:
        texts = [record.id, record.title, record.text, *(p.caption for p in record.images)]
        texts += [part.text for part in record.parts]
        about = [*([record.id] * 4), *([record.title, record.metadata] * 2)]
        written = json.dumps([*texts, record.metadata], ensure_ascii=False, default=str)
        try:
            written.encode("utf-8")
            size = len(json.dumps(about, ensure_ascii=False, default=str).encode("utf-8"))
        except UnicodeEncodeError as error:
            broken = written[error.start]
            raise InvalidValueError(
                f"holds half of a surrogate pair ({broken!r}), which is not text"
            ) from error
        if problem := next(filter(None, map(not_a_text, texts)), ""):
            raise InvalidValueError(problem)
        if size > MOST_METADATA_BYTES:
            raise InvalidValueError(
                f"its id, title and metadata take {size:,} bytes in an index, which stores them "
                f"with each node and some of them twice, for filters; shorten them to "
                f"{MOST_METADATA_BYTES:,}"
            )
        parts = record.parts
        if not parts:
            text = record.text if record.text.strip() else record.title
            parts = [TextPart("", text)] if text.strip() else []
        nodes: list[BaseNode] = []
        for part in parts:
            start = f"{record.id}#{part.name + '-' if part.name else ''}text-"
            splitter = self._splitter.model_copy(
                update={"id_func": lambda index, _, start=start: f"{start}{index}"}
            )
            made = splitter.get_nodes_from_documents([Document(text=part.text, id_=record.id)])
            for node in made:
                node.metadata = {**node.metadata, **part.metadata}
                node.excluded_embed_metadata_keys += part.metadata
            nodes += made
        return nodes

    def _image_nodes(self, record: Record) -> tuple[list[ImageNode], list[Skipped]]:
        nodes: list[ImageNode] = []
        skipped: list[Skipped] = []
        seen: Counter[str] = Counter()
        if len(record.images) > _MOST_IMAGES:
            reason = (
                f"shows {len(record.images):,} images; only the first {_MOST_IMAGES:,} are read"
            )
            skipped.append(Skipped(record.source, reason))
        for image in record.images[:_MOST_IMAGES]:
            path = image.path
            try:
                if image.problem:
                    raise ImageError(path, image.problem)
                file = image.folder / path if image.folder else self._paths.find(path)
                if "://" in path or path.startswith("//") or path.lower().startswith("data:"):
                    raise ImageError(path, "is a URL; readers fetch nothing: download it first")
                root = image.made_in or self.root
                check_image(file, root=root, max_pixels=self._max_pixels)
            except ImageError as error:
                source = record.source
                if path != source:
                    source += f"{OF_IMAGE}{path[:80]}"
                hint = "" if image.folder else self._paths.hint(path)
                skipped.append(Skipped(source, error.reason + hint))
                continue
            file = file.resolve()
            # The name in ids stays the same if the corpus' folder is moved.
            below = next((f for f in (self._folder, self.root) if file.is_relative_to(f)), None)
            name = image.name or (file.relative_to(below) if below else file).as_posix()
            seen[name] += 1
            again = f"~{seen[name]}" if seen[name] > 1 else ""
            node_id = f"{record.id}#{name if image.name else f'image-{name}'}{again}"
            caption = image.caption
            if (size := len(caption.encode())) > MOST_TEXT_BYTES:
                reason = (
                    f"its caption has {size:,} bytes, but an index accepts {MOST_TEXT_BYTES:,}; "
                    "the image is read without it"
                )
                skipped.append(Skipped(f"{record.source}{OF_IMAGE}{path[:80]}", reason))
                caption = ""
            node = ImageNode(id_=node_id, text=caption, image_path=str(file))
            node.metadata = dict(image.metadata)
            node.excluded_embed_metadata_keys += image.metadata
            nodes.append(node)
        return nodes, skipped
