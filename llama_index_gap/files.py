"""Opens files whose paths come from untrusted data, and writes files atomically."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path
from typing import IO

from llama_index_gap.errors import GapError

MAX_BYTES = 64 * 2**20
"""Size of the largest text file that is read, in bytes."""


class FileError(GapError, ValueError):
    """A file that cannot or must not be opened."""


def open_file(path: Path, root: str | Path | None = None) -> IO[bytes]:
    """Open a regular file (a FIFO would hang) that lies below ``root`` after links are followed."""
    try:
        if root is not None:
            path = path.resolve()
            if not path.is_relative_to(Path(root).resolve()):
                raise FileError(
                    f"lies outside root={root} once links are followed; only files below it are "
                    "opened"
                )
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"
            raise FileError(f"is {kind}")
        return path.open("rb")
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError("no such file") from error
    except ValueError as error:
        raise FileError(f"is not a valid path ({reason(error)})") from error
    except (OSError, RuntimeError) as error:  # no permission, a loop of links, a name too long, …
        raise FileError(f"cannot be read ({reason(error)})") from error


def read_text(path: Path, root: str | Path | None = None) -> str:
    """Read a UTF-8 text of at most ``MAX_BYTES``; each line ending becomes a newline."""
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
    """Write a file atomically: whole or, if the write fails or the process dies, not at all.

    Args:
        path: replaced if it exists; if it is a link, the link's target is replaced.
        data: the whole content.

    Raises:
        OSError: the file cannot be written; its old content is unchanged.
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
    """Say where a text stops being UTF-8."""
    return f"is not UTF-8; byte 0x{error.object[error.start]:02x} at position {error.start}"


def reason(error: BaseException) -> str:
    """The message of an error; for an ``OSError``, without its path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
