"""Starts, asks and stops the process that reads PDF files."""

from __future__ import annotations

import json
import subprocess
import threading
from importlib.util import find_spec
from typing import Any

from llama_index_gap.errors import GapError
from llama_index_gap.processes import end_own, start_own

MEMORY = 2 * 2**30
"""The most bytes of address space for the process."""
SECONDS = 20.0
"""The most seconds of processor time for one request: a page, a figure, or opening a file."""
_BY_THE_CLOCK = 15
"""A request may last this many times longer by the clock, as the process may have to wait."""


class PdfError(GapError, ValueError):
    """A PDF file, or a part of it, cannot be read."""


class PdfCrashError(PdfError):
    """A request ended the process: it took too much time or memory, or crashed."""


class PdfProcess:
    """Runs pdfium in a separate process, which the first request starts.

    Only one thread at a time may ask. The creator must close it.

    Attributes:
        used: seconds of processor time that the requests took.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._used_before = 0.0
        self.used = 0.0

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Call a method of the engine.

        Args:
            do: the name of the method.
            request: its arguments.

        Raises:
            PdfCrashError: the process ended, and the open file is closed.
            PdfError: the file could not be read.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        seconds = SECONDS
        clock = threading.Timer(seconds * _BY_THE_CLOCK, process.kill)
        clock.start()
        try:
            process.stdin.write(json.dumps({"do": do, "seconds": seconds, **request}).encode())
            process.stdin.write(b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        except BaseException:  # Ctrl-C: the next request would get this answer
            self.close()
            raise
        finally:
            clock.cancel()
        if not line.endswith(b"\n"):
            self.close()
            self.used += seconds
            raise PdfCrashError(
                f"stops pdfium, or takes more than {seconds:g} seconds or too much memory"
            )
        answer: dict[str, Any] = json.loads(line)
        used = answer.pop("used", 0.0)
        self.used += used - self._used_before
        self._used_before = used
        if "error" in answer:
            raise PdfError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, if it runs."""
        process, self._process = self._process, None
        if process is None:
            return
        end_own(process)

    def _start(self) -> subprocess.Popen[bytes]:
        # The working folder may be the corpus.
        self._process = start_own(
            "llama_index_gap.readers.pdf.engine",
            str(MEMORY),
            working_folder=False,
            own_errors=True,
        )
        self._used_before = 0.0
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if not self._process.stdout.readline():  # it first says that it is ready
            said = self._process.stderr.read().decode(errors="replace").strip()
            self.close()
            raise PdfError(f"cannot be read, since pdfium does not start: {said[-500:]}")
        return self._process


def has_pdfium() -> bool:
    """Whether the library that reads PDF files is installed."""
    return find_spec("pypdfium2") is not None
