"""The contents of one table cell: lists of images and captions, and HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from llama_index_gap.readers.html import HtmlReader

_IMAGE_SUFFIX = re.compile(
    r"\.(?:avif|bmp|gif|heic|heif|ico|jfif|jpe?g|jp2|png|svg|tiff?|webp)(?:[?#].*)?$", re.I | re.S
)
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*+)'|"((?:[^"\\]|\\.)*+)\"""", re.S)
_BLOCK_TAGS = (
    *("article", "aside", "blockquote", "center", "div", "dl", "figure", "footer", "header"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "main", "ol", "p", "pre", "section", "table", "ul"),
)
_LINE_TAGS = ("br", "dd", "dt", "figcaption", "hr", "li", "td", "th", "tr")
_OTHER_TAGS = (
    *("a", "abbr", "b", "big", "cite", "del", "em", "font", "i", "img", "ins", "mark", "s"),
    *("small", "span", "strike", "strong", "style", "script", "sub", "sup", "tbody", "tfoot"),
    *("thead", "tt", "u"),
)
_KNOWN_TAGS = (*_BLOCK_TAGS, *_LINE_TAGS, *_OTHER_TAGS)
_HTML = re.compile(rf"<(?:br|hr|img)\b[^<>]*>|</(?:{'|'.join(_KNOWN_TAGS)})\s*>", re.I)


def is_image_path(text: str) -> bool:
    """Whether a text ends with the suffix of an image file, or is a URL."""
    text = text.strip()
    if text[:1] == "[" and text[-1:] == "]":
        return any(map(is_image_path, _in_brackets(text)))
    return bool(_IMAGE_SUFFIX.search(text[-500:])) or "://" in text[:20]


def image_list(cell: str) -> list[Any]:
    """The images of a cell: one path or several.

    Several paths are separated by ``|`` or written as a JSON or Python list. ``;``, ``,`` and line
    ends separate them only if every part ends with an image suffix, since a name may hold a comma.
    """
    cell = cell.strip()
    if cell[:1] == "[" and cell[-1:] == "]":
        return _in_brackets(cell)
    if cell[:1] == "{" and cell[-1:] == "}" and isinstance(found := _json(cell), dict):
        return [found]
    if "|" in cell:
        return _split(cell, "|")
    for separator in (";", ", ", ",", "\n"):  # ", " before ",": a name may hold a comma
        parts = _split(cell, separator)
        if len(parts) > 1 and (
            all(_IMAGE_SUFFIX.search(part[-500:]) for part in parts)
            or all("://" in part[:20] for part in parts)
        ):
            return parts
    return [cell] if cell else []


def caption_list(cell: str, images: int) -> list[str]:
    """The captions of a cell: split into as many as there are images, if a separator allows it."""
    cell = cell.strip()
    if not cell:
        return []
    if images == 1 and not _in_brackets(cell):
        return [cell]
    if cell[:1] == "[" and cell[-1:] == "]":
        return [str(each) for each in _in_brackets(cell)]
    found = [part.strip() for part in cell.split("|")]
    for separator in (";", ",", "\n"):
        if len(found) != images and cell.count(separator) == images - 1:
            return [part.strip() for part in cell.split(separator)]
    return found


def _split(cell: str, separator: str) -> list[str]:
    return [part.strip() for part in cell.split(separator) if part.strip()]


def _json(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return None


def _in_brackets(cell: str) -> list[Any]:
    """The items of a list as JSON, Python or NumPy write it, or without quotes; else none."""
    if not (cell[:1] == "[" and cell[-1:] == "]"):
        return []
    found = _json(cell)
    if isinstance(found, list):
        return found
    inner = cell[1:-1].strip()
    if inner[:1] in {"'", '"'}:
        return [first or second for first, second in _QUOTED.findall(inner)]
    return [] if "[" in inner else _split(inner, ",")


def without_html(text: str) -> tuple[str, list[dict[str, str]]]:
    """Remove the HTML from a text and return its images; other texts stay unchanged.

    A closing tag, ``<br>``, ``<hr>`` or ``<img>`` marks a text as HTML; ``if a<b`` does not.

    Args:
        text: of any length; it is read once.
    """
    if not _HTML.search(text):
        return text, []
    reader = _Shown()
    reader.feed(text.replace("\\n", "\n"))  # WooCommerce writes line ends like this
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip(), reader.images


class _Shown(HtmlReader):
    """The visible part of HTML: its words, in lines and paragraphs, and its images."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.images: list[dict[str, str]] = []

    def on_text(self, text: str) -> None:
        # A line end in the HTML source is not a line end in the text.
        self.parts.append(re.sub(r"\s", " ", text))

    def on_tag(self, name: str, attributes: dict[str, str]) -> None:
        if name == "img" and attributes.get("src", "").strip():
            self.images.append({"path": attributes["src"], "caption": attributes.get("alt", "")})
        else:
            self._break(name)

    def on_closing_tag(self, name: str) -> None:
        if name in _BLOCK_TAGS:
            self._break(name)

    def is_tag(self, name: str, attributes: dict[str, str], bare: set[str]) -> bool:
        return name in _KNOWN_TAGS

    def is_closing_tag(self, name: str) -> bool:
        return name in _KNOWN_TAGS

    def _break(self, name: str) -> None:
        self.parts.append("\n\n" if name in _BLOCK_TAGS else "\n" if name in _LINE_TAGS else "")


def joined(parts: Sequence[str]) -> str:
    """Join the texts of several columns, each once: a short description may repeat the long one."""
    return "\n\n".join(dict.fromkeys(part.strip() for part in parts if part.strip()))
