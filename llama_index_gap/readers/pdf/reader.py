"""A PDF file as a record: its texts by page, its figures with captions, its pages as images."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from llama_index.core.utils import get_tqdm_iterable

from llama_index_gap.files import MAX_BYTES, FileError, open_file
from llama_index_gap.images.folders import forget_old_images, made_images
from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.readers.pdf.figures import (
    MOST_REGIONS,
    Region,
    drawing_regions,
    find_figures,
    image_regions,
)
from llama_index_gap.readers.pdf.layout import (
    Box,
    Line,
    Paragraph,
    cleaned,
    paragraphs_of,
    repeated_lines,
    words_in,
    written,
)
from llama_index_gap.readers.pdf.process import PdfCrash, PdfError, PdfProcess, has_pdfium
from llama_index_gap.readers.records import ImageReference, Record, Skipped, TextPart
from llama_index_gap.text import excerpt
from llama_index_gap.threads import stop_if_given_up

MAX_FILE = 2**30
"""Most bytes of a file."""
MOST_PAGES = 5_000
"""Most pages of a file that are read."""
_MOST_FIGURES = 2_000
_MOST_CRASHES = 3
# Seconds of processor time for a file, besides that for each of its pages and of its mebibytes.
_SECONDS, _SECONDS_OF_A_PAGE, _SECONDS_OF_A_MEBIBYTE = 60.0, 0.3, 20.0
_PAGE_SCALE, _LONGEST_PAGE = 150 / 72, 2_000
_DRAWING_SCALE, _LEAST_SCALE, _MOST_SCALE, _LONGEST_FIGURE = 200 / 72, 1.5, 300 / 72, 1_600
_MOST_TOLD = 10  # problems of one kind in one file
_FEWEST_REPEATS = 3  # pages with the same image, which is then decoration
_UNREADABLE = 0.3  # of a page's characters, so many whose letter is not known
_NO_TITLE = re.compile(
    r"untitled.*|unknown|none|\(?(anonymous|unspecified)\)?|.*\.(dvi|tex|docx?|indd|qxd|pptx?|ps)",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:(Z)|([+-])(\d\d)'?(\d\d)?'?)?"
)


@dataclass
class _Page:
    """What is kept of a page until all of them are known."""

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

    @property
    def about(self) -> dict[str, Any]:
        return {"page": self.index + 1, "page_label": self.label}


@dataclass
class _Told:
    """What was left out of a file, grouped by reason."""

    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.problems.setdefault(reason, []).append(where)

    def lines(self) -> list[str]:
        return [
            f"{reason}; {', '.join(places[:_MOST_TOLD])}"
            + (f" and {len(places) - _MOST_TOLD:,} more" if len(places) > _MOST_TOLD else "")
            for reason, places in self.problems.items()
        ]


class PdfReader:
    """Reads PDF files one after the other, in a process that it starts and ends.

    Args:
        pages: make every page an image, too.
        passwords: are tried on encrypted files.
        max_pixels: of an image in a file that is shown.
        show_progress: show a bar for each long file.
    """

    def __init__(
        self,
        *,
        pages: bool = False,
        passwords: Sequence[str] = (),
        max_pixels: int = MAX_PIXELS,
        show_progress: bool = False,
    ) -> None:
        self._pages, self._passwords = pages, list(passwords)
        self._max_pixels, self._show_progress = max_pixels, show_progress
        self._process = PdfProcess()

    def __enter__(self) -> PdfReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.close()

    def read(self, file: Path, name: str, root: Path | None = None) -> Record | Skipped:
        """Read one file.

        Args:
            file: a path.
            name: what the corpus calls it: the document's id.
            root: folder that it must lie in, links followed.
        """
        if not has_pdfium():
            return Skipped(
                name, "is a PDF file, which needs pypdfium2: pip install 'llama-index-gap[pdf]'"
            )
        try:
            with open_file(file, root) as opened:
                status = os.fstat(opened.fileno())
            if status.st_size > MAX_FILE:
                return Skipped(name, f"is larger than {MAX_FILE:,} bytes; split it")
            reading = _Reading(self._process, file.resolve(), status, self._passwords)
            about = reading.open()
        except (FileError, PdfError) as error:
            return Skipped(name, str(error))
        if not about["pages"]:
            return Skipped(name, "is damaged; it holds no page")
        told = _Told()
        pages = self._read_pages(reading, about, name, told)
        return self._record(reading, about, pages, name, told)

    def _read_pages(
        self, reading: _Reading, about: dict[str, Any], name: str, told: _Told
    ) -> list[_Page]:
        pages: list[_Page] = []
        characters = 0
        count = about["pages"]
        shows = self._show_progress and count > 20
        for index in get_tqdm_iterable(range(min(count, MOST_PAGES)), shows, f"Reading {name}"):
            stop_if_given_up()
            if problem := reading.stops(count):
                told.add(f"{problem}; the rest of the file is not read", f"from page {index + 1:,}")
                return pages
            try:
                answer = reading.ask("page", index=index)
            except PdfError as error:
                told.add(f"a page {error}", f"page {index + 1:,}")
                continue
            page = _page(index, answer)
            if answer["cut"]:
                told.add(
                    "a page holds too many characters or objects; only the first are read",
                    f"page {index + 1:,}",
                )
            if page.unreadable:
                told.add(
                    "its fonts do not say which letters they show; the page is read as an image",
                    f"page {index + 1:,}",
                )
            characters += sum(len(line.text) for lines in page.paragraphs for line in lines)
            if characters > MAX_BYTES:
                told.add(
                    f"holds more than {MAX_BYTES:,} characters; the rest of the file is not read",
                    f"from page {index + 1:,}",
                )
                return pages
            pages.append(page)
        if count > MOST_PAGES:
            told.add(
                f"has more than {MOST_PAGES:,} pages; the rest of the file is not read",
                f"{count:,} pages",
            )
        return pages

    def _record(
        self,
        reading: _Reading,
        about: dict[str, Any],
        pages: list[_Page],
        name: str,
        told: _Told,
    ) -> Record:
        words: Counter[str] = Counter()
        for page in pages:
            words += words_in(page.paragraphs)
        title = _title(about["about"]["Title"]) or _heading(pages)
        edges, headers = repeated_lines(
            [page.paragraphs for page in pages], [page.size[1] for page in pages]
        )
        on_pages = Counter(
            fingerprint
            for page in pages
            for fingerprint in {each for region in page.images for each in region.fingerprints}
        )
        repeated = frozenset(each for each, count in on_pages.items() if count >= _FEWEST_REPEATS)
        decoration = [
            f"is a header or footer; {excerpt(text, 80)!r} on {count:,} pages"
            for text, count in headers.most_common(_MOST_TOLD)
        ]
        if len(headers) > _MOST_TOLD:
            rest = sum(count for _, count in headers.most_common()[_MOST_TOLD:])
            decoration.append(f"is a header or footer; {rest:,} more lines")
        made = _Made(reading, told, self._max_pixels, whole_pages=self._pages)
        parts: list[TextPart] = []
        shows = self._show_progress and len(pages) > 20
        both = get_tqdm_iterable(
            list(zip(pages, edges, strict=True)), shows, f"Reading images of {name}"
        )
        for page, edge in both:
            stop_if_given_up()
            lines = [[line for line in each if line.box not in edge] for each in page.paragraphs]
            body = [paragraph for paragraph in lines if paragraph]
            text = written(body, words)
            filled = "\n".join(
                f"{field}: {value}" if field else value for field, value in page.fields
            )
            text = "\n\n".join(filter(None, [text, filled]))
            if text:
                parts.append(TextPart(f"page-{page.index + 1}", text, page.about))
            made.of_page(page, body, repeated, has_text=bool(text))
        decoration += made.decoration()
        if about["attachments"]:
            told.add("holds attached files, which are not read", f"{about['attachments']:,}")
        if about["xfa"]:
            told.add("is an XFA form, whose fields are not read", "save it as a common PDF file")
        metadata = {"author": _author(about["about"]["Author"]), "date": None}
        for date in (about["about"]["CreationDate"], about["about"]["ModDate"]):
            metadata["date"] = metadata["date"] or iso_date(date)
            if date and not iso_date(date):
                told.add("its date is not one", repr(date[:40]))
        return Record(
            name,
            name,
            title=title,
            images=made.images,
            metadata={key: value for key, value in metadata.items() if value},
            problems=told.lines(),
            parts=parts,
            decoration=decoration,
            version=about["digest"],
        )


class _Reading:
    """One open file; opened again where a page of it stopped the process."""

    def __init__(
        self, process: PdfProcess, path: Path, status: os.stat_result, passwords: list[str]
    ) -> None:
        self._process, self._path = process, path
        self._request = {
            "path": str(path),
            "identity": [status.st_dev, status.st_ino],
            "passwords": passwords,
        }
        self._mebibytes = status.st_size / 2**20
        self._begun = process.used
        self._crashes, self._is_open = 0, False
        self.about: dict[str, Any] = {}

    def open(self) -> dict[str, Any]:
        self._is_open = False
        self.about = self._process.ask("open", **self._request)
        self._is_open = True
        return self.about

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        if not self._is_open:
            self.open()
        try:
            return self._process.ask(do, **request)
        except PdfCrash:
            self._crashes += 1
            self._is_open = False
            raise

    def stops(self, pages: int) -> str:
        """Why no more of the file is read; empty if nothing is against it."""
        if self._crashes >= _MOST_CRASHES:
            return f"{self._crashes} of its pages stop pdfium or take too long"
        limit = _SECONDS + _SECONDS_OF_A_PAGE * pages + _SECONDS_OF_A_MEBIBYTE * self._mebibytes
        if self._process.used - self._begun > limit:
            return f"takes more than {limit:,.0f} seconds"
        return ""


class _Made:
    """The images that are made of a file's pages.

    Attributes:
        images: of figures and of pages.
    """

    def __init__(
        self, reading: _Reading, told: _Told, max_pixels: int, *, whole_pages: bool
    ) -> None:
        self._reading, self._told = reading, told
        self._max_pixels, self._whole_pages = max_pixels, whole_pages
        self._folder = made_images()
        self._figures = 0
        self._left_out: Counter[str] = Counter()
        self.images: list[ImageReference] = []
        forget_old_images()

    def of_page(
        self, page: _Page, body: list[Paragraph], repeated: frozenset[str], *, has_text: bool
    ) -> None:
        """Make the images of one page."""
        found = find_figures(page.images, page.drawings, body, page.size, repeated)
        self._left_out["is decoration, too small for a figure"] += found.small
        self._left_out["is decoration, the same image on several pages"] += found.repeated
        self._left_out["is a drawing that no caption calls a figure"] += found.drawings
        where = f"page {page.index + 1:,}"
        whole = self._whole_pages or found.page or page.unreadable
        if not (whole or has_text or found.figures):  # such as letters that are drawn as lines
            whole = bool(page.images or page.drawings)
            if not whole:
                self._told.add("a page is empty", where)
        if page.largest > self._max_pixels and (whole or found.figures):
            self._told.add(
                f"holds an image of more than max_pixels={self._max_pixels:,}; "
                "scale it down, or raise max_pixels if you trust the file",
                where,
            )
            return
        if whole:
            box = (0.0, 0.0, page.size[0], page.size[1])
            photo = any(region.pixels for region in page.images)
            self._render(page, "page", box, _PAGE_SCALE, _LONGEST_PAGE, "", photo=photo)
        for number, figure in enumerate(found.figures, start=1):
            if self._figures >= _MOST_FIGURES:
                self._told.add(f"holds more than {_MOST_FIGURES:,} figures", where)
                return
            self._figures += 1
            region = figure.region
            scale = min(max(region.pixels, _LEAST_SCALE), _MOST_SCALE) or _DRAWING_SCALE
            if region.kind == "drawing":
                scale = _DRAWING_SCALE
            name = f"figure-{number}"
            self._render(
                *(page, name, region.box, scale, _LONGEST_FIGURE, figure.caption),
                photo=region.kind == "image",
            )

    def decoration(self) -> list[str]:
        """What was left out by rule, with its number."""
        return [f"{reason}; {count:,}" for reason, count in self._left_out.items() if count]

    def _render(
        self,
        page: _Page,
        name: str,
        box: Box,
        scale: float,
        longest: int,
        caption: str,
        *,
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
                os.utime(path)  # it is not forgotten
            else:
                if problem := self._reading.stops(about["pages"]):
                    self._told.add(f"{problem}; the rest of its images is not read", where)
                    return
                self._folder.mkdir(parents=True, exist_ok=True)
                request = {"index": page.index, "turn": page.turn, "box": box, "scale": scale}
                answer = self._reading.ask("render", **request, path=str(path), photo=photo)
                if answer["blank"]:
                    self._left_out["is an image of nothing but white"] += 1
                    return
        except PdfError as error:
            self._told.add(f"an image of a page {error}", where)
            return
        except OSError as error:
            self._told.add(
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


def _page(index: int, answer: dict[str, Any]) -> _Page:
    """A page as the engine describes it, reduced to what is kept."""
    size = answer["size"]
    images = [(tuple(box), *rest) for box, *rest in answer["images"]]
    unreadable = answer["unknown"] > _UNREADABLE * max(answer["characters"], 1)
    segments = []
    for text, box, hidden, turned in answer["segments"]:
        # Text that nobody sees is what a scan shows, or was put there for machines alone.
        if hidden and not any(_covers(each[0], box) for each in images):
            continue
        if line := cleaned(text):
            segments.append(Line(line, tuple(box), turned))
    return _Page(
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
    )


def _covers(image: Box, text: Sequence[float]) -> bool:
    x, y = (text[0] + text[2]) / 2, (text[1] + text[3]) / 2
    return image[0] <= x <= image[2] and image[1] <= y <= image[3]


def _title(written_in: str) -> str:
    """The title that a file says, if it is one and not what a program put there."""
    title = " ".join(cleaned(written_in).removeprefix("Microsoft Word - ").split())
    return "" if _NO_TITLE.fullmatch(title) else title[:500]


def _heading(pages: Sequence[_Page]) -> str:
    """The first page's largest text, if it stands out."""
    paragraphs = pages[0].paragraphs if pages and pages[0].index == 0 else []
    lines = [line for paragraph in paragraphs for line in paragraph if not line.turned]
    if len(lines) < 3:
        return ""
    usual = sorted(line.height for line in lines)[len(lines) // 2]
    largest = max(paragraphs, key=lambda paragraph: paragraph[0].height)
    text = " ".join(line.text for line in largest)
    return text if largest[0].height > 1.25 * usual and len(text) <= 200 else ""


def _author(written_in: str) -> str:
    author = " ".join(cleaned(written_in).split())
    return "" if _NO_TITLE.fullmatch(author) else author[:500]


def iso_date(text: str) -> str:
    """A date of a PDF file, such as ``D:20240131120000+01'00'``, as ISO 8601 has it.

    Args:
        text: the date; what it does not say of the time is left out.

    Returns:
        Empty if it is no date.
    """
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return ""
    *parts, utc, sign, hours, minutes = match.groups()
    numbers = [int(part) for part in parts if part]
    try:
        zone = timezone.utc if utc else None
        if sign:
            offset = timedelta(hours=int(hours), minutes=int(minutes or 0))
            zone = timezone(-offset if sign == "-" else offset)
        year, month, day, *clock = [*numbers, 1, 1][: max(len(numbers), 3)]
        date = datetime(year, month, day, *clock, tzinfo=zone)
    except (ValueError, OverflowError):
        return ""
    return date.isoformat() if clock else date.date().isoformat()
