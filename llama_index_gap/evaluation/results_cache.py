"""A file of results, a line each, from which an interrupted run can be taken up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index_gap.errors import GapError

_HEADER = "experiment"


class ResultsCacheError(GapError, ValueError):
    """A file that is no cache, the cache of something else, or damaged."""


class ResultsCache:
    """Records by key, each written as soon as it is there.

    The first line says what the records are of; each other line is a record. A last line that a
    killed process left unfinished is taken away.

    Args:
        path: made where it is missing.
        header: what the records depend on, as JSON knows it.

    Raises:
        ResultsCacheError: the file is no cache, has another header, or is damaged.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        first = _line({_HEADER: header})
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if lines:
            self._check_header(lines[0], header)
        elif not first.startswith(content):
            raise self._foreign()
        self._records = dict(self._record(line, at) for at, line in enumerate(lines[1:], start=2))
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        self._file = self.path.open("ab")
        if not lines:
            self._write(first)

    def get(self, key: str) -> Any | None:
        """The record with this key; None if there is none."""
        return self._records.get(key)

    def add(self, key: str, value: Any) -> None:
        """Write a record, as JSON knows it."""
        self._write(_line({"key": key, "value": value}))
        self._records[key] = value

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> ResultsCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_header(self, line: bytes, header: Mapping[str, Any]) -> None:
        try:
            found = json.loads(line)[_HEADER]
        except (ValueError, TypeError, KeyError):
            raise self._foreign() from None
        wanted = json.loads(_line(header))
        if found != wanted:
            differing = [key for key in wanted | found if wanted.get(key) != found.get(key)]
            raise ResultsCacheError(
                f"{self.path}: holds results of another experiment (another "
                f"{', '.join(differing)}); name another file, or delete this one"
            )

    def _record(self, line: bytes, at: int) -> tuple[str, Any]:
        try:
            record = json.loads(line)
            return record["key"], record["value"]
        except (ValueError, TypeError, KeyError):
            raise ResultsCacheError(f"{self.path}:{at}: is damaged; delete the file") from None

    def _foreign(self) -> ResultsCacheError:
        return ResultsCacheError(
            f"{self.path}: holds no results of an experiment; name another file"
        )

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
