"""Turns a PDF file into a record: texts by page, figures with captions, pages as images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from llama_index_gap.files import MAX_BYTES, FileError, open_file
from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.progress import Progress
from llama_index_gap.readers.pdf.about import author_of, iso_date, title_of
from llama_index_gap.readers.pdf.images import PageImages
from llama_index_gap.readers.pdf.layout import repeated_lines, words_in, written
from llama_index_gap.readers.pdf.page import Page, heading_of, page_of
from llama_index_gap.readers.pdf.process import PdfError, PdfProcess, has_pdfium
from llama_index_gap.readers.pdf.reading import Problems, Reading
from llama_index_gap.readers.records import Record, Skipped, TextPart
from llama_index_gap.text import excerpt
from llama_index_gap.threads import stop_if_given_up

MAX_FILE = 2**30
"""The most bytes of a file."""
MOST_PAGES = 5_000
"""The most pages of a file that are read."""
_MOST_HEADERS = 10  # lines of headers and footers that are named
_FEWEST_REPEATS = 3  # an image on this many pages is decoration


class PdfReader:
    """Reads PDF files one after the other, in a process that it starts and ends.

    Args:
        pages: also make an image of every page.
        passwords: passwords to try on encrypted files.
        max_pixels: the most pixels of an image in a file.
        show_progress: show a progress bar for each long file.
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
            file: its path.
            name: its name in the corpus, which is the document's id.
            root: folder that it must lie in, after links are resolved.
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
            reading = Reading(self._process, file.resolve(), status, self._passwords)
            about = reading.open()
        except (FileError, PdfError) as error:
            return Skipped(name, str(error))
        if not about["pages"]:
            return Skipped(name, "is damaged; it holds no page")
        problems = Problems()
        if about["repaired"]:
            problems.add("is damaged", f"{about['pages']:,} of its pages were found and are read")
        pages = self._read_pages(reading, about, name, problems)
        return self._record(reading, about, pages, name, problems)

    def _read_pages(
        self, reading: Reading, about: dict[str, Any], name: str, problems: Problems
    ) -> list[Page]:
        pages: list[Page] = []
        characters = 0
        count = about["pages"]
        shows = self._show_progress and count > 20
        for index in Progress(range(min(count, MOST_PAGES)), f"Reading {name}", disable=not shows):
            stop_if_given_up()
            if problem := reading.stops(count):
                problems.add(
                    f"{problem}; the rest of the file is not read", f"from page {index + 1:,}"
                )
                return pages
            try:
                answer = reading.ask("page", index=index)
            except PdfError as error:
                problems.add(f"a page {error}", f"page {index + 1:,}")
                continue
            page = page_of(index, answer)
            if answer["cut"]:
                problems.add(
                    "a page holds too many characters or objects; only the first are read",
                    f"page {index + 1:,}",
                )
            if page.unseen:
                problems.add("holds invisible text, which is not read", f"page {index + 1:,}")
            if page.unreadable:
                problems.add(
                    "its fonts do not map to letters; the page is read as an image",
                    f"page {index + 1:,}",
                )
            characters += sum(len(line.text) for lines in page.paragraphs for line in lines)
            if characters > MAX_BYTES:
                problems.add(
                    f"holds more than {MAX_BYTES:,} characters; the rest of the file is not read",
                    f"from page {index + 1:,}",
                )
                return pages
            pages.append(page)
        if count > MOST_PAGES:
            problems.add(
                f"has more than {MOST_PAGES:,} pages; the rest of the file is not read",
                f"{count:,} pages",
            )
        return pages

    def _record(
        self,
        reading: Reading,
        about: dict[str, Any],
        pages: list[Page],
        name: str,
        problems: Problems,
    ) -> Record:
        words: Counter[str] = Counter()
        for page in pages:
            words += words_in(page.paragraphs)
        title = title_of(about["about"]["Title"]) or heading_of(pages)
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
            for text, count in headers.most_common(_MOST_HEADERS)
        ]
        if len(headers) > _MOST_HEADERS:
            rest = sum(count for _, count in headers.most_common()[_MOST_HEADERS:])
            decoration.append(f"is a header or footer; {rest:,} more lines")
        made = PageImages(reading, problems, self._max_pixels, whole_pages=self._pages)
        parts: list[TextPart] = []
        shows = self._show_progress and len(pages) > 20
        both = Progress(
            list(zip(pages, edges, strict=True)), f"Reading images of {name}", disable=not shows
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
            problems.add("holds attached files, which are not read", f"{about['attachments']:,}")
        if about["xfa"]:
            problems.add(
                "is an XFA form, whose fields are not read", "save it as an ordinary PDF file"
            )
        metadata = {"author": author_of(about["about"]["Author"]), "date": None}
        for date in (about["about"]["CreationDate"], about["about"]["ModDate"]):
            metadata["date"] = metadata["date"] or iso_date(date)
            if date and not iso_date(date):
                problems.add("its date is not valid", repr(date[:40]))
        return Record(
            name,
            name,
            title=title,
            images=made.images,
            metadata={key: value for key, value in metadata.items() if value},
            problems=problems.lines(),
            parts=parts,
            decoration=decoration,
            version=about["digest"],
        )
