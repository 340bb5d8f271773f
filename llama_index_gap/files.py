"""Opening files that somebody else may have named."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path
from typing import IO

from llama_index_gap.errors import GapError

MAX_BYTES = 64 * 2**20
"""Most bytes of one document's text."""


class FileError(GapError, ValueError):
    """A file that cannot, or must not, be opened."""


def open_file(path: Path, root: str | Path | None = None) -> IO[bytes]:
    """Open a regular file (a FIFO would hang) that lies below the root, links followed."""
    try:
        if root is not None:
            path = path.resolve()
            if not path.is_relative_to(Path(root).resolve()):
                raise FileError(
                    f"lies outside root={root}; only files below it are opened, links followed"
                )
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise FileError("is a folder, no file" if stat.S_ISDIR(mode) else "is no regular file")
        return path.open("rb")
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError("no such file") from error
    except ValueError as error:
        raise FileError(f"not a path ({reason(error)})") from error
    except (OSError, RuntimeError) as error:  # no permission, a loop of links, a name too long, …
        raise FileError(f"cannot be read ({reason(error)})") from error


def read_text(path: Path, root: str | Path | None = None) -> str:
    """Read a text of at most ``MAX_BYTES`` in UTF-8, each line's end as a newline."""
    with open_file(path, root) as file:
        try:
            data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise FileError(f"cannot be read ({reason(error)})") from error
    if len(data) > MAX_BYTES:
        raise FileError(f"is larger than {MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise FileError(not_utf8(error)) from error


def write_at_once(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: who reads it, or is killed, never has a part of it.

    Args:
        path: replaced if it is there; where it is a link, the file that the link names.
        data: all that it is to hold.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def not_utf8(error: UnicodeDecodeError) -> str:
    """Where a text stops being UTF-8."""
    return f"is not UTF-8; byte 0x{error.object[error.start]:02x} at position {error.start}"


def reason(error: BaseException) -> str:
    """An error in words; an ``OSError`` without the path that it repeats."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
