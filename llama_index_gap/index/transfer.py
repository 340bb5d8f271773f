"""Copies rows from one collection to another, batch by batch, until both have the same nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.filters import ID_FIELD
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import VECTOR_FIELD

Rows: TypeAlias = dict[str, dict[str, Any]]
"""Rows by their ids."""


@dataclass
class Transfer:
    """Copies rows from one collection to another.

    Rows that the target already has, exactly alike, are not written again. So a stopped transfer
    can continue.

    Args:
        source: the collection to read.
        target: the collection to write; it ends with the same ids, except those left out.
        made: returns a batch of the source's rows as the target gets them, by id; may leave out
            rows.
        completed: gives new vectors to rows, if they do not keep the source's; may leave out rows.
        deleting: makes the context in which rows are deleted.
        on_difference: called before the first row is written or deleted.

    Attributes:
        written: the number of rows written.
        unchanged: the number of rows that the target already had.
        removed: the number of rows deleted because the source does not have them.
        left_out: the number of rows left out.
    """

    source: MilvusStore
    target: MilvusStore
    made: Callable[[Sequence[dict[str, Any]]], Rows]
    completed: Callable[[Rows], Rows] | None = None
    deleting: Callable[[list[str]], AbstractContextManager[None]] | None = None
    on_difference: Callable[[], None] | None = None
    written: int = 0
    unchanged: int = 0
    removed: int = 0
    left_out: int = 0

    def run(self) -> Iterator[int]:
        """Copy the rows; yields the number of the source's rows in each batch.

        Raises:
            StoreError: the source was written to meanwhile.
        """
        begun = self.target.count() > 0
        for page in self.source.collection.pages(["*"]):
            rows = self.made([dict(row) for row in page])
            wanted = len(rows)
            if begun:
                for found in self.target.collection.read(rows, ["*"], len(page)):
                    if self._compared(found) == self._compared(rows[found[ID_FIELD]]):
                        del rows[found[ID_FIELD]]
            known = wanted - len(rows)
            self.unchanged += known
            if rows and self.on_difference is not None:
                self.on_difference()
            if self.completed is not None:
                rows = self.completed(rows)
            self.target.put_rows(rows.values())
            self.written += len(rows)
            self.left_out += len(page) - known - len(rows)
            yield len(page)
        if begun:
            self._remove_others()
        held, has = self.source.count(), self.target.count()
        if not has == held - self.left_out == self.written + self.unchanged:
            raise StoreError(
                f"{self.source.collection} or {self.target.collection} was written to meanwhile; "
                "run the same again, which copies the missing rows"
            )

    def _compared(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.completed is None:
            return dict(row)
        return {key: value for key, value in row.items() if key != VECTOR_FIELD}

    def _remove_others(self) -> None:
        gone: list[str] = []
        for page in self.target.collection.pages([ID_FIELD]):
            ids = [row[ID_FIELD] for row in page]
            gone += sorted(set(ids) - self.source.existing_ids(ids))
        if gone and self.on_difference is not None:
            self.on_difference()
        if gone and self.deleting is not None:
            with self.deleting(gone):
                self.target.delete_nodes(gone)
        elif gone:
            self.target.delete_nodes(gone)
        self.removed = len(gone)
