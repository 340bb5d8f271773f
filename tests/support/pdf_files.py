"""PDF files of common kinds, made at test time."""

from __future__ import annotations

import random
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

canvas = pytest.importorskip("reportlab.pdfgen.canvas", reason="reportlab makes the PDF files")
pypdf = pytest.importorskip("pypdf", reason="pypdf makes the PDF files")
pytest.importorskip("pypdfium2", reason="the extra pdf reads the PDF files")

from reportlab.lib.utils import ImageReader  # noqa: E402
from reportlab.pdfbase import pdfmetrics  # noqa: E402
from reportlab.pdfbase.cidfonts import UnicodeCIDFont  # noqa: E402
from reportlab.pdfbase.ttfonts import TTFont  # noqa: E402

WIDTH, HEIGHT = 600, 800
LINE = 14
WORDS = (
    "river mountain letter engine garden window silver harbour lantern meadow station copper "
    "planet forest bridge market kitchen village painter violin compass feather orchard"
)


def words(count: int, seed: int = 0) -> str:
    """A made-up text of ``count`` words."""
    return " ".join(random.Random(seed).choices(WORDS.split(), k=count))


def photo(seed: int = 0, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """An image with smooth shapes, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


class Page(canvas.Canvas):  # type: ignore[misc, name-defined]
    """A file that is drawn page by page; y points upwards, in points."""

    def __init__(self, **settings: Any) -> None:
        self.data = BytesIO()
        super().__init__(self.data, pagesize=(WIDTH, HEIGHT), invariant=1, **settings)
        self.setTitle("")
        self.setAuthor("")

    def lines(self, x: float, y: float, lines: Iterable[str]) -> float:
        """Draw lines below each other; return the place below them."""
        for line in lines:
            self.drawString(x, y, line)
            y -= LINE
        return y

    def text(self, x: float, y: float, text: str, characters: int = 80) -> float:
        """Draw a text in lines of at most ``characters`` characters."""
        lines, line = [], ""
        for word in text.split():
            if len(line) + len(word) >= characters:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        return self.lines(x, y, [*lines, line])

    def image(self, image: Image.Image, x: float, y: float, width: float, height: float) -> None:
        """Draw an image."""
        self.drawImage(ImageReader(image), x, y, width, height)

    def chart(self, x: float, y: float, width: float = 200, height: float = 120) -> None:
        """Draw bars in a frame, with lines and shapes only."""
        self.line(x, y, x + width, y)
        self.line(x, y, x, y + height)
        for bar in range(5):
            self.rect(x + 15 + bar * 35, y, 25, (bar + 1) * height / 6, fill=1)

    def finished(self) -> bytes:
        """The file."""
        self.save()
        return self.data.getvalue()


def two_columns(rows_first: bool = False) -> bytes:
    """A title and an abstract over the whole width, then two columns.

    Args:
        rows_first: whether the file holds the lines of both columns row by row.
    """
    page = Page()
    page.setFontSize(20)
    page.drawCentredString(WIDTH / 2, 740, "On columns")
    page.setFontSize(10)
    page.text(50, 700, f"Abstract. {words(40, 1)}.", 100)
    left = [f"left {number} {words(4, number)}" for number in range(12)]
    right = [f"right {number} {words(4, 50 + number)}" for number in range(12)]
    if rows_first:
        for number, pair in enumerate(zip(left, right, strict=True)):
            for x, line in zip((50, 320), pair, strict=True):
                page.drawString(x, 620 - LINE * number, line)
    else:
        for x, lines in ((50, left), (320, right)):
            page.lines(x, 620, lines)
    return page.finished()


def figures() -> bytes:
    """Two photos in the text, each with its caption, and one without a label."""
    page = Page()
    y = page.text(50, 740, words(60, 2))
    page.image(photo(1), 150, y - 160, 200, 150)
    page.drawString(150, y - 180, "Figure 1: A lantern in the harbour.")
    y = page.text(50, y - 220, words(60, 3))
    page.image(photo(2), 150, y - 160, 200, 150)
    page.lines(150, y - 180, ["Fig. 2. A violin beside the window,", "seen from the garden."])
    page.showPage()
    page.text(50, 740, f"Figure 1 shows nothing of this. {words(40, 4)}")
    page.image(photo(3), 150, 400, 200, 150)
    page.drawString(150, 380, "The station at night")
    return page.finished()


def drawings() -> bytes:
    """A chart with a caption, a table with rules and its caption, and a rule below a heading."""
    page = Page()
    page.drawString(50, 750, "Heading")
    page.line(50, 745, 550, 745)
    page.text(50, 720, words(50, 5))
    page.chart(150, 500)
    page.drawString(220, 485, "year of harvest")
    page.drawString(150, 460, "Abb. 3: Ernten nach Jahren")
    page.drawString(50, 400, "Table 1: Harvests")
    for row in range(4):
        page.line(50, 390 - 20 * row, 300, 390 - 20 * row)
        page.line(50 + 80 * row, 390, 50 + 80 * row, 330)
    for row in range(3):
        for column in range(3):
            page.drawString(55 + 80 * column, 375 - 20 * row, f"cell {row}{column}")
    return page.finished()


def scanned(hidden: str = "") -> bytes:
    """Two scanned pages; the second has the hidden text that a program recognised."""
    page = Page()
    for number in (0, 1):
        page.image(photo(10 + number, (600, 800)), 0, 0, WIDTH, HEIGHT)
        if number and hidden:
            text = page.beginText(50, 700)
            text.setTextRenderMode(3)
            text.textLine(hidden)
            page.drawText(text)
        page.showPage()
    return page.finished()


def rotated(turn: int) -> bytes:
    """A page that viewers rotate, with upright text and a figure.

    Args:
        turn: degrees: 0, 90, 180 or 270.
    """
    page = Page()
    page.setPageRotation(turn)
    page.saveState()
    match turn:  # reportlab swaps width and height of a page on its side
        case 90:
            page.translate(HEIGHT, 0)
        case 180:
            page.translate(WIDTH, HEIGHT)
        case 270:
            page.translate(0, WIDTH)
    page.rotate(turn)
    page.lines(60, 520, ["The first line stands above.", "The second line follows it."])
    half = Image.new("RGB", (100, 100), "red")
    half.paste("blue", (0, 50, 100, 100))
    page.image(half, 60, 300, 150, 150)
    page.drawString(60, 280, "Figure 7: red above blue")
    page.restoreState()
    return page.finished()


def with_pypdf(data: bytes, change: Any) -> bytes:
    """A file changed by pypdf."""
    writer = pypdf.PdfWriter(clone_from=BytesIO(data))
    change(writer)
    changed = BytesIO()
    writer.write(changed)
    return changed.getvalue()


def encrypted(password: str = "secret", owner: str | None = None) -> bytes:
    """A file that needs a password to open; with an empty one, only its owner may change it."""
    return with_pypdf(
        figures(), lambda writer: writer.encrypt(password, owner or password, algorithm="AES-256")
    )


def form() -> bytes:
    """A form with a text, a ticked and an unticked box, and a choice."""
    page = Page()
    page.drawString(50, 740, "Application")
    fields = page.acroForm
    fields.textfield(name="name", tooltip="Full name", value="Ada Lovelace", x=150, y=690)
    fields.checkbox(name="member", tooltip="Member", checked=True, x=150, y=640)
    fields.checkbox(name="leaver", tooltip="Leaver", checked=False, x=150, y=610)
    fields.choice(name="city", tooltip="City", value="Oslo", options=["Oslo", "Rome"], x=150, y=560)
    return page.finished()


def arabic_font() -> Path:
    """A font with Arabic letters; the test is skipped if there is none."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib brings an Arabic font")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def arabic(lines: Iterable[str]) -> bytes:
    """Arabic as programs store it: glyphs from left to right, the last letter first."""
    pdfmetrics.registerFont(TTFont("Arabic", str(arabic_font())))
    page = Page()
    page.setFont("Arabic", 14)
    for number, line in enumerate(lines):
        page.drawRightString(550, 740 - 20 * number, line[::-1])
    return page.finished()


def chinese(lines: Iterable[str], image: Image.Image | None = None, caption: str = "") -> bytes:
    """Chinese with line breaks between any two characters."""
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    page = Page()
    page.setFont("STSong-Light", 14)
    for number, line in enumerate(lines):
        page.drawString(50, 740 - 18 * number, line)
    if image is not None:
        page.image(image, 150, 400, 200, 150)
        page.drawString(150, 380, caption)
    return page.finished()


def report(pages: int, every: int = 5) -> bytes:
    """A long report: headers, footers, a logo, a rule, two paragraphs, and some figures.

    Args:
        pages: number of pages.
        every: pages whose number this divides have a figure.
    """
    page = Page()
    page.setTitle("A long report")
    page.setAuthor("Ada Lovelace")
    logo = photo(99, (40, 40))
    kept = [photo(seed) for seed in range(20)]
    for number in range(1, pages + 1):
        page.drawString(50, 775, "Annual report of the orchard")
        page.drawRightString(550, 775, f"Chapter {number % 7}")
        page.image(logo, 10, 765, 30, 30)
        page.line(50, 770, 550, 770)
        y = page.text(50, 740, f"Page {number} begins. {words(150, number)}")
        y = page.text(50, y - LINE, words(150, number + 10_000))
        if number % every == 0:
            page.image(kept[number % 20].rotate(number % 360), 150, y - 170, 200, 150)
            page.drawString(150, y - 190, f"Figure {number}: The view of page {number}.")
        page.drawCentredString(WIDTH / 2, 25, f"– {number} –")
        page.showPage()
    return page.finished()
