"""How a file of rows is written: its encoding, its separator, its quotes."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from io import StringIO, TextIOWrapper
from typing import IO

from llama_index_gap.errors import InvalidValueError

SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_BLOCK = 2**20
_LOOK = 2**16
_ROWS = 100
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "utf-32": "UTF-32",
    "cp1252": "Windows-1252",
}
_NOT_WINDOWS = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_SEPARATOR_LINE = re.compile(r"\ufeff?sep=([,;|\t])\r?\n", re.I)


@dataclass(frozen=True)
class Dialect:
    """How a file separates its rows, and a row its cells.

    Attributes:
        encoding: Python's name for it.
        separator: the character between cells.
        quotes: how a quote inside quotes is written: ``""`` if doubled, a backslash if escaped;
            None if quotes are ordinary characters.
        skipped_lines: lines before the first row.
    """

    encoding: str
    separator: str
    quotes: str | None = ""
    skipped_lines: int = 0

    def rows(self, file: IO[bytes], longest: int) -> Generator[tuple[int, list[str]]]:
        """The rows that are not empty, each with the number of its last line.

        Args:
            file: the file; read from its start, and left open.
            longest: the most characters in a row.

        Raises:
            csv.Error: a row has broken quotes or is too long.
            UnicodeDecodeError: some bytes are invalid in the encoding.
        """
        file.seek(0)
        text = TextIOWrapper(file, encoding=self.encoding, newline="")
        try:
            for _ in range(self.skipped_lines):
                text.readline()
            lines = _Lines(text, longest)
            reader = csv.reader(
                lines,
                delimiter=self.separator,
                doublequote=self.quotes == "",
                escapechar=self.quotes or None,
                quoting=csv.QUOTE_NONE if self.quotes is None else csv.QUOTE_MINIMAL,
                skipinitialspace=True,
                strict=True,
            )
            for row in reader:
                lines.size = 0
                if any(row):
                    yield reader.line_num + self.skipped_lines, row
        finally:
            text.detach()

    def in_words(self) -> str:
        """Encoding and separator, for the summary."""
        quotes = {None: "; quotes are ordinary characters", "\\": "; backslashes escape quotes"}
        name = _NAMES[self.encoding]
        if self.encoding == "cp1252":
            name += " (if letters are wrong, save it as UTF-8)"
        return f"{name}, cells between {SEPARATORS[self.separator]}{quotes.get(self.quotes, '')}"


class _Lines:
    """The lines of a text for ``csv``, which has no limit on the size of a row."""

    def __init__(self, text: TextIOWrapper, longest: int) -> None:
        self._text, self._longest, self.size = text, longest, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._longest + 1)
        if not line:
            raise StopIteration
        self.size += len(line)
        if self.size > self._longest:
            raise csv.Error(f"a row is longer than {self._longest:,} characters")
        return line


def find_encoding(file: IO[bytes]) -> str:
    """Find the encoding of a text by the mark at its start, its NULs, or all its bytes.

    A text that decodes as UTF-8 is UTF-8. Any other text is taken as Windows-1252, which includes
    Latin-1, if hardly any of its characters beyond ASCII are valid UTF-8.

    Args:
        file: the file; its position changes.

    Raises:
        InvalidValueError: it is neither; the message names the first byte that is not UTF-8.
    """
    file.seek(0)
    head = file.read(_LOOK)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if len(head) > 3:
        odd, even = head[1::2].count(0), head[::2].count(0)
        if max(odd, even) * 2 > len(head) // 2 and min(odd, even) * 10 < max(odd, even):
            return "utf-16-le" if odd > even else "utf-16-be"
    wrong = ""
    beyond_ascii = broken = position = 0
    windows = True
    strict = codecs.getincrementaldecoder("utf-8")()
    lenient = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    file.seek(0)
    block = b"."
    while block:
        block = file.read(_BLOCK)
        kept = len(strict.getstate()[0])  # bytes of a character that began in the block before
        try:
            _ = strict.decode(block, final=not block) if not wrong else ""
        except UnicodeDecodeError as error:
            place = position - kept + error.start
            wrong = f"is not UTF-8; byte 0x{error.object[error.start]:02x} at position {place}"
        position += len(block)
        text = lenient.decode(block, final=not block)
        if not text.isascii():
            escaped = len(re.findall("[\udc80-\udcff]", text))
            broken += escaped
            beyond_ascii += len(re.findall("[^\x00-\x7f]", text)) - escaped
            windows = windows and not _NOT_WINDOWS.search(block)
    if not wrong:
        return "utf-8"
    if windows and beyond_ascii * 10 < broken:
        return "cp1252"
    raise InvalidValueError(f"{wrong}; save it as UTF-8")


def find_dialects(file: IO[bytes], encoding: str, usual: str) -> Iterator[Dialect]:
    """The dialects that a file may be written in, the likeliest first.

    Args:
        file: the file; its position changes.
        encoding: its encoding.
        usual: the separator that its suffix suggests.
    """
    file.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    text = decoder.decode(file.read(_LOOK))
    said = _SEPARATOR_LINE.match(text)
    skipped = 1 if said else 0
    text = text[said.end() :] if said else text
    separator = said[1] if said else _separator(text, usual)
    yield Dialect(encoding, separator, "", skipped)
    if '\\"' in text:
        yield Dialect(encoding, separator, "\\", skipped)
    if separator in "\t|":  # files with these often have no quoting
        yield Dialect(encoding, separator, None, skipped)


def _separator(text: str, usual: str) -> str:
    """The separator that gives rows of equal length, with the most cells."""
    best, most = usual, (0.0, 0)
    for separator in sorted(SEPARATORS, key=lambda each: each != usual):
        lengths: list[int] = []
        try:
            for row in csv.reader(StringIO(text, newline=""), delimiter=separator):
                lengths += [len(row)] if row else []
                if len(lengths) == _ROWS:
                    break
        except csv.Error:  # a cell is over the limit
            pass
        if not lengths or lengths[0] < 2:
            continue
        if len(lengths) > 2 and len(text) == _LOOK and len(lengths) < _ROWS:
            lengths.pop()  # the last row is cut off
        alike = sum(length == lengths[0] for length in lengths) / len(lengths)
        if (round(alike, 1), lengths[0]) > most:
            best, most = separator, (round(alike, 1), lengths[0])
    return best
