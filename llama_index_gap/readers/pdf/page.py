"""The data of one page that is kept until the whole file has been read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index_gap.readers.pdf.figures import Region, drawing_regions, image_regions
from llama_index_gap.readers.pdf.layout import Box, Line, Paragraph, cleaned, paragraphs_of

_UNREADABLE = 0.3  # a page with more than this share of unknown characters is unreadable


@dataclass
class Page:
    """The data of one page that is kept until the whole file has been read."""

    index: int
    label: str
    size: list[float]
    turn: int
    paragraphs: list[Paragraph]
    fields: list[list[str]]
    images: list[Region]
    drawings: list[Region]
    largest: int  # pixels of its largest image
    unreadable: bool
    unseen: bool  # whether invisible text was left out

    @property
    def about(self) -> dict[str, Any]:
        """The page's metadata for nodes."""
        return {"page": self.index + 1, "page_label": self.label}


def page_of(index: int, answer: dict[str, Any]) -> Page:
    """Make a page from the engine's answer."""
    size = answer["size"]
    images = [(tuple(box), *rest) for box, *rest in answer["images"]]
    unreadable = answer["unknown"] > _UNREADABLE * max(answer["characters"], 1)
    segments = []
    unseen = False
    for text, box, hidden, turned in answer["segments"]:
        # Invisible text over an image is a scan's text; elsewhere it is meant for machines.
        outside = box[2] < 0 or box[3] < 0 or box[0] > size[0] or box[1] > size[1]
        if outside or (hidden and not any(_covers(each[0], box) for each in images)):
            unseen = True
            continue
        if line := cleaned(text):
            segments.append(Line(line, tuple(box), turned))
    return Page(
        index=index,
        label=cleaned(answer["label"]) or str(index + 1),
        size=size,
        turn=answer["turn"],
        paragraphs=[] if unreadable else paragraphs_of(segments),
        fields=[[cleaned(name), cleaned(value)] for name, value in answer["fields"]],
        images=image_regions(images, size),
        drawings=drawing_regions([tuple(box) for box in answer["drawings"]], size),
        largest=max((width * height for _, width, height, _ in images), default=0),
        unreadable=unreadable,
        unseen=unseen,
    )


def _covers(image: Box, text: Sequence[float]) -> bool:
    x, y = (text[0] + text[2]) / 2, (text[1] + text[3]) / 2
    return image[0] <= x <= image[2] and image[1] <= y <= image[3]


def heading_of(pages: Sequence[Page]) -> str:
    """The first page's largest text, if it stands out."""
    paragraphs = pages[0].paragraphs if pages and pages[0].index == 0 else []
    lines = [line for paragraph in paragraphs for line in paragraph if not line.turned]
    if len(lines) < 3:
        return ""
    usual = sorted(line.height for line in lines)[len(lines) // 2]
    upright = [paragraph for paragraph in paragraphs if not paragraph[0].turned]
    largest = max(upright, key=lambda paragraph: paragraph[0].height)
    text = " ".join(line.text for line in largest)
    return text if largest[0].height > 1.25 * usual and len(text) <= 200 else ""
