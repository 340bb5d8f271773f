"""A results cache: keeps the answers of an experiment, so that an interrupted one can continue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index_gap.errors import GapError

_HEADER = "experiment"
_MALFORMED = (ValueError, TypeError, KeyError, RecursionError)


class ResultsCacheError(GapError, ValueError):
    """A file is not a results cache, belongs to another experiment, or is damaged."""


class ResultsCache:
    """Records by key, each written to the file immediately.

    The first line identifies the experiment; each other line is a record. If a killed process left
    the last line unfinished, that line is removed.

    Args:
        path: the file; created if missing.
        header: everything that the records depend on, as plain JSON values.

    Raises:
        ResultsCacheError: the file is not a results cache, has another header, or is damaged.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        first = _line({_HEADER: header})
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        wanted = json.loads(_line(header))
        try:
            found = json.loads(lines[0])[_HEADER] if lines else wanted
        except _MALFORMED:
            found = None
        if not isinstance(found, Mapping) or not (lines or first.startswith(content)):
            raise ResultsCacheError(f"{self.path}: is not a results cache; name another file")
        differing = [key for key in wanted | found if wanted.get(key) != found.get(key)]
        if differing:
            raise ResultsCacheError(
                f"{self.path}: is the results cache of another experiment, which differs in "
                f"{', '.join(differing)}; name another file, or delete this one"
            )
        self._records: dict[str, Any] = {}
        for number, line in enumerate(lines[1:], start=2):
            try:
                record = json.loads(line)
                self._records[record["key"]] = record["value"]
            except _MALFORMED:
                raise ResultsCacheError(
                    f"{self.path}:{number}: is damaged; delete the file"
                ) from None
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
        """Write a record, which is a plain JSON value."""
        self._write(_line({"key": key, "value": value}))
        self._records[key] = value

    def __enter__(self) -> ResultsCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
