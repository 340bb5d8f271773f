"""Places on a page: in PDF coordinates, and on the upright page."""

from __future__ import annotations

import pypdfium2
import pypdfium2.raw as pdfium

Box = tuple[float, float, float, float]


class Frame:
    """Converts a page's PDF coordinates to those of the upright page.

    Args:
        area: the visible area of the page: left, bottom, right, top.
        turn: clockwise quarter turns that make its text upright.
    """

    def __init__(self, area: Box, turn: int) -> None:
        self._area, self._turn = area, turn
        width, height = area[2] - area[0], area[3] - area[1]
        self.size = [height, width] if turn % 2 else [width, height]

    def of(self, box: Box) -> list[float]:
        """Left, top, right, bottom from the top left corner."""
        left, bottom, right, top = box
        x0, y0, x1, y1 = self._area
        match self._turn:
            case 0:
                turned = (left - x0, y1 - top, right - x0, y1 - bottom)
            case 1:
                turned = (bottom - y0, left - x0, top - y0, right - x0)
            case 2:
                turned = (x1 - right, bottom - y0, x1 - left, top - y0)
            case _:
                turned = (y1 - top, x1 - right, y1 - bottom, x1 - left)
        return [round(each, 2) for each in turned]


def area_of(page: pypdfium2.PdfPage) -> Box:
    """The visible area of a page, in PDF coordinates."""
    rect = pdfium.FS_RECTF()
    pdfium.FPDF_GetPageBoundingBox(page, rect)
    return rect.left, rect.bottom, rect.right, rect.top
