"""Markdown pages: front matter, plain text, and the images they show."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field
from datetime import date, time
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.records import ImageReference

_FRONT_MATTER = re.compile(
    r"\A(?P<fence>---|\+\+\+)[ \t]*\r?\n(?P<body>.*?)^(?P=fence)[ \t]*(\r?\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
_WIKI_IMAGE = re.compile(r"!\[\[(?P<path>[^\]|]+)(?:\|(?P<alt>[^\]]*))?\]\]")  # as Obsidian writes
_LOOKS_LIKE_AN_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
# Words on both sides of these are two words.
_SEPARATING_TAGS = frozenset(
    {
        *("address", "article", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption"),
        *("figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "section"),
        *("table", "td", "th", "tr", "ul"),
    }
)


@dataclass(frozen=True)
class Page:
    """A Markdown page, taken apart.

    Attributes:
        text: the page as plain text, blocks separated by blank lines, without its images.
        heading: the first heading of level 1; empty if there is none.
        images: the images that it shows, in order; a target is decoded, but for a URL.
        metadata: the front matter: texts, numbers, booleans, and lists and mappings of these.
        unread: what looks like an image but is none by Markdown's rules, as it stands there.
    """

    text: str
    heading: str = ""
    images: list[ImageReference] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def parse_markdown(source: str) -> Page:
    """Take a Markdown page apart.

    Args:
        source: the page (CommonMark with tables, and images as Obsidian writes them), with or
            without front matter in YAML or TOML.

    Raises:
        InvalidValueError: the front matter cannot be read, or holds what is no plain value.
    """
    metadata, body = _front_matter(source)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    blocks: list[str] = []
    images: list[ImageReference] = []
    unread: list[str] = []
    heading = ""
    for before, token in zip([None, *tokens], tokens, strict=False):
        text = _block_text(token, images)
        if text:
            blocks.append(text)
        if token.type == "inline":
            unread += _LOOKS_LIKE_AN_IMAGE.findall(text)
            if not heading and before is not None and before.tag == "h1":
                heading = text
    return Page("\n\n".join(blocks), heading, images, metadata, unread)


def _front_matter(source: str) -> tuple[dict[str, Any], str]:
    found = _FRONT_MATTER.match(source)
    if found is None:
        return {}, source
    language = "YAML" if found["fence"] == "---" else "TOML"
    try:
        if language == "YAML":
            fields = yaml.load(found["body"], _PlainLoader)  # noqa: S506 (a SafeLoader, and stricter)
        else:
            fields = tomllib.loads(found["body"].replace("\r\n", "\n"))
    # ValueError: TOML, and in YAML a date such as 2024-02-31
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidValueError(
            f"its front matter is not {language} that is read; {line}"
        ) from error
    if isinstance(fields, str):
        return {}, source  # no front matter, but prose between two rules
    if not isinstance(fields, dict | None):
        raise InvalidValueError("its front matter is not a mapping of names to values")
    plain = {str(name): _plain(str(name), value) for name, value in (fields or {}).items()}
    return plain, source[found.end() :]


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few nested ones unfold into gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def _plain(name: str, value: Any) -> Any:
    """Dates as ISO text; lists and mappings in depth; whatever JSON cannot say is an error."""
    match value:
        case date() | time():
            return value.isoformat()
        case list():
            return [_plain(name, item) for item in value]
        case dict():
            return {str(key): _plain(name, item) for key, item in value.items()}
        case float() if not math.isfinite(value):
            raise InvalidValueError(f"its front matter says {name}: {value}, which is no number")
        case None | bool() | int() | float() | str():
            return value
    raise InvalidValueError(
        f"its front matter holds a {type(value).__name__} as {name}; texts, numbers, dates, lists "
        "and mappings are read"
    )


def _block_text(token: Token, images: list[ImageReference]) -> str:
    match token.type:
        case "fence" | "code_block":
            return token.content.strip()
        case "html_block":
            return " ".join(_Block(images).text(token).split())
        case "inline":
            return re.sub(r"[ \t]+", " ", _Block(images).text(token)).strip()
    return ""


class _Block(HTMLParser):
    """The text and images of one block, in Markdown, HTML or both; no scripts, no styles."""

    def __init__(self, images: list[ImageReference]) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._images = images
        self._hidden = 0

    def text(self, token: Token) -> str:
        for child in [token] if token.type == "html_block" else token.children or []:
            match child.type:
                case "text":
                    self.handle_data(_WIKI_IMAGE.sub(self._take_wiki_image, child.content))
                case "code_inline":
                    self.handle_data(child.content)
                case "softbreak" | "hardbreak":
                    self.handle_data("\n")
                case "html_inline" | "html_block":
                    self.feed(child.content)
                case "image":
                    alt = _Block(self._images).text(child)
                    self._add(str(child.attrs.get("src", "")), alt)
        self.close()
        return "".join(self._parts)

    def _take_wiki_image(self, found: re.Match[str]) -> str:
        alt = found["alt"] or ""
        is_width = re.fullmatch(r"\d+(x\d+)?", alt) is not None
        self._add(found["path"], "" if is_width else alt)
        return ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            named = dict(attrs)
            self._add(named.get("src") or "", named.get("alt") or "")
        elif tag in {"script", "style"}:
            self._hidden += 1
        elif tag in _SEPARATING_TAGS:
            self._parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"script", "style"} and self._hidden:
            self._hidden -= 1
        elif tag in _SEPARATING_TAGS:
            self._parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(data)

    def _add(self, target: str, alt: str) -> None:
        target = target.strip()
        try:
            parts = urlsplit(target)
            if not parts.scheme and not parts.netloc:
                # What follows ? or # names a version or a part, never another file.
                target = unquote(parts.path) or target
        except ValueError:  # such as an unclosed "[" of an IPv6 address: no file
            pass
        if target:
            self._images.append(ImageReference(target, " ".join(alt.split())))
