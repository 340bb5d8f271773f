"""One open PDF file: reopens it after a crash, and limits its total time."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index_gap.readers.pdf.process import PdfCrashError, PdfError, PdfProcess

_MOST_CRASHES = 3
# A file's limit of processor time: a base, plus seconds for each page and each mebibyte.
_SECONDS, _SECONDS_OF_A_PAGE, _SECONDS_OF_A_MEBIBYTE = 60.0, 0.3, 20.0
_MOST_PLACES = 10  # places that are named for a reason


@dataclass
class Problems:
    """The parts of a file that were left out, grouped by reason."""

    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Add a place to a reason."""
        self.problems.setdefault(reason, []).append(where)

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [
            f"{reason}; {', '.join(places[:_MOST_PLACES])}"
            + (f" and {len(places) - _MOST_PLACES:,} more" if len(places) > _MOST_PLACES else "")
            for reason, places in self.problems.items()
        ]


class Reading:
    """One open file; it is reopened after one of its pages stopped the process.

    Attributes:
        about: the engine's answer to opening the file; empty before.
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
        """Open the file, and return the engine's answer about it."""
        about = self._process.ask("open", **self._request)
        if self.about and self.about["digest"] != about["digest"]:
            raise PdfError("was changed while it was read")
        self.about, self._is_open = about, True
        return about

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Call a method of the engine on this file: see ``PdfProcess.ask``."""
        try:
            if not self._is_open:
                self.open()
            return self._process.ask(do, **request)
        except PdfCrashError:
            self._crashes += 1
            self._is_open = False
            raise

    def stops(self, pages: int) -> str:
        """Why the rest of the file must not be read; empty if it may be."""
        if self._crashes >= _MOST_CRASHES:
            return f"{self._crashes} of its pages stop pdfium or take too long"
        limit = _SECONDS + _SECONDS_OF_A_PAGE * pages + _SECONDS_OF_A_MEBIBYTE * self._mebibytes
        if self._process.used - self._begun > limit:
            return f"takes more than {limit:,.0f} seconds"
        return ""
