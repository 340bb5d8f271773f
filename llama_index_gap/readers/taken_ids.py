"""The ids that a corpus has used so far, however many there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from llama_index_gap.text import as_bytes

_IN_MEMORY = 50_000


class TakenIds:
    """A growing set of ids; all but the newest are in a temporary file."""

    def __init__(self) -> None:
        self._newest: set[str] = set()
        self._file: sqlite3.Connection | None = None

    def add(self, ids: Iterable[str]) -> None:
        """Add ids."""
        self._newest.update(ids)
        if len(self._newest) < _IN_MEMORY:
            return
        if self._file is None:
            # "" is a temporary database, whose file is deleted right after its creation. A corpus
            # may be read in another thread than the one that opened it.
            self._file = sqlite3.connect("", check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = OFF")
            self._file.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
        rows = sorted(map(as_bytes, self._newest))
        self._file.executemany("INSERT OR IGNORE INTO ids VALUES (?)", ([row] for row in rows))
        self._newest.clear()

    def __contains__(self, node_id: str) -> bool:
        if node_id in self._newest or self._file is None:
            return node_id in self._newest
        found = self._file.execute("SELECT 1 FROM ids WHERE id = ?", [as_bytes(node_id)])
        return found.fetchone() is not None
