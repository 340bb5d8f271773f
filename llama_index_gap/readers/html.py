"""Reads HTML in linear time, however broken it is."""

from __future__ import annotations

import re
from html import unescape

_TAG_NAME = re.compile(r"<([a-zA-Z][^\t\n\r\f />\x00]*)")
_ATTRIBUTE = re.compile(
    r"""[\s/]*+(?P<name>[^\s/>][^\s/=>]*+)"""
    r"""(?:\s*+=++\s*+(?P<value>'[^']*+'|"[^"]*+"|(?!['"])[^>\s]*+))?+(?!=)"""
)
_TAG_END = re.compile(r"[\s/]*+>")
_CLOSING_NAME = re.compile(r"</\s*+([a-zA-Z][^\s/>]*+)")
_ANGLE = re.compile(">")
_DECLARATION = re.compile(r"<!doctype\b|<!\[", re.I)
# How parts that a page does not show begin and end; the first match counts.
_UNSHOWN = {
    "<!--": re.compile(r"--\s*+>"),
    "<![CDATA[": re.compile(r"\]\s*+\]\s*+>"),
    "<!": _ANGLE,
    "<?": _ANGLE,
    "</": _ANGLE,
}
_HIDING = {name: re.compile(rf"</\s*+{name}\s*+>", re.I) for name in ("script", "style")}


def words(text: str) -> frozenset[str]:
    """The words of a text, such as the names of elements."""
    return frozenset(text.split())


class HtmlReader:
    """Separates the tags of HTML from its texts; comments, scripts and styles are left out.

    Python's own parser reads the rest of a text again for each tag or comment that is not closed,
    which takes minutes for a few hundred kilobytes. Here, a tag that is not closed is text.
    """

    def __init__(self) -> None:
        self.hiding = ""  # the script or style that is open

    def on_text(self, text: str) -> None:
        """Take a text, its entities decoded."""

    def on_tag(self, name: str, attributes: dict[str, str]) -> None:
        """Take an opening tag."""

    def on_closing_tag(self, name: str) -> None:
        """Take a closing tag; ``<br/>`` counts as an opening and a closing tag."""

    def is_tag(self, name: str, attributes: dict[str, str], bare: set[str]) -> bool:
        """Whether an apparent opening tag is a tag rather than text.

        Args:
            name: its name, in lower case.
            attributes: the attributes with their values; a value may be empty.
            bare: the names of the attributes without a value.
        """
        return True

    def is_closing_tag(self, name: str) -> bool:
        """Whether an apparent closing tag is a tag rather than text."""
        return True

    def hides(self, name: str, html: str, start: int) -> bool:
        """Whether a script or style that begins at ``start`` hides the following text."""
        return True

    def add_text(self, text: str) -> None:
        """Take a text without HTML that lies between parts of HTML."""
        if text and not self.hiding:
            self.on_text(text)

    def feed(self, html: str) -> None:
        """Take a part of the HTML. A script may continue in the next part, a tag may not."""
        start = 0
        absent: set[re.Pattern[str]] = set()  # ends that do not occur again
        while start < len(html):
            if self.hiding:
                closed = _HIDING[self.hiding].search(html, start)
                start, self.hiding = (closed.end(), "") if closed else (len(html), self.hiding)
                continue
            opened = html.find("<", start)
            opened = len(html) if opened < 0 else opened
            self.add_text(_decoded(html[start:opened]))
            start = opened
            if found := _TAG_NAME.match(html, start):
                start = self._tag(html, start, found)
            elif start < len(html):
                start = self._unshown(html, start, absent)

    def _tag(self, html: str, start: int, name: re.Match[str]) -> int:
        """Take an opening tag, or a text that only begins like one; return where it ends."""
        attributes: dict[str, str] = {}
        bare: set[str] = set()
        end = name.end()
        while found := _ATTRIBUTE.match(html, end):
            value = found["value"] or ""
            if found["value"] is None:
                bare.add(found["name"].lower())
            value = value[1:-1] if value[:1] in {"'", '"'} else value
            attributes.setdefault(found["name"].lower(), _decoded(value))
            end = found.end()
        closed = _TAG_END.match(html, end)
        if closed is None:
            self.add_text(_decoded(html[start:end]))
            return end
        tag = name[1].lower()
        if not self.is_tag(tag, attributes, bare) or (
            tag in _HIDING and not self.hides(tag, html, closed.end())
        ):
            self.add_text(_decoded(html[start : closed.end()]))
            return closed.end()
        self.on_tag(tag, attributes)
        if closed[0].endswith("/>"):
            self.on_closing_tag(tag)
        elif tag in _HIDING:
            self.hiding = tag
        return closed.end()

    def _unshown(self, html: str, start: int, absent: set[re.Pattern[str]]) -> int:
        """Take a closing tag, a comment, or text that only begins like one; return its end."""
        for opening, closing in _UNSHOWN.items():
            if html.startswith(opening, start):
                end = None if closing in absent else closing.search(html, start + 2)
                if end is None:
                    absent.add(closing)
                    break
                name = _CLOSING_NAME.match(html, start) if opening == "</" else None
                if name and self.is_closing_tag(name[1].lower()):
                    self.on_closing_tag(name[1].lower())
                elif name or (opening == "<!" and not _DECLARATION.match(html, start)):
                    self.add_text(_decoded(html[start : end.end()]))
                return end.end()
        self.add_text("<")
        return start + 1


def _decoded(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:  # "&#999…;" with more digits than Python reads
        return text
