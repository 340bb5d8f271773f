"""Finds a page's reading order: its columns, lines and paragraphs, from the places of its texts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llama_index_gap.readers.pdf.labels import label_of

MOST_SEGMENTS = 20_000
"""A page with more pieces of text is read in the order of the file."""
_MOST_DEPTH = 20
_FEWEST_LINES = 3  # of a column
_COLUMN_WIDTH = 6.0  # least width of a column, in line heights; table cells are narrower
_CROSSING = 3.0  # one line across columns outweighs this many lines within them
_EDGE = 0.12  # share of the page's height at each edge that may hold headers and footers
_MOST_EDGE_LINES = 4
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")
_PRESENTED = re.compile("[\ufb00-\ufb4f\ufb50-\ufdff\ufe70-\ufeff]+")
_NO_SPACE = re.compile("[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\u3000-\u303f]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")
_DIGITS = re.compile(r"\d+|\b[ivxlc]+\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_BROKEN_WORD = re.compile(r"([^\W\d_]+)[-\u00ad\u2010]\n([^\W\d_]+)")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Line:
    """A piece of text on one line; its box is left, top, right, bottom from the top left."""

    text: str
    box: Box
    turned: bool = False

    @property
    def height(self) -> float:
        """The height of the line, in points."""
        return max(self.box[3] - self.box[1], 1.0)


Paragraph = list[Line]


def paragraphs_of(segments: Sequence[Line]) -> list[Paragraph]:
    """The paragraphs of a page in reading order.

    Two columns are separated by a gap that few lines cross. Each column is read from top to bottom,
    the left one first (the right one first if most of the text runs from right to left). A line
    across both columns separates the text above it from the text below. Table cells are too narrow
    for columns and are read row by row. Text that runs in another direction is read last.

    Args:
        segments: the pieces of text, in the order of the file.
    """
    upright = [each for each in segments if not each.turned]
    others = [each for each in segments if each.turned]
    letters = sum(len(each.text) for each in upright)
    rtl = sum(len(_RTL.findall(each.text)) for each in upright) * 2 > letters
    regions = [upright] if len(upright) > MOST_SEGMENTS else _regions(upright, rtl, _MOST_DEPTH)
    found = [paragraph for region in regions for paragraph in _paragraphs(region, rtl)]
    return [*found, *([each] for each in others)]


def _regions(segments: list[Line], rtl: bool, depth: int) -> list[list[Line]]:
    """Divide the segments into regions of one column each, in reading order."""
    if depth == 0 or len(segments) < 2 * _FEWEST_LINES:
        return [segments] if segments else []
    boxes = np.array([each.box for each in segments])
    found = _gutter(boxes)
    if found is None:
        return [segments]
    gutter, top, bottom = found
    middle = (boxes[:, 1] + boxes[:, 3]) / 2
    above, below = middle < top, middle > bottom
    crossing = (boxes[:, 0] < gutter - 1) & (boxes[:, 2] > gutter + 1)
    right = boxes[:, 0] >= gutter - 1

    def taken(mask: NDArray[np.bool_]) -> list[Line]:
        return [segments[index] for index in np.flatnonzero(mask)]

    regions = _regions(taken(above), rtl, depth - 1)
    within = ~above & ~below
    # Consecutive lines across both columns, without column text between them, form one region.
    across = sorted(np.flatnonzero(within & crossing), key=lambda index: float(middle[index]))
    edges = [top - 1.0, *(float(middle[index]) for index in across), bottom + 1.0]
    for number, (start, end) in enumerate(pairwise(edges)):
        band = within & ~crossing & (middle >= start) & (middle < end)
        for side in (right, ~right) if rtl else (~right, right):
            regions += _regions(taken(band & side), rtl, depth - 1)
        if number < len(across):
            line = segments[across[number]]
            if regions and not band.any() and regions[-1][-1:] == [segments[across[number - 1]]]:
                regions[-1].append(line)
            else:
                regions.append([line])
    return regions + _regions(taken(below), rtl, depth - 1)


def _gutter(boxes: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """The gap between two columns of text: its horizontal place, its top and its bottom."""
    left, right = boxes[:, 0].min(), boxes[:, 2].max()
    bins = 400
    step = (right - left) / bins
    if step <= 0:
        return None
    starts = np.clip(((boxes[:, 0] + 1 - left) / step).astype(int), 0, bins)
    ends = np.clip(((boxes[:, 2] - 1 - left) / step).astype(int) + 1, 0, bins)
    change = np.bincount(starts, minlength=bins + 1) - np.bincount(ends, minlength=bins + 1)
    covered = np.cumsum(change)[:bins]
    # The middle of each valley: no line starts or ends within it.
    lower = np.flatnonzero(np.diff(np.concatenate([[-1], covered, [-1]])) != 0)
    valleys = [
        (covered[start], (start + end) / 2)
        for start, end in pairwise(lower)
        if start > 0
        and end < bins
        and covered[start] < covered[start - 1]
        and covered[start] < covered[end]
    ]
    best: tuple[float, float, float, float] | None = None
    order = np.argsort((boxes[:, 1] + boxes[:, 3]) / 2, kind="stable")
    boxes = boxes[order]
    for _, place in sorted(valleys)[:40]:
        x = left + place * step
        on_right = boxes[:, 0] >= x - 1
        on_left = boxes[:, 2] <= x + 1
        worth = np.where(on_left | on_right, 1.0, -_CROSSING)
        first, last, score = _best_run(worth)
        if best is not None and score <= best[0]:
            continue
        sides = [boxes[first : last + 1][mask[first : last + 1]] for mask in (on_left, on_right)]
        if all(map(_is_column, sides)) and _side_by_side(*sides):
            run = (boxes[first : last + 1, 1] + boxes[first : last + 1, 3]) / 2
            best = (score, x, float(run.min()) - 0.01, float(run.max()) + 0.01)
    return None if best is None else best[1:]


def _best_run(worth: NDArray[np.float64]) -> tuple[int, int, float]:
    """The contiguous part of a series with the largest sum: its first and last index, the sum."""
    sums = np.concatenate([[0.0], np.cumsum(worth)])
    before = np.minimum.accumulate(sums[:-1])
    last = int(np.argmax(sums[1:] - before))
    first = int(np.argmin(sums[: last + 1]))
    return first, last, float(sums[last + 1] - sums[first])


def _is_column(boxes: NDArray[np.float64]) -> bool:
    if len(boxes) < _FEWEST_LINES:
        return False
    heights = np.maximum(boxes[:, 3] - boxes[:, 1], 1.0)
    widths = boxes[:, 2] - boxes[:, 0]
    return bool(np.percentile(widths, 75) >= _COLUMN_WIDTH * np.median(heights))


def _side_by_side(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    tops, bottoms = [(each[:, 1].min(), each[:, 3].max()) for each in (first, second)]
    shared = min(tops[1], bottoms[1]) - max(tops[0], bottoms[0])
    return bool(shared > 0.5 * min(tops[1] - tops[0], bottoms[1] - bottoms[0]))


def _paragraphs(segments: list[Line], rtl: bool) -> list[Paragraph]:
    """The paragraphs of one column; pieces beside each other are joined into lines."""
    rows: list[list[Line]] = []
    for segment in _downwards(segments, rtl):
        if rows and _same_row(rows[-1][-1], segment):
            rows[-1].append(segment)
        else:
            rows.append([segment])
    paragraphs: list[Paragraph] = []
    beside: list[Paragraph] = []  # captions of images that are side by side
    for row in rows:
        starts = [label_of(segment.text) is not None for segment in row]
        if sum(starts) > 1 and starts[0]:
            beside = [[segment] for segment in _joined_until(row, starts)]
            paragraphs += beside
        elif not _continue(beside, row):
            beside = []
            line = _joined(row)
            if paragraphs and _follows(paragraphs[-1][-1], line):
                paragraphs[-1].append(line)
            else:
                paragraphs.append([line])
    return paragraphs


def _follows(before: Line, line: Line) -> bool:
    """Whether a line continues the paragraph of the line before it."""
    gap, ratio = line.box[1] - before.box[3], line.height / before.height
    below = -0.7 * line.height < gap < 0.55 * min(line.height, before.height)
    shares = min(before.box[2], line.box[2]) > max(before.box[0], line.box[0])
    return below and shares and 0.8 < ratio < 1.25


def _joined_until(row: list[Line], starts: list[bool]) -> list[Line]:
    """The captions in a row; each takes the pieces up to the next caption."""
    edges = [*(index for index, start in enumerate(starts) if start), len(row)]
    return [_joined(row[first:last]) for first, last in pairwise(edges)]


def _continue(beside: list[Paragraph], row: list[Line]) -> bool:
    """Add the pieces of a row to the captions above them, if each piece is below a caption."""
    above = []
    for segment in row:
        over = [
            caption
            for caption in beside
            if caption[0].box[0] - segment.height <= segment.box[0]
            and _follows(caption[-1], segment)
        ]
        over.sort(key=lambda caption: caption[0].box[0])
        crosses = any(
            segment.box[0] < caption[0].box[0] < segment.box[2] for caption in beside if over
        )
        if not over or crosses:
            return False
        above.append(over[-1])
    for caption, segment in zip(above, row, strict=True):
        caption.append(segment)
    return True


def _downwards(segments: list[Line], rtl: bool) -> list[Line]:
    """The file's order if it leads down the page, which keeps formulas whole; else by place."""
    lowest = float("-inf")
    for segment in segments:
        if segment.box[3] < lowest - 1.5 * segment.height:
            break
        lowest = max(lowest, segment.box[1])
    else:
        return segments
    rows: list[list[Line]] = []
    for segment in sorted(segments, key=lambda each: each.box[1] + each.box[3]):
        if rows and _same_row(rows[-1][0], segment):
            rows[-1].append(segment)
        else:
            rows.append([segment])
    return [
        each
        for row in rows
        for each in sorted(row, key=lambda each: -each.box[2] if rtl else each.box[0])
    ]


def _same_row(first: Line, second: Line) -> bool:
    shared = min(first.box[3], second.box[3]) - max(first.box[1], second.box[1])
    return shared > 0.4 * min(first.height, second.height)  # a superscript belongs to the row


def _joined(row: list[Line]) -> Line:
    text = row[0].text
    for before, after in pairwise(row):
        gap = max(after.box[0] - before.box[2], before.box[0] - after.box[2])
        text += ("" if gap < 0.1 * after.height else " ") + after.text
    lefts, tops, rights, bottoms = zip(*(each.box for each in row), strict=True)
    return Line(text, (min(lefts), min(tops), max(rights), max(bottoms)))


# --- texts ---------------------------------------------------------------------------------------


def cleaned(text: str) -> str:
    """A piece of text with plain letters in place of ligatures and Arabic presentation forms."""
    text = _PRESENTED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return _CONTROL.sub("", text).strip()


def written(paragraphs: Iterable[Paragraph], words: Counter[str]) -> str:
    """Write paragraphs as one text, with blank lines between them; join words broken at line ends.

    Args:
        paragraphs: the paragraphs, in reading order.
        words: the count of each word in the file; it shows whether a hyphen belongs to a word or
            only ends a line.
    """

    def whole(match: re.Match[str]) -> str:
        first, second = match.groups()
        with_hyphen, without = f"{first}-{second}".lower(), f"{first}{second}".lower()
        keeps = words[with_hyphen] > words[without] or not second[:1].islower()
        return f"{first}-{second}" if keeps else f"{first}{second}"

    texts = []
    for paragraph in paragraphs:
        text = "\n".join(line.text for line in paragraph)
        # A word may be broken twice; the second pass joins what the first one left.
        text = _BROKEN_WORD.sub(whole, _BROKEN_WORD.sub(whole, text)).replace("\u00ad", "-")
        lines = text.split("\n")
        joined = lines[0]
        for line in lines[1:]:
            wide = _NO_SPACE.match(joined[-1:]) and _NO_SPACE.match(line[:1])
            joined += ("" if wide else " ") + line
        texts.append(joined)
    return "\n\n".join(texts)


def words_in(paragraphs: Iterable[Paragraph]) -> Counter[str]:
    """Counts of the words in the lines."""
    return Counter(
        word
        for paragraph in paragraphs
        for line in paragraph
        for word in _WORD.findall(line.text.lower())
    )


# --- headers and footers -------------------------------------------------------------------------


def repeated_lines(
    pages: Sequence[Sequence[Paragraph]], heights: Sequence[float]
) -> tuple[list[set[Box]], Counter[str]]:
    """Find headers and footers: lines at the top or bottom of most pages.

    A line repeats if at least three pages have it at the same height with the same text, numbers
    aside. It must be on at least half of the pages from the first of these to the last, or on half
    of the left-hand or of the right-hand pages among them.

    Args:
        pages: the paragraphs of each page.
        heights: the height of each page, in points.

    Returns:
        For each page, the boxes of such lines; each text, as on its first page, with its count.
    """
    places: defaultdict[tuple[str, int], list[tuple[int, Line]]] = defaultdict(list)
    for number, (page, height) in enumerate(zip(pages, heights, strict=True)):
        lines = [line for paragraph in page for line in paragraph if not line.turned]
        usual = sorted(line.height for line in lines)[len(lines) // 2] if lines else 0.0
        edges = {
            *sorted(lines, key=lambda line: line.box[1])[:_MOST_EDGE_LINES],
            *sorted(lines, key=lambda line: -line.box[3])[:_MOST_EDGE_LINES],
        }
        for line in edges:
            top, bottom = line.box[1], height - line.box[3]
            # Larger lines are titles, such as on slides.
            if min(top, bottom) < _EDGE * height and line.height < 1.3 * usual:
                from_edge = round(top / 6) if top < bottom else -round(bottom / 6) - 1
                key = " ".join(_DIGITS.sub("#", line.text.lower()).split())
                places[key, from_edge].append((number, line))
    found: list[set[Box]] = [set() for _ in pages]
    counts: Counter[str] = Counter()
    for same in places.values():
        on = sorted({number for number, _ in same})
        sides = [on, [number for number in on if number % 2], [n for n in on if not n % 2]]
        dense = [
            len(side) >= 3 and 2 * len(side) * step >= side[-1] - side[0] + step
            for side, step in zip(sides, (1, 2, 2), strict=True)
        ]
        if any(dense):
            counts[min(same, key=lambda each: each[0])[1].text] += len(on)
            for number, line in same:
                found[number].add(line.box)
    if all(len(edge) == sum(map(len, page)) for edge, page in zip(found, pages, strict=True)):
        return [set() for _ in pages], Counter()  # otherwise no text would be left
    return found, counts
