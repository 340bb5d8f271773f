"""Parses HTML as a browser does."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> \"' & {{ 7 * 7 }} </style>"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the text in each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        within = self._open[-1] if self._open else ""
        self.texts[within] = self.texts.get(within, "") + data

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]
