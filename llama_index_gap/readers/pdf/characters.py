"""A page's characters, as pdfium gives them, in pieces of lines."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from llama_index_gap.readers.pdf.places import Box

MOST_CHARACTERS = 300_000
"""Most characters of a page."""
_RTL = frozenset([*range(0x590, 0x900), *range(0xFB1D, 0xFE00), *range(0xFE70, 0xFF00)])
_LINE_BREAKS = frozenset([0, 10, 13])
_HYPHENS = frozenset([0x2, 0xFFFE])


def segments_of(page: pypdfium2.PdfPage, text: Any) -> tuple[int, list[list[Any]], Counter[str]]:
    """A page's text in pieces that stand on one line without a wide gap.

    Returns:
        Quarter turns that make it upright; for each piece its text, its box, whether it is
        hidden, whether it runs another way than most; counts of characters.
    """
    count = pdfium.FPDFText_CountChars(text)
    counts: Counter[str] = Counter(all=max(count, 0))
    pieces: list[tuple[list[str], list[float], int, bool]] = []
    rect = pdfium.FS_RECTF()
    before: tuple[float, float, float, float, bool] | None = None
    direction, hidden, broken = 0, False, True
    latest: Any = None
    for index in range(min(count, MOST_CHARACTERS)):
        code = pdfium.FPDFText_GetUnicode(text, index)
        if code in _LINE_BREAKS:
            counts["unknown"] += code == 0
            broken = True
            continue
        if pdfium.FPDFText_IsGenerated(text, index) == 1:
            if pieces and code == 0x20:
                pieces[-1][0].append(" ")
            continue
        item = pdfium.FPDFText_GetTextObject(text, index)
        address = ctypes.cast(item, ctypes.c_void_p).value
        if address != latest:
            latest = address
            angle = pdfium.FPDFText_GetCharAngle(text, index)
            direction = round(angle / (math.pi / 2)) % 4
            hidden = (
                pdfium.FPDFTextObj_GetTextRenderMode(item) == pdfium.FPDF_TEXTRENDERMODE_INVISIBLE
            )
        counts[f"turned {direction}"] += 1
        counts["hidden"] += hidden
        counts["unknown"] += pdfium.FPDFText_HasUnicodeMapError(text, index) == 1
        pdfium.FPDFText_GetLooseCharBox(text, index, rect)
        box = (rect.left, rect.bottom, rect.right, rect.top)
        rtl = code in _RTL
        along = _along(box, direction)
        if broken or before is None or direction != pieces[-1][2] or _apart(before, along, rtl):
            pieces.append(([], list(box), direction, hidden))
        letters, around, *_ = pieces[-1]
        letters.append("\u00ad" if code in _HYPHENS else chr(code))
        if code != 0x20:
            around[:2] = [min(a, b) for a, b in zip(around[:2], box[:2], strict=True)]
            around[2:] = [max(a, b) for a, b in zip(around[2:], box[2:], strict=True)]
        before, broken = (*along, rtl), False
    turns = Counter({turn: counts.pop(f"turned {turn}", 0) for turn in range(4)})
    most = max(turns, key=lambda turn: (turns[turn], -turn))
    turn = (-most) % 4 if turns[most] else pdfium.FPDFPage_GetRotation(page)
    segments = [
        ["".join(letters), tuple(box), hidden, direction != most]
        for letters, box, direction, hidden in pieces
        if "".join(letters).strip()
    ]
    return turn, segments, counts


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
    """Whether a character stands on another line than the one before, or after a wide gap."""
    start, end, low, high, was_rtl = before
    height = max(high - low, now[3] - now[2], 1.0)
    shared = min(high, now[3]) - max(low, now[2])
    if shared < 0.3 * min(high - low, now[3] - now[2]):
        return True
    if was_rtl != rtl:  # runs of both directions are not in the order of their places
        return False
    gap = start - now[1] if rtl else now[0] - end
    return gap > 0.9 * height or gap < -3 * height
