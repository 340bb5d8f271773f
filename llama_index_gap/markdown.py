"""Markdown pages: front matter, plain text, and the pictures they show."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(\r?\n|\Z)", re.DOTALL | re.MULTILINE)


class MarkdownError(ValueError):
    """A page whose front matter cannot be read."""


@dataclass(frozen=True)
class PageImage:
    """A picture that a page shows.

    Attributes:
        path: the link's target, decoded; a URL stays as it is.
        alt: its alternative text.
    """

    path: str
    alt: str


@dataclass(frozen=True)
class Page:
    """A Markdown page, taken apart.

    Attributes:
        text: the page as plain text, blocks separated by blank lines, without its pictures.
        heading: the first heading of level 1; empty if there is none.
        images: the pictures, in order.
        metadata: the front matter.
    """

    text: str
    heading: str = ""
    images: list[PageImage] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def parse_markdown(source: str) -> Page:
    """Take a Markdown page apart.

    Args:
        source: the page (CommonMark with tables), with or without YAML front matter.

    Raises:
        MarkdownError: the front matter is not YAML, or not a mapping.
    """
    metadata, body = _front_matter(source)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    blocks: list[str] = []
    images: list[PageImage] = []
    heading = ""
    for index, token in enumerate(tokens):
        text = _block_text(token, images)
        if text:
            blocks.append(text)
        if not heading and token.type == "inline" and tokens[index - 1].tag == "h1":
            heading = text
    return Page("\n\n".join(blocks), heading, images, metadata)


def _front_matter(source: str) -> tuple[dict[str, Any], str]:
    found = _FRONT_MATTER.match(source)
    if found is None:
        return {}, source
    try:
        fields = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-02-31
        line = str(error).splitlines()[0]
        raise MarkdownError(f"its front matter is not YAML; {line}") from error
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise MarkdownError("its front matter is not a mapping of names to values")
    return {str(name): _plain(value) for name, value in fields.items()}, source[found.end() :]


def _plain(value: Any) -> Any:
    """YAML's dates as ISO text: vector stores and prompts take no date objects."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _block_text(token: Token, images: list[PageImage]) -> str:
    if token.type in {"fence", "code_block"}:
        return token.content.strip()
    if token.type == "html_block":
        return _html_text(token.content, images)
    if token.type != "inline":
        return ""
    return re.sub(r"[ \t]+", " ", "".join(_inline_text(token.children or [], images))).strip()


def _inline_text(children: list[Token], images: list[PageImage]) -> list[str]:
    parts: list[str] = []
    for child in children:
        match child.type:
            case "text" | "code_inline":
                parts.append(child.content)
            case "softbreak" | "hardbreak":
                parts.append("\n")
            case "html_inline":
                parts.append(_html_text(child.content, images))
            case "image":
                alt = "".join(_inline_text(child.children or [], images))
                _add(images, str(child.attrs.get("src", "")), alt)
    return parts


def _html_text(source: str, images: list[PageImage]) -> str:
    parser = _HtmlText(images)
    parser.feed(source)
    parser.close()
    return " ".join("".join(parser.parts).split())


class _HtmlText(HTMLParser):
    """Text and pictures of a piece of HTML; scripts and styles are neither."""

    def __init__(self, images: list[PageImage]) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._images = images
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect an image, or enter what is not shown."""
        if tag == "img":
            named = dict(attrs)
            _add(self._images, named.get("src") or "", named.get("alt") or "")
        elif tag in {"script", "style"}:
            self._hidden += 1

    def handle_endtag(self, tag: str) -> None:
        """Leave what is not shown."""
        if tag in {"script", "style"} and self._hidden:
            self._hidden -= 1

    def handle_data(self, data: str) -> None:
        """Collect text."""
        if not self._hidden:
            self.parts.append(data)


def _add(images: list[PageImage], target: str, alt: str) -> None:
    target = target.strip()
    if not target:
        return
    try:
        parts = urlsplit(target)
        is_file = not parts.scheme and not parts.netloc
    except ValueError:  # such as an unclosed "[" of an IPv6 address
        is_file = False
    # What follows ? or # names a version or a part, never another file.
    path = unquote(parts.path) if is_file else target
    images.append(PageImage(path, " ".join(alt.split())))
