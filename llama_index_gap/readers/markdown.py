"""Reads Markdown pages: front matter, plain text, and images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, html_block, reference, table
from markdown_it.rules_inline import StateInline, html_inline
from markdown_it.token import Token

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.content import ContentReader, Page, counted
from llama_index_gap.readers.front_matter import names_image, split_front_matter, take_images
from llama_index_gap.readers.mdx import as_markdown, looks_like_mdx
from llama_index_gap.readers.shortcodes import Filled, fill_in
from llama_index_gap.text import excerpt

# Both patterns consume the text up to their possible end, so that no part is scanned repeatedly.
_WIKI = re.compile(r"!\[\[(?=[^\]|])(?P<inside>[^\]\n]*+)\]\]")  # Obsidian's syntax
_LOOKS_LIKE_AN_IMAGE = re.compile(r"!\[[^\]]*+(?:\](?:\([^)]*+(?P<end>\))?)?)?")
_WIDTH = re.compile(r"\d+(?:x\d+)?")
# The parser makes one or more objects for each of these; they take far more memory than the text.
_MARK = re.compile(r"[\n*_`\[\]<>&|\\!+-]|\d[.)][ \t]")
_MOST_MARKS = 1_000_000
_MOST_TOKENS = "most_tokens"
_TOO_DEEP = "too_deep"
_DEEPEST = 100  # a list takes two levels, a blockquote one
_LONGEST_EXCERPT = 200
_CLOSING_NAMES = re.compile(r"</\s*+([a-zA-Z][\w-]*+)")
_FOOTNOTE = re.compile(r"\[\^[^\]\n]+\]:")
# The beginning and end of HTML blocks that a blank line does not close.
_ENDLESS_HTML = (
    (re.compile(r"<(script|style|pre|textarea)(?=[\s>]|$)", re.I), ""),
    (re.compile(r"<!--"), "-->"),
    (re.compile(r"<\?"), "?>"),
    (re.compile(r"<!\[CDATA\["), "]]>"),
    (re.compile(r"<![A-Za-z]"), ">"),
)
_HIDING = ("script", "style")
_NO_DECLARATION = re.compile(r"<!(?!doctype\b)[A-Za-z]", re.I)
_PROSE_AFTER = re.compile(r"<(?:script|style)>[ ,.;:!?)]+[^\n<>{}();=]*$", re.I)


def parse_markdown(
    source: str, *, mdx: bool = False, variables: Mapping[str, Any] | None = None
) -> Page:
    """Parse a Markdown page.

    Args:
        source: the page (CommonMark with tables and Obsidian's image links), with or without front
            matter in YAML, TOML or JSON. Shortcodes of Hugo, tags of Jekyll and captions of
            WordPress are read if they show an image, and counted as left out otherwise.
        mdx: whether it is MDX: imports and components are removed.
        variables: values that Liquid expressions may name, such as ``site.img_path``.

    Raises:
        InvalidValueError: the page is too large, or its front matter cannot be read or holds a
            value that is not plain.
    """
    metadata, body = split_front_matter(source.replace("\r\n", "\n"))
    marks = sum(1 for _ in _MARK.finditer(body))
    _check_size(marks, _MOST_MARKS)
    own = {f"page.{name}": value for name, value in metadata.items()}
    metadata, images = take_images(metadata)
    is_mdx = mdx or looks_like_mdx(body)
    filled = as_markdown(body) if is_mdx else fill_in(body, {**(variables or {}), **own})
    parser = MarkdownIt("commonmark").enable("table").disable("text_join")
    parser.block.ruler.before("table", "too_deep", _too_deep)
    parser.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    parser.block.ruler.at("reference", _reference)
    parser.block.ruler.at(
        "html_block", _html_block, {"alt": ["paragraph", "reference", "blockquote"]}
    )
    parser.inline.ruler.at("html_inline", _html_inline)
    parser.inline.ruler.before("image", "wiki_image", _wiki_image)
    if is_mdx:
        parser.disable("code")  # MDX indents the content of components
    environment: dict[str, Any] = {_MOST_TOKENS: 8 * marks + 100_000}
    parser.core.ruler.disable("inline")  # for a whole page, it takes much more memory
    # The parser drops text beyond its maximum nesting; the rule too_deep steps in long before.
    nesting, parser.options["maxNesting"] = parser.options["maxNesting"], 10 * _DEEPEST
    tokens = parser.parse(filled.text, environment)
    parser.options["maxNesting"] = nesting
    parser.core.ruler.enable("inline")
    reader = _PageReader(parser, environment, filled)
    blocks, heading, unread = reader.blocks(tokens)
    problems = []
    if environment.get(_TOO_DEEP):
        problems.append(
            f"is nested deeper than {_DEEPEST} levels; deeper parts are read as plain text"
        )
    if filled.left_out:
        problems.append(f"shortcodes, tags and components are left out; {counted(filled.left_out)}")
    if reader.embeds:
        problems.append(f"embeds other than images are left out; {counted(reader.embeds)}")
    if reader.left_out:
        problems.append(f"embedded media are left out; {counted(reader.left_out)}")
    shown = {image.path.lstrip("./") for image in reader.images}
    # An image that the front matter names without a caption and the page shows is counted once.
    images = [i for i in images if i.caption or i.path.lstrip("./") not in shown] + reader.images
    return Page("\n\n".join(blocks), heading, images, metadata, unread, problems)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise InvalidValueError(
            f"has too many line ends, Markdown marks and table cells ({size:,}; at most "
            f"{most:,} are read); split it"
        )


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The parser's rule with a check: even a row of one "|" gets a cell for each column."""
    found = table(state, start, end, silent)
    _check_size(len(state.tokens), state.env[_MOST_TOKENS])
    return found


def _html_inline(state: StateInline, silent: bool) -> bool:
    """The parser's rule, except for comments, whose end it searches again and again."""
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


def _too_deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Read deeply nested parts as text; the parser would drop them."""
    if silent or state.level < _DEEPEST:
        return False
    state.env[_TOO_DEEP] = True
    content = state.getLines(start, end, 0, False)
    state.line = end
    state.push("paragraph_open", "p", 1)
    token = state.push("inline", "", 0)
    token.content, token.children = content.strip(), []
    state.push("paragraph_close", "p", -1)
    return True


def _reference(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The parser's rule, except for footnotes: one of a single word looks like a link target."""
    if _FOOTNOTE.match(state.src, state.bMarks[start] + state.tShift[start]):
        return False
    return reference(state, start, end, silent)


def _html_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The parser's rule, except for text that only looks like HTML without an end."""
    begin, line_end = state.bMarks[start] + state.tShift[start], state.eMarks[start]
    if state.src.startswith("<", begin):
        line = state.src[begin:line_end]
        for opening, closing in _ENDLESS_HTML:
            if found := opening.match(line):
                ending = closing or f"</{found[1].lower()}>"
                if _NO_DECLARATION.match(line) or _PROSE_AFTER.match(line):
                    return False
                last = state.env.get(ending)
                if last is None:
                    last = state.env[ending] = state.src.lower().rfind(ending)
                if last < begin:
                    return False
                break
    return html_block(state, start, end, silent)


def _wiki_image(state: StateInline, silent: bool) -> bool:
    """``![[name|caption]]``, as Obsidian writes."""
    found = _WIKI.match(state.src, state.pos)
    if found is None or found.end() > state.posMax:
        return False
    if not silent:
        state.push("wiki_image", "", 0).content = found["inside"]
    state.pos = found.end()
    return True


class _PageReader(ContentReader):
    """Reads the blocks of a page in Markdown, HTML or both."""

    def __init__(self, parser: MarkdownIt, environment: dict[str, Any], filled: Filled) -> None:
        super().__init__(whole=False)
        self.embeds: Counter[str] = Counter()
        self._parser, self._environment, self._filled = parser, environment, filled
        self._mark = re.compile(f"{filled.mark}(\\d+){filled.mark}")
        self._following = ""
        self._last_ends: dict[str, int] = {}  # of scripts and styles; -1 if there is none
        self._looks: list[str] = []  # the source text without escapes and code
        self.ends_of_page = Counter(name.lower() for name in _CLOSING_NAMES.findall(filled.text))

    def blocks(self, tokens: Sequence[Token]) -> tuple[list[str], str, list[str]]:
        """The texts of the blocks, the first heading, and texts that only look like images."""
        blocks: list[str] = []
        unread: list[str] = []
        heading = tag = ""
        for token in tokens:
            self._looks = []
            text = self._block_text(token)
            if text:
                blocks.append(text)
            looks = _LOOKS_LIKE_AN_IMAGE.finditer("".join(self._looks))
            unread += [excerpt(look[0], _LONGEST_EXCERPT) for look in looks if look["end"]]
            if token.type == "inline" and not heading and tag == "h1":
                heading = text
            tag = token.tag
        self.end_page()
        return blocks, heading, unread

    def _block_text(self, token: Token) -> str:
        match token.type:
            case "fence" | "code_block":
                return self._as_written(token.content).strip()
            case "html_block":
                names = Counter(n.lower() for n in _CLOSING_NAMES.findall(token.content))
                self.begin_block(names, paragraph=False)
                lower = token.content.lower()
                self._last_ends = {name: lower.rfind(f"</{name}") for name in _HIDING}
                self.feed(token.content)
                return " ".join(self.end_block().split())
            case "inline":
                (parsed,) = self._parser.parseInline(token.content, self._environment)
                children = parsed.children or []
                tags = (c.content for c in children if c.type == "html_inline")
                names = Counter(n.lower() for t in tags for n in _CLOSING_NAMES.findall(t))
                self.begin_block(names, paragraph=True)
                self._read(children)
                return re.sub(r"[ \t]+", " ", self.end_block()).strip()
        return ""

    def _read(self, children: Sequence[Token]) -> None:
        ends = {
            name: number
            for number, child in enumerate(children)
            for name in _HIDING
            if child.type == "html_inline" and child.content.lower().startswith(f"</{name}")
        }
        for number, child in enumerate(children):
            match child.type:
                case "text":
                    self.add_text(child.content)
                    self._looks.append(child.content)
                case "text_special":
                    self.add_text(child.content)
                    self._looks.append("\\")
                case "code_inline":
                    self.add_text(self._as_written(child.content))
                    self._looks.append("`")
                case "softbreak" | "hardbreak":
                    self.add_text("\n")
                    self._looks.append("\n")
                case "html_inline":
                    self._last_ends = {name: int(last > number) - 1 for name, last in ends.items()}
                    self._following = _following(children, number) if ends else ""
                    self.feed(child.content)
                case "link_open":
                    self.begin_link(str(child.attrs.get("href", "")))
                case "link_close":
                    self.end_link()
                case "wiki_image":
                    self._take_wiki_image(child.content)
                case "image":
                    self._take_image(child)

    def _take_image(self, child: Token) -> None:
        within = _PageReader(self._parser, self._environment, self._filled)
        within.begin_block(Counter(), paragraph=True)
        within._read(child.children or [])
        alt = within.end_block()
        self.images += within.images
        self.show(
            [str(child.attrs.get("src", ""))], alt.strip() or str(child.attrs.get("title", ""))
        )

    def _take_wiki_image(self, inside: str) -> None:
        path, *said = (part.strip() for part in inside.split("|"))
        path = path.partition("#")[0] or path
        if not names_image(path):
            self.embeds["![[…]]"] += 1
            return
        self.show(
            [path],
            next((part for part in said if not _WIDTH.fullmatch(part)), ""),
            by_name="nearest",
        )

    def _as_written(self, code: str) -> str:
        """Code with its original shortcodes."""
        return self._mark.sub(lambda found: self._filled.inserted[int(found[1])].original, code)

    def hides(self, name: str, html: str, start: int) -> bool:
        """Whether a script or style ends in this block, and does not read like prose."""
        last = self._last_ends.get(name, -1)
        if self._in_paragraph:
            return last >= 0 and super().hides(name, self._following, 0)
        return last >= start and super().hides(name, html, start)

    def on_text(self, text: str) -> None:
        """Take a text; marks in it stand for images."""
        at = 0
        for found in self._mark.finditer(text):
            self._on_markdown(text[at : found.start()])
            at = found.end()
            inserted = self._filled.inserted[int(found[1])]
            for image in inserted.images:  # a theme may keep them in a separate folder
                self.show([image.path, *image.others], image.caption, by_name="only")
            if inserted.captioned:
                self._take_captioned(inserted.captioned)
        self._on_markdown(text[at:])

    def _on_markdown(self, text: str) -> None:
        """Take a text; in a block of HTML, it may hold Markdown images."""
        if self._in_paragraph or "![" not in text or self._hidden:
            super().on_text(text)
            return
        (parsed,) = self._parser.parseInline(text, self._environment)
        for child in parsed.children or []:
            if child.type == "image":
                self._take_image(child)
            elif child.type == "wiki_image":
                self._take_wiki_image(child.content)
            elif child.type in {"softbreak", "hardbreak"}:
                super().on_text("\n")
            elif child.type not in {"link_open", "link_close"}:
                super().on_text(child.content)

    def _take_captioned(self, content: str) -> None:
        """Take images with the text beside them as their caption, as in WordPress."""
        within = _PageReader(self._parser, self._environment, self._filled)
        (parsed,) = self._parser.parseInline(" ".join(content.split()), self._environment)
        children = parsed.children or []
        tags = (c.content for c in children if c.type == "html_inline")
        names = Counter(n.lower() for t in tags for n in _CLOSING_NAMES.findall(t))
        within.begin_block(names, paragraph=True)
        within._read(children)
        caption = " ".join(within.end_block().split())
        for image in within.images:
            self.show([image.path, *image.others], caption or image.caption)


def _following(children: Sequence[Token], number: int) -> str:
    """The beginning of the text after a script or style tag."""
    following = ""
    for child in children[number + 1 : number + 100]:
        following += "\n" if child.type == "softbreak" else child.content[:300]
        if len(following) > 300:
            break
    return following
