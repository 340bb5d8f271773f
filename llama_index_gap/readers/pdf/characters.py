"""Groups the characters that pdfium finds on a page into pieces of lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from llama_index_gap.readers.pdf.places import Box

MOST_CHARACTERS = 300_000
"""The most characters that are read from a page."""
_RTL = frozenset([*range(0x590, 0x900), *range(0xFB1D, 0xFE00), *range(0xFE70, 0xFF00)])
_LINE_BREAKS = frozenset([0, 10, 13])
_HYPHENS = frozenset([0x2, 0xFFFE])


def segments_of(page: pypdfium2.PdfPage, text: Any) -> tuple[int, list[list[Any]], Counter[str]]:
    """A page's text in pieces; each lies on one line and has no wide gap.

    Only the first and last character of each word are located: pdfium puts a space at each gap and
    a line break at each line's end.

    Returns:
        The quarter turns that make the text upright; for each piece its text, its box, whether it
        is hidden, and whether it runs in another direction than most text; counts of characters.
    """
    counts: Counter[str] = Counter(all=max(pdfium.FPDFText_CountChars(text), 0))
    turns: Counter[int] = Counter()
    pieces: list[tuple[list[str], list[Box], int, bool]] = []
    before: tuple[float, float, float, float, bool] | None = None
    for start, end, word, ends_line in _words(text, min(counts["all"], MOST_CHARACTERS)):
        item = pdfium.FPDFText_GetTextObject(text, start)
        direction = round(pdfium.FPDFText_GetCharAngle(text, start) / (math.pi / 2)) % 4
        mode = pdfium.FPDFTextObj_GetTextRenderMode(item)
        hidden = mode == pdfium.FPDF_TEXTRENDERMODE_INVISIBLE
        unknown = pdfium.FPDFText_HasUnicodeMapError(text, start) == 1
        turns[direction] += len(word)
        counts.update(hidden=len(word) * hidden, unknown=len(word) * unknown)
        first, last = _box(text, start), _box(text, end)
        along = _along(first, direction)
        rtl = ord(word[0]) in _RTL
        new = before is None or (direction, hidden) != pieces[-1][2:]
        if new or before is None or _apart(before, along, rtl):
            pieces.append(([], [], direction, hidden))
        pieces[-1][0].append(word)
        pieces[-1][1].extend([first, last])
        before = None if ends_line else (*_along(last, direction), ord(word[-1]) in _RTL)
    most = max(range(4), key=lambda turn: (turns[turn], -turn))
    turn = (-most) % 4 if turns[most] else pdfium.FPDFPage_GetRotation(page)
    segments: list[list[Any]] = []
    for words, boxes, direction, hidden in pieces:
        lefts, bottoms, rights, tops = zip(*boxes, strict=True)
        around = (min(lefts), min(bottoms), max(rights), max(tops))
        segments.append([" ".join(words), around, hidden, direction != most])
    return turn, segments, counts


def _words(text: Any, count: int) -> Iterator[tuple[int, int, str, bool]]:
    """A page's words: first and last character, the word, and whether its line ends there."""
    get = pdfium.FPDFText_GetUnicode
    letters: list[str] = []
    start = 0
    found: tuple[int, int, str] | None = None
    for index in range(count + 1):
        code = get(text, index) if index < count else 10
        if code > 0x20 and code not in _HYPHENS:
            if not letters:
                start = index
            letters.append(chr(code))
            continue
        if code in _HYPHENS:
            start = start if letters else index
            letters.append("\u00ad")
        if letters:
            if found is not None:
                yield *found, False
            # pdfium counts UTF-16 units: a character beyond U+FFFF has two.
            halves = "".join(letters).encode("utf-16-le", "surrogatepass")
            word = halves.decode("utf-16-le", "ignore") or "\ufffd"
            found = (start, index if code in _HYPHENS else index - 1, word)
            letters = []
        if found is not None and (code in _LINE_BREAKS or code in _HYPHENS):
            yield *found, True
            found = None


def _box(text: Any, index: int) -> Box:
    rect = pdfium.FS_RECTF()
    pdfium.FPDFText_GetLooseCharBox(text, index, rect)
    return rect.left, rect.bottom, rect.right, rect.top


def _along(box: Box, direction: int) -> tuple[float, float, float, float]:
    """A character's start and end along its line, and its extent across it."""
    left, bottom, right, top = box
    match direction:
        case 0:
            return left, right, bottom, top
        case 1:
            return -top, -bottom, left, right
        case 2:
            return -right, -left, -top, -bottom
        case _:
            return bottom, top, -right, -left


def _apart(
    before: tuple[float, float, float, float, bool],
    now: tuple[float, float, float, float],
    rtl: bool,
) -> bool:
    """Whether a character is on another line than the one before, or after a wide gap."""
    start, end, low, high, was_rtl = before
    height = max(high - low, now[3] - now[2], 1.0)
    shared = min(high, now[3]) - max(low, now[2])
    if shared < 0.3 * min(high - low, now[3] - now[2]):
        return True
    if was_rtl != rtl:  # text of mixed direction is not in the order of its places
        return False
    gap = start - now[1] if rtl else now[0] - end
    return gap > 0.9 * height or gap < -3 * height
