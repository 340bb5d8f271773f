"""The process that reads PDF files: started, asked, and stopped at its limits."""

from __future__ import annotations

import json
import subprocess
import threading
from importlib.util import find_spec
from typing import Any

from llama_index_gap.errors import GapError
from llama_index_gap.processes import end_own, start_own

MEMORY = 2 * 2**30
"""Most bytes of address space that the process may take."""
SECONDS = 20.0
"""Most seconds of processor time for one request: a page, a figure, or opening a file."""
_BY_THE_CLOCK = 15
"""Of a process that waits for the disk or for others, as many times longer by the clock."""


class PdfError(GapError, ValueError):
    """A PDF file, or a part of one, that cannot be read."""


class PdfCrashError(PdfError):
    """A request that ended the process: it took too long, too much memory, or crashed."""


class PdfProcess:
    """Asks pdfium in a process of its own, which is started with the first request.

    One thread at a time may ask. Whoever made it closes it.

    Attributes:
        used: seconds of processor time that the requests took.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._used_before = 0.0
        self.used = 0.0

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Ask the engine for what one of its methods answers.

        Args:
            do: the method.
            request: its arguments.

        Raises:
            PdfCrashError: the process is gone, and with it the open file.
            PdfError: the file is to blame.
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
        except BaseException:  # Ctrl-C: its answer would be taken for the next one's
            self.close()
            raise
        finally:
            clock.cancel()
        if not line.endswith(b"\n"):
            self.close()
            self.used += seconds
            raise PdfCrashError(
                f"stops pdfium, or takes it more than {seconds:g} seconds or too much memory"
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
        if not self._process.stdout.readline():  # it says first that it is there
            said = self._process.stderr.read().decode(errors="replace").strip()
            self.close()
            raise PdfError(f"cannot be read, since pdfium does not start: {said[-500:]}")
        return self._process


def has_pdfium() -> bool:
    """Whether the library is there that reads PDF files."""
    return find_spec("pypdfium2") is not None
