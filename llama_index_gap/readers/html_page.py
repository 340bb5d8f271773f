"""Reads HTML files as pages: the article, without the parts around it."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from dataclasses import replace
from typing import Any
from urllib.parse import urljoin

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.content import (
    SEPARATING_TAGS,
    ContentReader,
    Page,
    counted,
    image_reference,
)
from llama_index_gap.readers.front_matter import split_front_matter, take_images
from llama_index_gap.readers.html import words
from llama_index_gap.readers.records import ImageReference
from llama_index_gap.readers.shortcodes import fill_in

_DECLARED = re.compile(
    rb"""<meta\s[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})"""
    rb"""|^\s*<\?xml\s[^>]{0,100}?encoding\s*=\s*["']([\w.:-]{1,40})""",
    re.IGNORECASE,
)
_MOST_TAGS = 1_000_000  # an open element takes far more memory than its tag's text
_LONGEST_META = 4_000
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# As browsers do: many pages that claim Latin-1 have the curly quotes of Windows.
_AS_WINDOWS = frozenset(["iso8859-1", "ascii", "iso8859-9"])
_ENCODINGS = words(
    "utf-8 utf-16-le utf-16-be utf-16 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 "
    "cp1257 cp1258 cp866 cp874 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 "
    "iso8859-8 iso8859-10 iso8859-13 iso8859-14 iso8859-15 iso8859-16 koi8-r koi8-u mac- "
    "roman mac-cyrillic gb2312 gbk gb18030 big5 big5hkscs euc_jp shift_jis cp932 iso2022_jp "
    "euc_kr cp949"
)
_AROUND = frozenset(["nav", "footer", "script", "style", "noscript", "dialog", "head", "button"])
_IN_HEAD = words("title meta link base script style noscript template head html")
_ROLES = frozenset(["navigation", "banner", "contentinfo", "search", "complementary", "dialog"])
_AUTHOR = frozenset(["author", "article:author", "dc.creator", "byl"])
_DATE = ("article:published_time", "date", "dc.date", "datepublished", "dcterms.created", "pubdate")
_TEXTS = {"description": "description", "og:description": "description", "keywords": "keywords"}
_DECORATION = frozenset(["headerlink", "anchor-link", "linenos", "lineno", "sr-only", "hash-link"])


def decode_html(data: bytes) -> tuple[str, str]:
    """Decode an HTML file as browsers do.

    Returns:
        The text, and a problem with its encoding; empty if there is none.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    declared = None if encoding else _DECLARED.search(data[:4096])
    said = (declared[1] or declared[2]).decode("ascii", "replace") if declared else ""
    if said:
        try:
            encoding = codecs.lookup(said).name
        except LookupError:
            encoding = ""
        encoding = "cp1252" if encoding in _AS_WINDOWS else encoding
        if encoding.startswith("utf-16"):  # the declaration was readable, so it is not UTF-16
            encoding = "utf-8"
    problem = ""
    if said and encoding not in _ENCODINGS:
        problem, encoding = f"claims to be in {said[:40]!r}, which is not read; read as UTF-8", ""
    for tried in dict.fromkeys([encoding or "utf-8", "utf-8", "cp1252"]):
        try:
            text = data.decode(tried)
        except UnicodeDecodeError:
            continue
        if encoding and tried != encoding:
            problem = f"is not {said or encoding} as it claims; read as {tried}"
        break
    else:
        text = data.decode(encoding or "utf-8", "replace")
        problem = f"is not {said or 'UTF-8'}; {text.count(chr(0xFFFD)):,} characters are lost"
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), problem


def parse_html(source: str) -> Page:
    """Parse an HTML page.

    Text and images come from its ``<main>``, else from its ``<article>``, else from the whole page
    without navigation, footers and asides. Hidden elements, scripts and styles are left out.

    Args:
        source: the page; as in Jekyll, it may begin with front matter.

    Raises:
        InvalidValueError: it has too many tags, or its front matter cannot be read.
    """
    if (tags := source.count("<")) > _MOST_TAGS:
        raise InvalidValueError(
            f"has too many tags ({tags:,}; at most {_MOST_TAGS:,} are read); split it"
        )
    metadata, body = split_front_matter(source)
    left_out: Counter[str] = Counter()
    if body is not source:  # with front matter, it is a generator's source and may hold shortcodes
        filled = fill_in(body, {f"page.{key}": value for key, value in metadata.items()})
        body = re.sub(
            f"{filled.mark}(\\d+){filled.mark}",
            lambda f: _as_html(filled.inserted[int(f[1])].images),
            filled.text,
        )
        left_out = filled.left_out
    metadata, named = take_images(metadata)
    reader = _HtmlPage()
    reader.feed(body)
    return reader.page({**metadata}, named, left_out)


def _as_html(images: tuple[ImageReference, ...]) -> str:
    def quoted(text: str) -> str:
        return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")

    return "".join(f'<img src="{quoted(i.path)}" alt="{quoted(i.caption)}">' for i in images)


class _HtmlPage(ContentReader):
    """Reads the texts of a page block by block, and the region of each."""

    def __init__(self) -> None:
        super().__init__(whole=True)
        self._blocks: list[tuple[str, str]] = []  # region ("main", "article" or "") and text
        self._places: list[str] = []  # the region of each image
        self._around: list[ImageReference] = []  # images outside the article
        self._roles: list[str] = []  # the region of each open element
        self._role = ""
        self._regions: Counter[str] = Counter()
        self._title: list[str] | None = None
        self._titles: list[str] = []
        self._heading = ""
        self._meta: dict[str, str] = {}
        self._base = ""
        self._problems: list[str] = []

    def page(
        self, metadata: dict[str, Any], named: list[ImageReference], left_out: Counter[str]
    ) -> Page:
        """The page, after everything was read."""
        unclosed = self.hiding or next((name for name, hides in self._stack if hides), "")
        self._end_block(name="")
        self.end_page()
        self._end_block(name="")
        problems = self._problems
        if unclosed:
            problems.append(f"its <{unclosed}> does not end; the text after it is not read")
        region = next(
            (r for r in ("main", "article") if any(where == r and t for where, t in self._blocks)),
            "",
        )
        if region == "article" and self._mostly_outside(region):
            region = ""
        texts = [text for where, text in self._blocks if text and where.startswith(region)]
        images = [
            image
            for image, where in zip(self.images, self._places, strict=True)
            if where.startswith(region)
        ]
        around = [
            *self._around,
            *(
                i
                for i, where in zip(self.images, self._places, strict=True)
                if not where.startswith(region)
            ),
        ]
        decoration = []
        if around:
            decoration.append(f"images around its article are left out; {len(around):,} of them")
        if self.left_out:
            problems.append(f"embedded media are left out; {counted(self.left_out)}")
        if left_out:
            problems.append(f"shortcodes and tags are left out; {counted(left_out)}")
        cover = image_reference([self._meta.get("image", "")], self._meta.get("image:alt", ""))
        about = {
            name: self._meta[name]
            for name in ("description", "keywords", "author", "date")
            if self._meta.get(name)
        }
        title = self._titles[0] if self._titles else ""
        if title and "title" not in metadata:
            about = {"title": title, **about}
        images = [*named, *images]
        if cover and cover.path not in {image.path for image in images}:
            images.append(replace(cover, optional=True))
        if self._base:
            images = [self._from_base(image) for image in images]
            around = [self._from_base(image) for image in around]
        fields = {**about, **metadata}
        return Page(
            "\n\n".join(texts), self._heading, images, fields, [], problems, decoration, around
        )

    def _mostly_outside(self, region: str) -> bool:
        """Whether the articles are only teasers or quotations: most of the text is outside them."""
        inside = sum(len(text) for where, text in self._blocks if where == region)
        return inside * 2 < sum(len(text) for _, text in self._blocks)

    def _from_base(self, image: ImageReference) -> ImageReference:
        paths = []
        for path in (image.path, *image.others):
            try:
                paths += [urljoin(self._base, path), path]
            except ValueError:  # not a URL
                paths.append(path)
        first, *others = dict.fromkeys(paths)
        return replace(image, path=first, others=tuple(others))

    # --- parts of a page -------------------------------------------------------------------------

    def on_tag(self, name: str, attributes: dict[str, str]) -> None:
        """Take an opening tag."""
        if self._open["head"] and name not in _IN_HEAD:  # any other tag ends the head
            while self._open["head"]:
                self._pop()
        self._role = attributes.get("role", "").lower()
        shown = len(self.images)
        super().on_tag(name, attributes)
        match name:
            case "title" if not self._titles and not self._open["svg"]:
                self._title = []
            case "meta":
                self._take_meta(attributes)
            case "base" if not self._base:
                self._base = attributes.get("href", "").strip()[:2_000]
            case "img" if self._hidden and not self._open["noscript"]:
                hidden = image_reference([attributes.get("src", "")], "")
                self._around += [hidden] if hidden else []
        self._places += [self._region()] * (len(self.images) - shown)
        if len(self._roles) < len(self._stack):
            is_main = name == "main" or self._role == "main"
            region = "main" if is_main else "article" if name == "article" else ""
            self._roles.append(region)
            self._regions[region] += 1

    def _pop(self) -> None:
        if len(self._roles) == len(self._stack):
            self._regions[self._roles.pop()] -= 1
        super()._pop()

    def _region(self) -> str:
        return next((region for region in ("main", "article") if self._regions[region] > 0), "")

    def _take_meta(self, attributes: dict[str, str]) -> None:
        name = (attributes.get("name") or attributes.get("property") or "").strip().lower()
        content = " ".join(attributes.get("content", "").split())
        name = name or attributes.get("itemprop", "").lower()
        if len(content) > _LONGEST_META and name in {*_AUTHOR, *_DATE, *_TEXTS}:
            self._problems.append(f"its {name} has {len(content):,} characters; it is left out")
            return
        if name in _AUTHOR and "://" not in content:
            self._meta.setdefault("author", content)
        elif name in _DATE:
            self._meta.setdefault("date", content)
        elif name in _TEXTS:
            self._meta.setdefault(_TEXTS[name], content)
        elif name in {"og:image", "twitter:image", "og:image:alt", "twitter:image:alt"}:
            self._meta.setdefault(name.partition(":")[2], content)

    def is_hidden(self, name: str, attributes: dict[str, str]) -> bool:
        """Whether an element is hidden, or lies outside the article."""
        return (
            name in _AROUND
            or (name == "aside" and not self._region())
            or self._role in _ROLES
            or not _DECORATION.isdisjoint(attributes.get("class", "")[:1_000].lower().split())
            or super().is_hidden(name, attributes)
        )

    def on_text(self, text: str) -> None:
        """Take a text, its entities decoded."""
        if self._title is not None:
            self._title.append(text)
        else:
            super().on_text(text if not self._open["pre"] else text.replace("\n", "\v"))

    def on_break(self, name: str) -> None:
        """End a line, a cell or a block."""
        if name == "br":
            self._take("\v")
        elif name in {"td", "th"} or self._caption is not None:
            self._take(" ")
        else:
            self._end_block(name="")

    def on_closing_tag(self, name: str) -> None:
        """Take a closing tag."""
        if name == "title" and self._title is not None:
            self._titles.append(" ".join("".join(self._title).split()))
            self._title = None
        ends_block = name in SEPARATING_TAGS - {"td", "th", "br"}
        if ends_block and not self._hidden and self._caption is None:
            self._end_block(name)
        super().on_closing_tag(name)

    def _end_block(self, name: str) -> None:
        pre = self._open["pre"] > 0
        lines = "".join(self._parts).strip("\v").split("\v")
        text = "\n".join(line.rstrip() if pre else " ".join(line.split()) for line in lines)
        self._parts = []
        if text.strip():
            self._blocks.append((self._region(), text.strip("\n")))
            if name == "h1" and not self._heading:
                self._heading = " ".join(text.split())
