"""Finds the figures of a page and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llama_index_gap.readers.pdf.labels import label_of
from llama_index_gap.readers.pdf.layout import Box, Line, Paragraph
from llama_index_gap.text import excerpt

MOST_REGIONS = 300
"""The most images of a page, and the most drawings, that may be figures."""
PAGE_SHARE = 0.75
"""An image that covers at least this share of a page's area is a scan of the page."""
_LEAST_SIDE = 24.0  # points; smaller images are logos, icons, bullets
_LEAST_PIXELS = 24
_LEAST_SHARE = 0.004  # of the page's area
_BACKGROUND = 0.8  # a drawing over a larger share of the page is a background
_IMAGE_GAP, _DRAWING_GAP = 2.0, 10.0  # points between parts of one figure
_CELLS = 300  # along the longer side of the raster that joins parts
_REACH = 0.12  # of the page's height: the largest distance of a caption
_LONGEST_CAPTION, _LONGEST_NEAREST = 1_500, 300
_LONGEST_LABEL = 60  # characters of a label in a drawing
_FAR = 1e6

Kind = Literal["image", "drawing"]


@dataclass(frozen=True)
class Region:
    """Images or drawings that lie together.

    Attributes:
        box: left, top, right, bottom.
        kind: whether it is made of images or of drawings only.
        pixels: pixels per point of its stored images; 0 for drawings.
        fingerprints: the fingerprints of its images.
    """

    box: Box
    kind: Kind
    pixels: float = 0.0
    fingerprints: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A part of a page to be rendered, with its caption."""

    region: Region
    caption: str


@dataclass
class FoundFigures:
    """The figures of a page, and counts of images and drawings that are not figures.

    Attributes:
        figures: the figures, from top to bottom.
        page: whether the page is a scan, covered by one image.
        small: number of images that are too small for a figure.
        repeated: number of images that are also on other pages.
        drawings: number of drawings without a figure's caption.
    """

    figures: list[Figure] = field(default_factory=list)
    page: bool = False
    small: int = 0
    repeated: int = 0
    drawings: int = 0


@dataclass(frozen=True)
class _Caption:
    text: str
    box: Box
    is_figure: bool


def image_regions(
    images: Sequence[tuple[Box, int, int, str]], size: Sequence[float]
) -> list[Region]:
    """The images of a page as regions; strips of one image are joined.

    Args:
        images: for each image its box, width and height in pixels, and fingerprint.
        size: width and height of the page.
    """
    regions = []
    for members in _joined([box for box, *_ in images], size, _IMAGE_GAP):
        parts = [images[index] for index in members]
        pixels = max(
            width / max(box[2] - box[0], 1e-3) if (box[2] - box[0]) else 0.0
            for box, width, _, _ in parts
        )
        fingerprints = frozenset(fingerprint for *_, fingerprint in parts)
        regions.append(Region(_around([box for box, *_ in parts]), "image", pixels, fingerprints))
    return regions


def drawing_regions(drawings: Sequence[Box], size: Sequence[float]) -> list[Region]:
    """Groups of lines and shapes that lie together; backgrounds are left out."""
    page = size[0] * size[1]
    kept = [box for box in drawings if _area(box) < _BACKGROUND * page]
    return [
        Region(_around([kept[index] for index in members]), "drawing")
        for members in _joined(kept, size, _DRAWING_GAP)
    ]


def find_figures(
    images: Sequence[Region],
    drawings: Sequence[Region],
    paragraphs: Sequence[Paragraph],
    size: Sequence[float],
    repeated: frozenset[str],
) -> FoundFigures:
    """Find the figures of a page: images that are not decoration, drawings with a figure's caption.

    Args:
        images: the result of ``image_regions``.
        drawings: the result of ``drawing_regions``.
        paragraphs: the page's paragraphs, without headers and footers.
        size: width and height of the page.
        repeated: fingerprints of the images that are on several pages.
    """
    found = FoundFigures()
    page = size[0] * size[1]
    large: list[Region] = []
    for region in images:
        again = bool(region.fingerprints) and region.fingerprints <= repeated
        if _area(region.box) >= PAGE_SHARE * page:
            found.page = found.page or not again
            found.repeated += again
        elif not _is_large(region, page):
            found.small += 1
        else:
            large.append(region)
    if found.page:
        return found
    parts = _with_drawings(large, [each for each in drawings if _is_large(each, page)])
    captions = _captions(paragraphs)
    taken = _assigned(parts, captions, paragraphs, _REACH * size[1])
    drawn: dict[int, list[Box]] = {}
    for index, region in enumerate(parts):
        caption = captions[taken[index]] if index in taken else None
        if region.kind == "drawing" and caption is not None and caption.is_figure:
            drawn.setdefault(taken[index], []).append(region.box)
        elif region.kind == "image" and (caption or not region.fingerprints <= repeated):
            text = caption.text if caption else _nearest_text(region.box, paragraphs, size[1] / 2)
            found.figures.append(Figure(region, text))
        elif region.kind == "image":
            found.repeated += 1
    for number, boxes in drawn.items():
        box = _with_labels(_around(boxes), captions[number], paragraphs, size)
        found.figures.append(Figure(Region(box, "drawing"), captions[number].text))
    found.figures.sort(key=lambda figure: (figure.region.box[1], figure.region.box[0]))
    within = sum(region.kind == "image" and region not in large for region in parts)
    found.drawings = len(drawings) - within - sum(map(len, drawn.values()))
    return found


# --- parts that lie together ---------------------------------------------------------------------


def _joined(boxes: Sequence[Box], size: Sequence[float], gap: float) -> list[list[int]]:
    """Groups of boxes that touch or nearly touch on a raster; time is linear in their number."""
    from scipy import ndimage

    if len(boxes) < 2:
        return [[0]] * len(boxes)
    cell = max(1.0, max(size) / _CELLS)
    places = np.array(boxes, dtype=np.float64)
    grow = gap / 2
    limits = [max(1, int(side / cell) + 2) for side in size]
    starts = [
        np.clip((places[:, axis] - grow) / cell, 0, limits[axis] - 1).astype(int) for axis in (0, 1)
    ]
    ends = [
        np.clip((places[:, axis + 2] + grow) / cell, 0, limits[axis] - 1).astype(int) + 1
        for axis in (0, 1)
    ]
    raster: NDArray[np.int32] = np.zeros((limits[1] + 1, limits[0] + 1), dtype=np.int32)
    for rows, columns, step in (
        (starts[1], starts[0], 1),
        (ends[1], ends[0], 1),
        (starts[1], ends[0], -1),
        (ends[1], starts[0], -1),
    ):
        np.add.at(raster, (rows, columns), step)
    covered = raster.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32) > 0
    labels, _ = ndimage.label(covered, structure=np.ones((3, 3)))
    own = labels[starts[1], starts[0]]
    order = np.argsort(own, kind="stable")
    edges = np.flatnonzero(np.diff(own[order])) + 1
    groups = [group.tolist() for group in np.split(order, edges)]
    groups.sort(key=lambda group: -_area(_around([boxes[index] for index in group])))
    return groups[:MOST_REGIONS]


def _around(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _is_large(region: Region, page: float) -> bool:
    width, height = region.box[2] - region.box[0], region.box[3] - region.box[1]
    if min(width, height) < _LEAST_SIDE or width * height < _LEAST_SHARE * page:
        return False
    return region.kind == "drawing" or region.pixels * min(width, height) >= _LEAST_PIXELS


def _with_drawings(images: Sequence[Region], drawings: Sequence[Region]) -> list[Region]:
    """Join frames and arrows to the image under them, and images to the drawing around them."""
    parts = list(images)
    for drawing in drawings:
        over = [each for each in parts if each.kind == "image" and _overlap(each.box, drawing.box)]
        if not over:
            parts.append(drawing)
            continue
        parts = [each for each in parts if each not in over]
        parts.append(
            Region(
                _around([drawing.box, *(each.box for each in over)]),
                "image",
                max(each.pixels for each in over),
                frozenset().union(*(each.fingerprints for each in over)),
            )
        )
    return parts


def _overlap(first: Box, second: Box) -> bool:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width > 0 and height > 0 and width * height > 0.5 * min(_area(first), _area(second))


# --- captions ------------------------------------------------------------------------------------


def _captions(paragraphs: Sequence[Paragraph]) -> list[_Caption]:
    """The captions of figures and tables, each from its first line to its paragraph's end."""
    found: list[_Caption] = []
    for paragraph in paragraphs:
        lines: list[Line] = []
        is_figure = True
        for number, line in enumerate(paragraph):
            starts = number == 0 or paragraph[number - 1].text.rstrip()[-1:] in ".!?。：:"
            label = label_of(line.text) if starts else None
            if label is not None:
                if lines:
                    found.append(_caption(lines, is_figure))
                lines, is_figure = [line], label == "figure"
            elif lines:
                lines.append(line)
        if lines:
            found.append(_caption(lines, is_figure))
    return found


def _caption(lines: Sequence[Line], is_figure: bool) -> _Caption:
    text = excerpt(" ".join(line.text for line in lines), _LONGEST_CAPTION)
    return _Caption(text, _around([line.box for line in lines]), is_figure)


def _assigned(
    parts: Sequence[Region],
    captions: Sequence[_Caption],
    paragraphs: Sequence[Paragraph],
    reach: float,
) -> dict[int, int]:
    """Give each part a caption: first one to one, then the remaining parts share the nearest.

    A caption below a part is preferred to one above. All parts of a page are matched at once, so
    that no part takes a neighbour's caption where captions are above their figures.
    """
    from scipy.optimize import linear_sum_assignment

    if not parts or not captions:
        return {}
    costs = np.array(
        [[_distance(part.box, caption.box, reach) for caption in captions] for part in parts]
    )
    texts = [
        _around([line.box for line in paragraph])
        for paragraph in paragraphs
        if sum(len(line.text) for line in paragraph) > 2 * _LONGEST_LABEL
    ]
    for row, column in zip(*np.nonzero(costs < _FAR), strict=True):
        between = _between(parts[row].box, captions[column].box)
        if any(_overlap(between, text) for text in texts):
            costs[row, column] = _FAR
    rows, columns = linear_sum_assignment(costs)
    taken = {
        int(row): int(column)
        for row, column in zip(rows, columns, strict=True)
        if costs[row, column] < _FAR
    }
    for row in range(len(parts)):
        if row not in taken and costs[row].min() < _FAR:
            taken[row] = int(costs[row].argmin())
    # A part beside one with a caption, such as the second of two plots, shares it.
    for row, part in enumerate(parts):
        beside = [
            (abs(part.box[0] - parts[other].box[0]), column)
            for other, column in taken.items()
            if other != row
            and min(part.box[3], parts[other].box[3]) - max(part.box[1], parts[other].box[1])
            > 0.5 * (part.box[3] - part.box[1])
            and _distance(_around([part.box, parts[other].box]), captions[column].box, reach) < _FAR
        ]
        if row not in taken and beside:
            taken[row] = min(beside)[1]
    return taken


def _distance(part: Box, caption: Box, reach: float) -> float:
    """The cost of matching a caption to a part; ``_FAR`` if they are too far apart."""
    across = min(part[2], caption[2]) - max(part[0], caption[0])
    if across > 0.3 * min(part[2] - part[0], caption[2] - caption[0]):
        below, above = caption[1] - part[3], part[1] - caption[3]
        gap, cost = (below, 1.0) if below > above else (above, 1.3)
        # The gap is negative inside: some drawings have a frame around the caption too.
        return max(gap, 0.0) * cost + cost if gap < reach else _FAR
    down = min(part[3], caption[3]) - max(part[1], caption[1])
    beside = max(caption[0] - part[2], part[0] - caption[2])
    if down > 0.5 * (caption[3] - caption[1]) and beside < 0.5 * reach:
        return max(beside, 0.0) + 0.25 * reach
    return _FAR


def _between(first: Box, second: Box) -> Box:
    """The space between two boxes that lie above or beside each other."""
    lefts, rights = (first[0], second[0]), (first[2], second[2])
    tops, bottoms = (first[1], second[1]), (first[3], second[3])
    if min(bottoms) < max(tops):
        return max(lefts), min(bottoms), min(rights), max(tops)
    return min(rights), max(tops), max(lefts), min(bottoms)


def _nearest_text(box: Box, paragraphs: Sequence[Paragraph], reach: float) -> str:
    """The nearest text to an image without a caption; text below counts as nearer than above."""
    best: tuple[float, str] = (reach, "")
    for paragraph in paragraphs:
        around = _around([line.box for line in paragraph])
        across = max(around[0] - box[2], box[0] - around[2], 0.0)
        below, above = around[1] - box[3], box[1] - around[3]
        distance = across + (max(below, 0.0) if below >= above else 1.5 * max(above, 0.0))
        text = " ".join(line.text for line in paragraph)
        if distance < best[0] and any(map(str.isalpha, text)):
            best = (distance, text)
    return excerpt(best[1], _LONGEST_NEAREST)


def _with_labels(
    box: Box, caption: _Caption, paragraphs: Sequence[Paragraph], size: Sequence[float]
) -> Box:
    """A drawing's box, extended by labels at its edges, such as on axes, up to its caption."""
    labels = [
        line.box
        for paragraph in paragraphs
        if sum(len(line.text) for line in paragraph) <= _LONGEST_LABEL
        for line in paragraph
        if line.box[1] >= caption.box[3] or line.box[3] <= caption.box[1]
    ]
    for _ in range(2):
        near = [
            label
            for label in labels
            if label[0] < box[2] + 12
            and label[2] > box[0] - 12
            and label[1] < box[3] + 12
            and label[3] > box[1] - 12
        ]
        box = _around([box, *near])
    left, top, right, bottom = box
    if caption.box[1] > (top + bottom) / 2:
        bottom = min(bottom + 2, max(caption.box[1], top + _LEAST_SIDE))
    elif caption.box[3] < (top + bottom) / 2:
        top = max(top - 2, min(caption.box[3], bottom - _LEAST_SIDE))
    return max(left - 2, 0.0), max(top, 0.0), min(right + 2, size[0]), min(bottom, size[1])
