"""The visible content of HTML: its texts in order, and its images with their captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from llama_index_gap.readers.front_matter import names_image
from llama_index_gap.readers.html import HtmlReader, words
from llama_index_gap.readers.records import ImageReference

# These tags separate words.
SEPARATING_TAGS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "button",
        "caption",
        "center",
        "dd",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "legend",
        "li",
        "main",
        "nav",
        "ol",
        "option",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "title",
        "tr",
        "ul",
        "video",
    ]
)
_VOID = words("area base br col embed hr img input link meta param source track wbr")
_PHRASES = words(
    "a abbr acronym audio b bdi bdo big blink button canvas cite code data datalist del dfn "
    "em font i ins kbd label map mark marquee meter nobr noindex object optgroup output "
    "progress q rb rp rt rtc ruby s samp search select slot small span strike strong sub "
    "sup textarea time title tt u var frame frameset applet dir menu menuitem hgroup math "
    "template noscript iframe svg head html script style picture"
)
_KNOWN_TAGS = SEPARATING_TAGS | _VOID | _PHRASES
# In a paragraph, these tags need no closing tag. In a block of HTML, every tag that separates words
# needs one somewhere in the page.
_ENDLESS = frozenset(["br", "hr", "img", "p", "wbr"])
_END_MAY_BE_ABSENT = _ENDLESS | frozenset(["li", "td", "th", "tr", "dt", "dd"])
_ENDS_ITS_LIKE = _END_MAY_BE_ABSENT - {"br", "hr", "img", "wbr"} | {"option"}
_BARE_ATTRIBUTES = words(
    "allowfullscreen async autofocus autoplay border checked compact controls defer "
    "disabled download draggable hidden ismap loop multiple muted nomodule noshade "
    "novalidate nowrap open playsinline readonly required reversed selected zoomable "
    "markdown inline block"
)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_NOT_SHOWN = words("template svg select datalist canvas object applet iframe audio")
_MEDIA = frozenset(["iframe", "object", "applet", "audio", "video", "embed", "canvas", "svg"])
_SOURCES = ("data-src", "data-lazy-src", "data-original", "data-full-src", "data-orig-file")
_SETS = ("srcset", "data-srcset", "data-lazy-srcset")
_QUOTED = re.compile(r"""['"]([^'"]+)['"]""")
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)[wx]")
_LONGEST_TARGET = 16_384  # no file name is longer, even with each byte written as %20
_LONGEST_SET = 65_536
_PROSE = re.compile(r"[ ,.;:!?)](?=[^\n]*[^\s])[^\n<>{}();=]*(?:\n|$|<)|\s*$|\n\s*\n")


@dataclass(frozen=True)
class Page:
    """The parts of a page.

    Attributes:
        text: the page as plain text, blocks separated by blank lines, without its images.
        heading: the first heading of level 1; empty if there is none.
        images: the images that it shows, in order; paths are decoded, URLs are not.
        metadata: the front matter: texts, numbers, booleans, and lists and mappings of these.
        unread: text that looks like an image but breaks Markdown's rules, unchanged.
        problems: everything else that was left out, a sentence each.
        decoration: what every such page has and the reader always leaves out, a sentence each.
        around: images outside its article, which are left out.
    """

    text: str
    heading: str = ""
    images: list[ImageReference] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    decoration: list[str] = field(default_factory=list)
    around: list[ImageReference] = field(default_factory=list)


def image_reference(
    targets: list[str], caption: str, *, by_name: str = ""
) -> ImageReference | None:
    """A reference to the first target; the others are its alternatives."""
    paths = dict.fromkeys(path for each in targets if (path := _decoded_target(each)))
    if not paths:
        return None
    first, *others = paths
    return ImageReference(first, " ".join(caption.split()), others=tuple(others), by_name=by_name)


def counted(names: Mapping[str, int], most: int = 8) -> str:
    """Names with their counts, the most frequent first."""
    shown = [
        name[:60] + (f" ×{count:,}" if count > 1 else "")
        for name, count in sorted(names.items(), key=lambda item: (-item[1], item[0]))[:most]
    ]
    return ", ".join(shown) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _decoded_target(target: str) -> str:
    target = target.strip()
    try:
        if len(target) > _LONGEST_TARGET:  # a reference may be used a thousand times
            return target
        parts = urlsplit(target)
        if not parts.scheme and not parts.netloc:
            # The part after ? or # names a version or a place in the file, never another file.
            return unquote(parts.path) or target
    except ValueError:  # such as an unclosed "[" of an IPv6 address: not a file
        pass
    return target


@dataclass
class _Figure:
    first: int  # index of its first image
    caption: str = ""


class ContentReader(HtmlReader):
    """Reads the texts and images of HTML; content that a page hides is left out.

    In Markdown (``whole=False``), prose may look like a tag: an unknown name stays text, as does an
    element with neither a closing tag nor an attribute value.

    Attributes:
        images: the images, in order.
        left_out: counts of the media that are not read, by element name.
    """

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.images: list[ImageReference] = []
        self.left_out: Counter[str] = Counter()
        self.ends_of_page: Counter[str] = Counter()
        self._whole = whole
        self._parts: list[str] = []
        self._caption: list[str] | None = None
        self._stack: list[tuple[str, bool]] = []  # open elements, and whether each hides
        self._open: Counter[str] = Counter()
        self._hidden = 0
        self._links: list[str] = []
        self._figures: list[_Figure] = []
        self._picture: list[tuple[float, str]] | None = None
        self._ends: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()
        self._in_paragraph = False

    # --- blocks of Markdown ----------------------------------------------------------------------

    def begin_block(self, ends: Counter[str], *, paragraph: bool) -> None:
        """Begin a block of Markdown.

        Args:
            ends: how many closing tags of each name it has.
            paragraph: whether it is a paragraph rather than a block of HTML.
        """
        self._ends, self._begun, self._in_paragraph = ends, Counter(), paragraph
        self._parts = []

    def end_block(self) -> str:
        """End a block and everything open in it except figures; return its text."""
        self.hiding = ""
        while self._stack and self._stack[-1][0] != "figure":
            self._pop()
        self._stack = [each for each in self._stack if each[0] == "figure"]
        self._open = Counter(name for name, _ in self._stack)
        self._hidden, self._links, self._picture = 0, [], None
        return "".join(self._parts)

    def end_page(self) -> None:
        """Close all open elements."""
        while self._stack:
            self._pop()

    # --- which tags count ------------------------------------------------------------------------

    def is_tag(self, name: str, attributes: dict[str, str], bare: set[str]) -> bool:
        """In Markdown: a known tag that has an end or an attribute value, or needs neither."""
        if self._whole:
            return True
        if name not in _KNOWN_TAGS or (
            bare and not bare & _BARE_ATTRIBUTES and bare == {*attributes}
        ):
            return False
        endless = _ENDLESS if self._in_paragraph else _END_MAY_BE_ABSENT
        has_end = self._ends[name] > 0
        if not self._in_paragraph and name in SEPARATING_TAGS:
            has_end = self.ends_of_page[name] > 0
        if has_end or name in endless or len(attributes) > len(bare):
            self._ends[name] -= 1
            self._begun[name] += 1
            return True
        return False

    def is_closing_tag(self, name: str) -> bool:
        """In Markdown: the end of an open element, or of a tag that separates words."""
        if self._whole or name in SEPARATING_TAGS:
            return True
        if self._begun[name] > 0:
            self._begun[name] -= 1
            return True
        self._ends[name] -= 1
        return False

    def hides(self, name: str, html: str, start: int) -> bool:
        """Whether the text after the tag reads like a script or style, not like prose."""
        if self._whole or not _PROSE.match(html, start):
            return True
        self._begun[name] -= 1
        return False

    # --- visible content -------------------------------------------------------------------------

    def on_break(self, name: str) -> None:
        """Take the beginning or end of an element that separates words."""
        self._take(" ")

    def on_text(self, text: str) -> None:
        """Take a text, its entities decoded."""
        if not self._hidden:
            self._take(text)

    def _take(self, text: str) -> None:
        (self._parts if self._caption is None else self._caption).append(text)

    def on_tag(self, name: str, attributes: dict[str, str]) -> None:
        """Take an opening tag."""
        if self._stack and self._stack[-1][0] == name and name in _ENDS_ITS_LIKE:
            self._pop()
        self.left_out.update([name] if name in _MEDIA and not self._hidden else [])
        if name in SEPARATING_TAGS and not self._hidden:
            self.on_break(name)
        if name not in _VOID:
            hides = self.is_hidden(name, attributes)
            self._stack.append((name, hides))
            self._open[name] += 1
            self._hidden += hides
        if self._hidden:
            return
        match name:
            case "a":
                self._links.append(attributes.get("href", ""))
            case "figure":
                self._figures.append(_Figure(len(self.images)))
            case "figcaption":
                self._caption = []
            case "picture":
                self._picture = []
            case "source" if self._picture is not None:
                self._picture += _candidates(attributes)
            case "img" | "amp-img":
                candidates = [*_candidates(attributes), *(self._picture or [])]
                candidates.sort(key=lambda each: -each[0])  # stable
                alt = attributes.get("alt", "").strip() or attributes.get("title", "")
                self.show([target for _, target in candidates], alt)
            case "video" if attributes.get("poster"):
                self.show([attributes["poster"]], attributes.get("title", ""))

    def on_closing_tag(self, name: str) -> None:
        """Take a closing tag; ``<br/>`` counts as an opening and a closing tag."""
        if name in _VOID:
            return
        if self._open[name]:
            while self._stack[-1][0] != name:
                self._pop()
            self._pop()
        if name in SEPARATING_TAGS and not self._hidden:
            self.on_break(name)

    def is_hidden(self, name: str, attributes: dict[str, str]) -> bool:
        """Whether an element is not shown."""
        return (
            name in _NOT_SHOWN
            or ("hidden" in attributes and attributes["hidden"] != "until-found")
            or _HIDDEN_STYLE.search(attributes.get("style", "")[:1_000]) is not None
        )

    def show(self, targets: list[str], caption: str, *, by_name: str = "") -> None:
        """Take an image; if it links to another image, that is the larger version."""
        linked = self._links[-1] if self._links else ""
        if linked and names_image(linked):
            targets = [linked, *targets]
        image = image_reference(targets, caption, by_name=by_name)
        if image is not None and not self._hidden:
            self.images.append(image)

    def begin_link(self, target: str) -> None:
        """Take the beginning of a link in Markdown."""
        self._links.append(target)

    def end_link(self) -> None:
        """Take the end of a link in Markdown."""
        if self._links:
            self._links.pop()

    def _pop(self) -> None:
        name, hides = self._stack.pop()
        self._open[name] -= 1
        self._hidden -= hides
        if self._hidden or hides:
            return
        match name:
            case "a":
                self.end_link()
            case "picture":
                self._picture = None
            case "figcaption" if self._caption is not None:
                caption = " ".join("".join(self._caption).split())
                self._caption = None
                if self._figures:
                    self._figures[-1].caption = caption
                elif caption:
                    self._take(caption)
            case "figure" if self._figures:
                figure = self._figures.pop()
                shown = range(figure.first, len(self.images))
                for number in shown:
                    image = self.images[number]
                    # If several images share a figure's caption, an image keeps its own caption.
                    if figure.caption and (len(shown) == 1 or not image.caption):
                        self.images[number] = replace(image, caption=figure.caption)
                if figure.caption and not shown:  # a table or code
                    self._take(f" {figure.caption} ")


def _candidates(attributes: dict[str, str]) -> list[tuple[float, str]]:
    """The files that an image may mean, each with its width or density; 0 if neither is given."""
    found: list[tuple[float, str]] = []
    for name in _SETS:
        words = attributes.get(name, "")[:_LONGEST_SET].split()
        words.reverse()
        while words:
            url, size = words.pop(), 1.0
            if not url.endswith(","):
                while words:  # its size, up to a comma
                    said, comma, after = words.pop().partition(",")
                    if known := _SIZE.fullmatch(said):
                        size = float(known[1])
                    if after:
                        words.append(after)
                    if comma:
                        break
            if url.strip(","):
                found.append((size, url.strip(",")))
    found.sort(key=lambda each: -each[0])
    plain = [attributes[name] for name in (*_SOURCES, "src") if attributes.get(name)]
    bound = attributes.get(":src") or attributes.get("v-bind:src", "")  # Vue's attribute
    plain += _QUOTED.findall(bound[:1_000])
    if len(plain) + len(found) > 1:  # a data URL is a placeholder until the image is loaded
        plain = [target for target in plain if not target.startswith("data:")] or plain
    return [*found, *((0.0, target) for target in plain)]
