"""One PDF file that is open: asked again after what stops pdfium, and how much it may cost."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index_gap.readers.pdf.process import PdfCrashError, PdfError, PdfProcess

_MOST_CRASHES = 3
# Seconds of processor time for a file, besides that for each of its pages and of its mebibytes.
_SECONDS, _SECONDS_OF_A_PAGE, _SECONDS_OF_A_MEBIBYTE = 60.0, 0.3, 20.0
_MOST_TOLD = 10  # problems of one kind in one file


@dataclass
class Told:
    """What was left out of a file, grouped by reason."""

    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Note one more place."""
        self.problems.setdefault(reason, []).append(where)

    def lines(self) -> list[str]:
        """A line for each reason."""
        return [
            f"{reason}; {', '.join(places[:_MOST_TOLD])}"
            + (f" and {len(places) - _MOST_TOLD:,} more" if len(places) > _MOST_TOLD else "")
            for reason, places in self.problems.items()
        ]


class Reading:
    """One open file; opened again where a page of it stopped the process.

    Attributes:
        about: what the file says of itself, once it is open.
    """

    def __init__(
        self, process: PdfProcess, path: Path, status: os.stat_result, passwords: list[str]
    ) -> None:
        self._process, self._path = process, path
        self._request: dict[str, Any] = {
            "path": str(path),
            "identity": [status.st_dev, status.st_ino],
            "passwords": passwords,
        }
        self._mebibytes = status.st_size / 2**20
        self._begun = process.used
        self._crashes, self._is_open = 0, False
        self.about: dict[str, Any] = {}

    def open(self) -> dict[str, Any]:
        """Open the file, and say what it says of itself."""
        about = self._process.ask("open", **self._request)
        if self.about and self.about["digest"] != about["digest"]:
            raise PdfError("was changed while it was read")
        self.about, self._is_open = about, True
        return about

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Ask for one thing, as ``PdfProcess.ask``, of this file."""
        try:
            if not self._is_open:
                self.open()
            return self._process.ask(do, **request)
        except PdfCrashError:
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
