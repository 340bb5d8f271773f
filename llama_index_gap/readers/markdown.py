"""Markdown pages: front matter, plain text, and the images they show."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_inline import StateInline, html_inline
from markdown_it.token import Token

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.html import HtmlReader
from llama_index_gap.readers.records import TOO_DEEP, ImageReference
from llama_index_gap.text import excerpt

_FRONT_MATTER = re.compile(
    r"\A(?P<fence>---|\+\+\+)[ \t]*\r?\n(?P<body>.*?)^(?P=fence)[ \t]*(\r?\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
# Both go on to where they could have ended, so that no part is looked at again and again.
_WIKI_IMAGE = re.compile(r"!\[\[(?=[^\]|])(?P<inside>[^\]]*+)(?P<end>\]\])?")  # as Obsidian writes
_LOOKS_LIKE_AN_IMAGE = re.compile(r"!\[[^\]]*+(?:\](?:\([^)]*+(?P<end>\))?)?)?")
# What the parser makes an object of, or several: they take far more memory than their text.
_MARK = re.compile(r"[\n*_`\[\]<>&|\\!+-]|\d[.)][ \t]")
_MOST_MARKS = 1_000_000
_MOST_TOKENS = "most_tokens"
_LONGEST_FRONT_MATTER = 65_536  # an index takes no more metadata
_TOO_LARGE = 10**100
_LONGEST_TARGET = 16_384  # no file's name is longer, each byte written as %20
_LONGEST_EXCERPT = 200
_LONG_TOML_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){50}""")
_UNREADABLE = (
    *(yaml.YAMLError, ValueError, RecursionError),
    *(ArithmeticError, LookupError, AttributeError, TypeError),
)
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
    marks = sum(1 for _ in _MARK.finditer(body))
    _check_size(marks, _MOST_MARKS)
    parser = MarkdownIt("commonmark").enable("table")
    parser.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    parser.inline.ruler.at("html_inline", _html_inline)
    blocks: list[str] = []
    images: list[ImageReference] = []
    unread: list[str] = []
    heading = tag = ""
    references: dict[str, Any] = {_MOST_TOKENS: 8 * marks + 100_000}
    parser.core.ruler.disable("inline")  # a whole page's at once takes much more memory
    tokens = parser.parse(body, references)
    parser.core.ruler.enable("inline")
    for token in tokens:
        if token.type == "inline":
            (token,) = parser.parseInline(token.content, references)  # noqa: PLW2901
        text = _block_text(token, images)
        if text:
            blocks.append(text)
        if token.type == "inline":
            looks = _LOOKS_LIKE_AN_IMAGE.finditer(text)
            unread += [excerpt(look[0], _LONGEST_EXCERPT) for look in looks if look["end"]]
            if not heading and tag == "h1":
                heading = text
        tag = token.tag
    return Page("\n\n".join(blocks), heading, images, metadata, unread)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise InvalidValueError(
            f"has too many line ends, marks of Markdown and table cells ({size:,}; at most "
            f"{most:,} are read); split it"
        )


def _front_matter(source: str) -> tuple[dict[str, Any], str]:
    found = _FRONT_MATTER.match(source)
    if found is None:
        return {}, source
    language = "YAML" if found["fence"] == "---" else "TOML"
    if len(found["body"]) > _LONGEST_FRONT_MATTER:
        raise InvalidValueError(
            f"its front matter has {len(found['body']):,} characters; at most "
            f"{_LONGEST_FRONT_MATTER:,} are read"
        )
    if language == "TOML" and _LONG_TOML_KEY.search(found["body"]):
        raise InvalidValueError(TOO_DEEP)
    try:
        if language == "YAML":
            fields = yaml.load(found["body"], _PlainLoader)  # noqa: S506 (a SafeLoader, and stricter)
        else:
            fields = tomllib.loads(found["body"].replace("\r\n", "\n"))
    # ValueError: TOML, and in YAML a date such as 2024-02-31. The others: PyYAML, of a value that
    # is not what its tag says (!!bool x), or of a number beyond all (1:1:1:….5).
    except _UNREADABLE as error:
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
        case int() if abs(value) >= _TOO_LARGE:
            raise InvalidValueError(f"its front matter says {name}: a number of over 100 digits")
        case None | bool() | int() | float() | str():
            return value
    raise InvalidValueError(
        f"its front matter holds a {type(value).__name__} as {name}; texts, numbers, dates, lists "
        "and mappings are read"
    )


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The parser's own rule; a row of one "|" gets as many cells as the table has columns."""
    found = table(state, start, end, silent)
    _check_size(len(state.tokens), state.env[_MOST_TOKENS])
    return found


def _html_inline(state: StateInline, silent: bool) -> bool:
    """The parser's own rule, but for comments, whose ``<!-- --->`` it looks for again and again."""
    start = state.pos
    if not state.src.startswith("<!--", start):
        return html_inline(state, silent)
    if state.html_terminator_last("-->") < start + 2:
        return False
    end = state.src.index("-->", start + 2) + 3
    if not silent:
        state.push("html_inline", "", 0).content = state.src[start:end]
    state.pos = end
    return True


def _block_text(token: Token, images: list[ImageReference]) -> str:
    match token.type:
        case "fence" | "code_block":
            return token.content.strip()
        case "html_block":
            return " ".join(_Block(images).text(token).split())
        case "inline":
            return re.sub(r"[ \t]+", " ", _Block(images).text(token)).strip()
    return ""


class _Block(HtmlReader):
    """The text and images of one block, in Markdown, HTML or both; no scripts, no styles."""

    def __init__(self, images: list[ImageReference]) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._images = images

    def text(self, token: Token) -> str:
        for child in [token] if token.type == "html_block" else token.children or []:
            match child.type:
                case "text":
                    self.add_text(_WIKI_IMAGE.sub(self._take_wiki_image, child.content))
                case "code_inline":
                    self.add_text(child.content)
                case "softbreak" | "hardbreak":
                    self.add_text("\n")
                case "html_inline" | "html_block":
                    self.feed(child.content)
                case "image":
                    alt = _Block(self._images).text(child)
                    self._add(str(child.attrs.get("src", "")), alt)
        return "".join(self._parts)

    def _take_wiki_image(self, found: re.Match[str]) -> str:
        if not found["end"]:
            return found[0]
        path, _, alt = found["inside"].partition("|")
        is_width = re.fullmatch(r"\d+(x\d+)?", alt) is not None
        self._add(path, "" if is_width else alt)
        return ""

    def on_text(self, text: str) -> None:
        self._parts.append(text)

    def on_tag(self, name: str, attributes: dict[str, str]) -> None:
        if name == "img":
            self._add(attributes.get("src", ""), attributes.get("alt", ""))
        elif name in _SEPARATING_TAGS:
            self._parts.append(" ")

    def on_closing_tag(self, name: str) -> None:
        if name in _SEPARATING_TAGS:
            self._parts.append(" ")

    def _add(self, target: str, alt: str) -> None:
        target = target.strip()
        try:
            if len(target) > _LONGEST_TARGET:  # of a reference, it may come a thousand times
                raise ValueError
            parts = urlsplit(target)
            if not parts.scheme and not parts.netloc:
                # What follows ? or # names a version or a part, never another file.
                target = unquote(parts.path) or target
        except ValueError:  # also of an unclosed "[" of an IPv6 address: no file
            pass
        if target:
            self._images.append(ImageReference(target, " ".join(alt.split())))
