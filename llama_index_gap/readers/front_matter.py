"""Front matter of pages: its plain values, its images, and whether it marks a draft."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date, time
from typing import Any
from urllib.parse import urlsplit

import yaml
from yaml.constructor import ConstructorError

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.html import words
from llama_index_gap.readers.records import TOO_DEEP, ImageReference
from llama_index_gap.text import excerpt

_FENCED = re.compile(
    r"\A(?:---[ \t]*(?P<language>yaml|toml|json|js|javascript)?|(?P<toml>\+\+\+)|(?P<json>;;;))"
    r"[ \t]*\n(?P<body>.*?)^(?(toml)\+\+\+|(?(json);;;|(?:---|\.\.\.)))[ \t]*(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
# A page that begins like this has front matter that is not closed; prose after a rule has none.
_UNCLOSED = re.compile(
    r"\A(?P<fence>---(?=[ \t]*(?:yaml|toml|json)?[ \t]*$)|\+\+\+(?=[ \t]*$)|;;;(?=[ \t]*$))[^\n]*\n"
    r"(?:[ \t]*\n|#[^\n]*\n)*+(?:[a-z_][\w-]*[ \t]*[:=](?:[ \t]|$)|\{[ \t]*(?:\n|\"))",
    re.MULTILINE,
)
_UNCLOSED_JSON = re.compile(r'\A\{[ \t]*\n\s*"[^"\n]*"\s*:')
_BARE_JSON = re.compile(r'\A\{\s*[}"]')
_TAB_AFTER_KEY = re.compile(r"^([ ]*(?:-[ ]+)*[^\s:#'\"][^:\n\t]*:)[ ]*\t[ \t]*", re.MULTILINE)
_LONGEST_FRONT_MATTER = 65_536  # an index accepts no more metadata
_TOO_LARGE = 10**100
_LONG_TOML_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){50}""")
_TOML_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_NOT_OF_ITS_KIND = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
_UNREADABLE = (yaml.YAMLError, RecursionError, *_NOT_OF_ITS_KIND)
IMAGE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp"]
)
"""Suffixes of the image files that are read."""
_DRAWN = frozenset([".svg", ".heic", ".heif"])  # also images: opening reports them as not read

# Names for a page's own images in themes of Hugo, Jekyll, Docusaurus, Eleventy and Astro.
_IMAGE_KEYS = words(
    "image images cover coverimage featuredimage featureimage featured feature thumbnail "
    "thumb thumbnailimage hero heroimage banner bannerimage teaser overlayimage ogimage "
    "socialimage shareimage headerimage headerimg header preview previewimage photo photos "
    "picture poster gallery galleries slideshow resources splash background backgroundimage "
    "postimage featuredimagepreview cardimage img imgsrc lead"
)
_PATH_KEYS = ("image_path", "path", "src", "url", "image", "img", "file", "filename", "feature")
_CAPTION_KEYS = ("caption", "alt", "title", "description", "image_description", "text")
_CAPTION_BESIDE = ("caption", "cap", "alt", "description")


def split_front_matter(source: str) -> tuple[dict[str, Any], str]:
    """Split a page into its front matter (YAML, TOML or JSON) and its body.

    Returns:
        Names and values (texts, numbers, booleans, lists and mappings of these); the page's body.

    Raises:
        InvalidValueError: the front matter cannot be read, or holds a value that is not plain.
    """
    found = _FENCED.match(source)
    if found is None:
        if unclosed := _UNCLOSED.match(source):
            fence = unclosed["fence"]
            raise InvalidValueError(
                f"its front matter begins in line 1 and never ends; close it with a line {fence}"
            )
        return _bare_json(source)
    language = (found["language"] or ("toml" if found["toml"] else "yaml")).upper()
    language = "JSON" if found["json"] else language
    body = found["body"]
    if len(body) > _LONGEST_FRONT_MATTER:
        raise InvalidValueError(
            f"its front matter has {len(body):,} characters; at most "
            f"{_LONGEST_FRONT_MATTER:,} are read"
        )
    if language == "TOML" and _LONG_TOML_KEY.search(body):
        raise InvalidValueError(TOO_DEEP)
    try:
        fields = _parsed(body, language)
    # TOML, and YAML for a date such as 2024-02-31, raise ValueError. PyYAML raises the others for a
    # value that does not match its tag (!!bool x), and for a huge number (1:1:1:….5).
    except _UNREADABLE as error:
        raise InvalidValueError(
            f"its front matter cannot be read as {language}; {_cause(error, body)}"
        ) from error
    if isinstance(fields, str):
        return {}, source  # prose between two rules, not front matter
    if not isinstance(fields, dict | None):
        raise InvalidValueError(
            f"its front matter, from line 2, is a {type(fields).__name__}, not a mapping of names "
            "to values"
        )
    return _all_plain(fields or {}, body), source[found.end() :]


def is_draft(metadata: Mapping[str, Any]) -> str:
    """The field that says that the page is not published; empty if there is none."""
    for name, value in metadata.items():
        plain, said = name.strip().casefold(), str(value).strip().casefold()
        if (plain == "draft" and said in {"true", "yes"}) or (
            plain == "published" and said in {"false", "no"}
        ):
            return f"{plain}: {said}"
    return ""


def take_images(metadata: dict[str, Any]) -> tuple[dict[str, Any], list[ImageReference]]:
    """Split the front matter into metadata and images.

    Images are named in fields that themes of the usual generators use (``image``, ``cover``,
    ``featured_image``, ``header``, ``resources``, …). In any other field, a list of mappings that
    name image files is a gallery.
    """
    rest = dict(metadata)
    found: dict[str, ImageReference] = {}
    for name, value in metadata.items():
        plain = re.sub(r"[\s_-]", "", name).casefold()
        known = plain in _IMAGE_KEYS
        if not known and not _is_gallery(value):
            continue
        always = plain in {"image", "images"} and not isinstance(value, Mapping)
        images = list(_named(value, always=always, known=known))
        if not images or (
            # A list with items that are not images is checked and reported with the other fields.
            always and isinstance(value, list) and len(images) < len(value)
        ):
            continue
        beside = _caption_beside(name, rest, only="image" in rest and plain == "image")
        for image in images:
            caption = image.caption or beside
            if image.path not in found or not found[image.path].caption:
                found[image.path] = ImageReference(image.path, caption)
        del rest[name]
    return rest, list(found.values())


def names_image(target: str) -> bool:
    """Whether a path or URL has the suffix of an image."""
    return suffix_of(target) in IMAGE_SUFFIXES | _DRAWN


def suffix_of(target: str) -> str:
    """The suffix of the file that a path or URL names, in lower case; empty if it has none."""
    try:
        path = urlsplit(target.strip()).path
    except ValueError:  # an IPv6 address with an unclosed "["
        return ""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _bare_json(source: str) -> tuple[dict[str, Any], str]:
    """Hugo's front matter in JSON: an object at the very start of the page."""
    if not _BARE_JSON.match(source):
        return {}, source
    try:
        fields, end = json.JSONDecoder().raw_decode(source[:_LONGEST_FRONT_MATTER])
    except (ValueError, RecursionError) as error:
        if _UNCLOSED_JSON.match(source) and isinstance(error, json.JSONDecodeError):
            raise InvalidValueError(
                "its front matter cannot be read as JSON; "
                f"line {error.lineno}, column {error.colno}: {error.msg}"
            ) from error
        return {}, source  # prose, or a program
    rest = source[end:]
    if rest.strip() and not rest.startswith("\n"):
        return {}, source
    return _all_plain(fields, source, first_line=1), rest


def _parsed(body: str, language: str) -> Any:
    match language:
        case "TOML":
            return tomllib.loads(body)
        case "JSON":
            return json.loads(body)
        case "JS" | "JAVASCRIPT":
            raise InvalidValueError("it is a program, and nothing in a corpus is run; write YAML")
    try:
        return yaml.load(body, _PlainLoader)  # noqa: S506 (a SafeLoader, and stricter)
    except yaml.YAMLError:
        without_tabs = _TAB_AFTER_KEY.sub(r"\1 ", body)
        if without_tabs == body:
            raise
        return yaml.load(without_tabs, _PlainLoader)  # noqa: S506


def _cause(error: BaseException, body: str) -> str:
    """The error, with its line in the page; line 1 is the fence."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno + 1}, column {error.colno}: {error.msg}"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is not None and problem:
        hint = "; indent and separate with spaces, not tabs" if "\\t" in problem else ""
        begun = getattr(error, "context_mark", None)
        if begun is not None and begun.line != mark.line:
            hint += f" ({error.context}, from line {begun.line + 2} on)"  # type: ignore[attr-defined]
        return f"line {mark.line + 2}, column {mark.column + 1}: {problem}{hint}"
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if at := _TOML_PLACE.search(said):
        line = int(at["line"]) + 1 if at["line"] else body.count("\n") + 2
        column = f", column {at['column']}" if at["column"] else ""
        return f"line {line}{column}: {said[: at.start()]}"
    return said


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few nested ones expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            parser: Any = self  # missing in the type stubs
            where = parser.peek_event().start_mark
            raise ConstructorError(None, None, "aliases (*name) are not read", where)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _NOT_OF_ITS_KIND as error:
            kind = node.tag.rpartition(":")[2]
            why = f" ({error})" if isinstance(error, ValueError) else ""
            problem = f"{excerpt(str(node.value), 40)} is not a valid {kind}{why}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _all_plain(fields: Mapping[Any, Any], source: str, first_line: int = 2) -> dict[str, Any]:
    """Each field as a plain value; an error names the field's line."""
    plain: dict[str, Any] = {}
    for name, value in fields.items():
        try:
            plain[str(name)] = _plain(str(name), value)
        except InvalidValueError as error:
            key = re.search(rf"^[ \t]*[\"']?{re.escape(str(name))}[\"']?[ \t]*[:=]", source, re.M)
            line = f" (line {source.count(chr(10), 0, key.start()) + first_line})" if key else ""
            raise InvalidValueError(f"{error}{line}") from error
    return plain


def _plain(name: str, value: Any) -> Any:
    """A value that JSON can hold, dates as ISO text; any other value is an error."""
    match value:
        case date() | time():
            return value.isoformat()
        case list():
            return [_plain(name, item) for item in value]
        case dict():
            return {str(key): _plain(name, item) for key, item in value.items()}
        case float() if not math.isfinite(value):
            raise InvalidValueError(f"its front matter has {name}: {value}, which is not a number")
        case int() if abs(value) >= _TOO_LARGE:
            raise InvalidValueError(
                f"its front matter has a number of more than 100 digits as {name}"
            )
        case None | bool() | int() | float() | str():
            return value
    raise InvalidValueError(
        f"its front matter holds a {type(value).__name__} as {name}; texts, numbers, dates, lists "
        "and mappings are read"
    )


def _is_gallery(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and _path_of(item) for item in value)
    )


def _path_of(image: Mapping[str, Any]) -> str:
    """The image file that a mapping names; a gallery's ``url`` may be a larger image or a page."""
    paths = [image[key] for key in _PATH_KEYS if isinstance(image.get(key), str)]
    return next((path for path in paths if names_image(path)), "")


def _named(value: Any, *, always: bool, known: bool) -> Iterator[ImageReference]:
    """The images that a value names; without ``always``, only names with an image suffix."""
    match value:
        case str() if value.strip() and (always or names_image(value)):
            yield ImageReference(value.strip())
        case list():
            for item in value:
                yield from _named(item, always=always, known=known)
        case dict():
            path = _path_of(value)
            if not path and known:  # a service's URL has no suffix
                urls = (value.get(key) for key in ("image", "src", "path", "image_path"))
                path = next((u for u in urls if isinstance(u, str) and "://" in u), "")
            if path:
                inner = value.get("params")
                said = {**(inner if isinstance(inner, dict) else {}), **value}
                captions = (said[key] for key in _CAPTION_KEYS if isinstance(said.get(key), str))
                yield ImageReference(path, next((c.strip() for c in captions if c.strip()), ""))
            if known:  # header: {image, teaser} has several; a repeated image adds nothing
                for name, item in value.items():
                    plain = re.sub(r"[\s_-]", "", name).casefold()
                    if item != path and plain in _IMAGE_KEYS:
                        yield from _named(item, always=False, known=False)


def _caption_beside(name: str, fields: dict[str, Any], *, only: bool) -> str:
    """Take the caption of one image from a separate field: ``image_alt``, ``alt``."""
    stem = re.sub(r"[\s_-]", "", name).casefold()
    stem = stem.removesuffix("image") if stem != "image" else stem
    for kind in _CAPTION_BESIDE:
        for key in list(fields):
            plain = re.sub(r"[\s_-]", "", key).casefold()
            if plain in {f"{stem}{kind}", f"{stem}image{kind}"} or (
                only and plain == kind != "cap"
            ):
                if plain == "description" or not isinstance(fields[key], str):
                    continue  # the page's description
                return str(fields.pop(key)).strip()
    return ""
