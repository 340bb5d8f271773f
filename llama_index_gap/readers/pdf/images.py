"""Makes images of a PDF file's figures and pages."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter

from llama_index_gap.images.folders import forget_old_images, made_images
from llama_index_gap.readers.pdf.figures import find_figures
from llama_index_gap.readers.pdf.layout import Box, Paragraph
from llama_index_gap.readers.pdf.page import Page
from llama_index_gap.readers.pdf.process import PdfError
from llama_index_gap.readers.pdf.reading import Problems, Reading
from llama_index_gap.readers.records import ImageReference

_MOST_FIGURES = 2_000
_PAGE_SCALE, _LONGEST_PAGE = 150 / 72, 2_000
_DRAWING_SCALE, _LEAST_SCALE, _MOST_SCALE, _LONGEST_FIGURE = 200 / 72, 1.5, 300 / 72, 1_600


class PageImages:
    """Makes the images of one file.

    Attributes:
        images: the images of its figures and pages so far.
    """

    def __init__(
        self, reading: Reading, problems: Problems, max_pixels: int, *, whole_pages: bool
    ) -> None:
        self._reading, self._problems = reading, problems
        self._max_pixels, self._whole_pages = max_pixels, whole_pages
        self._folder = made_images()
        self._figures = 0
        self._left_out: Counter[str] = Counter()
        self.images: list[ImageReference] = []
        forget_old_images()

    def of_page(
        self, page: Page, body: list[Paragraph], repeated: frozenset[str], *, has_text: bool
    ) -> None:
        """Make the images of one page."""
        found = find_figures(page.images, page.drawings, body, page.size, repeated)
        self._left_out["is decoration, too small for a figure"] += found.small
        self._left_out["is decoration, the same image on several pages"] += found.repeated
        self._left_out["is a drawing without a figure's caption"] += found.drawings
        where = f"page {page.index + 1:,}"
        whole = self._whole_pages or found.page or page.unreadable
        if not (whole or has_text or found.figures):  # such as letters drawn as lines
            whole = bool(page.images or page.drawings)
            if not whole:
                self._left_out["is an empty page"] += 1
        if page.largest > self._max_pixels and (whole or found.figures):
            self._problems.add(
                f"holds an image of more than max_pixels={self._max_pixels:,}; "
                "scale it down, or raise max_pixels if you trust the file",
                where,
            )
            return
        if whole:
            box = (0.0, 0.0, page.size[0], page.size[1])
            photo = any(region.pixels for region in page.images)
            self._render(page, "page", box, scale=_PAGE_SCALE, longest=_LONGEST_PAGE, photo=photo)
        for number, figure in enumerate(found.figures, start=1):
            if self._figures >= _MOST_FIGURES:
                self._problems.add(f"holds more than {_MOST_FIGURES:,} figures", where)
                return
            self._figures += 1
            region, drawn = figure.region, figure.region.kind == "drawing"
            native = min(max(region.pixels, _LEAST_SCALE), _MOST_SCALE)
            self._render(
                page,
                f"figure-{number}",
                region.box,
                scale=_DRAWING_SCALE if drawn else native,
                longest=_LONGEST_FIGURE,
                caption=figure.caption,
                photo=not drawn,
            )

    def decoration(self) -> list[str]:
        """The parts that were left out by rule, with their counts."""
        return [f"{reason}; {count:,}" for reason, count in self._left_out.items() if count]

    def _render(
        self,
        page: Page,
        name: str,
        box: Box,
        *,
        scale: float,
        longest: int,
        caption: str = "",
        photo: bool,
    ) -> None:
        where = f"page {page.index + 1:,}"
        scale = min(scale, longest / max(box[2] - box[0], box[3] - box[1], 1.0))
        about = self._reading.about
        made_from = [about["digest"], about["engine"], page.index, page.turn, box, scale, photo]
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        path = self._folder / f"{key}.{'jpg' if photo else 'png'}"
        try:
            if path.is_file():
                os.utime(path)  # keeps it from being forgotten
            else:
                if problem := self._reading.stops(about["pages"]):
                    self._problems.add(f"{problem}; the rest of its images are not read", where)
                    return
                self._folder.mkdir(parents=True, exist_ok=True)
                request = {"index": page.index, "turn": page.turn, "box": box, "scale": scale}
                answer = self._reading.ask("render", **request, path=str(path), photo=photo)
                if answer["shows"] == "damage":
                    self._problems.add("an image is damaged or of a kind that is not read", where)
                if answer["shows"] == "nothing":
                    self._left_out["is a completely white image"] += 1
                if answer["shows"] != "something":
                    return
        except PdfError as error:
            self._problems.add(f"an image of a page {error}", where)
            return
        except OSError as error:
            self._problems.add(
                f"an image cannot be written to {self._folder} ({error.strerror})", where
            )
            return
        self.images.append(
            ImageReference(
                str(path),
                caption,
                made_in=self._folder,
                name=f"page-{page.index + 1}" + ("" if name == "page" else f"-{name}"),
                metadata={**page.about, "image_kind": "page" if name == "page" else "figure"},
            )
        )
