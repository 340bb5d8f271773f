"""Copies an index to another database or another name, without embedding anything."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.images.folders import count_kept
from llama_index_gap.images.opening import ImageError
from llama_index_gap.index.dropping import drop_index
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.index.indexed_images import IMAGES_PROPERTY, IndexedImages, kept_images
from llama_index_gap.index.models import stored_identities
from llama_index_gap.index.transfer import Rows, Transfer
from llama_index_gap.index.versions import (
    UNFINISHED_PROPERTY,
    IndexAddress,
    StoredIndex,
    collection_name,
    find_indexes,
    the_index,
)
from llama_index_gap.progress import Progress
from llama_index_gap.readers.records import Skipped
from llama_index_gap.store.addresses import lite_path
from llama_index_gap.store.collection import DEFAULT_INDEX
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.database import Database
from llama_index_gap.store.filters import ID_FIELD
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import (
    image_path_of,
    why_not_storable,
    with_image_path,
)

logger = logging.getLogger(__name__)


@dataclass
class CopyReport:
    """What a call copied.

    Attributes:
        rows: rows written, by collection: ``text``, ``image`` and so on.
        unchanged: rows that the copy already had, exactly alike.
        removed: rows of an earlier copy that the index no longer has.
        images: image files copied from the storage of the index to that of the copy.
        skipped: what could not be copied, and why.
    """

    rows: dict[str, int] = field(default_factory=dict)
    unchanged: int = 0
    removed: int = 0
    images: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, other: CopyReport) -> None:
        """Add the counts of another call, such as for another tenant."""
        for name, rows in other.rows.items():
            self.rows[name] = self.rows.get(name, 0) + rows
        self.unchanged += other.unchanged
        self.removed += other.removed
        self.images += other.images
        self.skipped += other.skipped

    def summary(self) -> str:
        """The counts in one line."""
        removed = f"{self.removed:,} removed, " if self.removed else ""
        return (
            f"{sum(self.rows.values()):,} rows and {self.images:,} images copied, "
            f"{self.unchanged:,} unchanged, {removed}{len(self.skipped):,} skipped"
        )


def copy_index(
    source: IndexAddress,
    target: IndexAddress,
    *,
    overwrite: bool = False,
    index_config: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> CopyReport:
    """Copy an index: bit-identical rows, properties, learnt queries, and stored images.

    Rows are copied in bounded batches, in the order of their ids. Images in the user's own folders
    stay there, and the copy opens them where this user may open them. Until the copy is complete,
    its text collection is marked as unfinished, and nothing opens it. If a call was stopped, the
    same call completes the copy, with the same result.

    Args:
        source: the index to copy; it is only read.
        target: the address of the copy; an existing index with other content is an error.
        overwrite: delete an existing index at the target.
        index_config: the vector index of the copy; by default that of the source, if the source's
            database reports it and the target's supports it.
        show_progress: show a progress bar.

    Raises:
        ValueError: the source does not exist, or is the target, or the target has other content.
        StoreError: a database cannot be read or written.
    """
    _check_addresses(source, target)
    report = CopyReport()
    with ExitStack() as opened:
        from_database = opened.enter_context(Database(source.uri, source.token, source.timeout))
        index = the_index(from_database, source)
        parts = index.versions[index.current or 0]
        stores = {
            part: opened.enter_context(source.opened(name))
            for part, name in sorted(parts.items(), key=lambda each: each[0] != "text")
        }
        if not {"text", "image"} <= stores.keys():
            raise StoreError(
                f"{source}: its collection of images is gone; insert its documents again"
            )
        # Raises if the index is damaged, so that nothing is copied.
        stored_identities(stores["text"].initial_properties, str(source))
        to_database = opened.enter_context(Database(target.uri, target.token, target.timeout))
        mark = f"a copy of {source.database}: {source.name}"
        only_compare = _prepare(to_database, target, mark, stores, overwrite=overwrite)
        copying = _Copying(source, target, stores, report, only_compare=only_compare)
        copying.open_target(opened, mark, index_config)
        total = sum(store.count() for store in stores.values())
        with (
            copying.keeping_images(),
            Progress(total=total, desc="Copying", unit="row", disable=not show_progress) as bar,
        ):
            for part in stores:
                for done in copying.copy(part):
                    bar.update(done)
        copying.finish()
    logger.info("%s: %s", target, report.summary())
    return report


def _check_addresses(source: IndexAddress, target: IndexAddress) -> None:
    path = lite_path(source.uri)
    if path is not None and not Path(path).exists():
        raise InvalidValueError(f"{source.uri}: no such database")
    if (source.database, source.name) == (target.database, target.name):
        raise InvalidValueError(
            f"{target} is the index to copy; choose another database or another name for the copy"
        )


def _prepare(
    database: Database,
    target: IndexAddress,
    mark: str,
    stores: Mapping[str, MilvusStore],
    *,
    overwrite: bool,
) -> bool:
    """Make room for a copy, or find one to continue; returns whether a whole index exists."""
    found = find_indexes(database, target.name)
    index = found[0] if found else StoredIndex(target.name)
    continues = index.current is None and index.unfinished.get(0) == mark
    if not index.versions:
        return False
    if not overwrite and not continues:
        if index.current != 0 or len(index.versions) > 1:
            raise InvalidValueError(
                f"{target} already exists and is not a copy of that index; pass another name, or "
                "overwrite it (overwrite=True, --overwrite)"
            )
        return True
    # Do not open the collections: that would build a vector index if a killed process had not.
    fits = index.versions.keys() == {0} and all(
        part in stores
        and database.dim(name) == stores[part].dim
        and (database.properties(name) or {}).keys()
        <= {*stores[part].properties(), UNFINISHED_PROPERTY}
        for part, name in index.versions[0].items()
    )
    if continues and fits:
        return False
    drop_index(target)
    return False


class _Copying:
    """A copy in progress.

    Args:
        source: the address of the index to copy.
        target: the address of the copy.
        stores: the collections of the source, by part, texts first.
        report: receives the counts.
        only_compare: whether the target already has an index, which must be equal.
    """

    def __init__(
        self,
        source: IndexAddress,
        target: IndexAddress,
        stores: Mapping[str, MilvusStore],
        report: CopyReport,
        *,
        only_compare: bool,
    ) -> None:
        self._source, self._target, self._from = source, target, stores
        self._only_compare, self.report = only_compare, report
        self._to: dict[str, MilvusStore] = {}
        self._lost: set[str] = set()
        where = (source.uri, source.name, None, source.storage)
        self._images_from = IndexedImages(stores["image"], *where)

    def open_target(
        self, opened: ExitStack, mark: str, index_config: Mapping[str, Any] | None
    ) -> None:
        """Open or create the collections of the copy; texts first, marked as unfinished."""
        for part, store in self._from.items():
            name = collection_name(self._target.name, part, 0)
            settings: dict[str, Any] = {}
            if self._only_compare and part != "text" and not self._to["text"].has_collection(name):
                self._differs(part)
            if not self._only_compare:
                kinds = dict(index_config or store.collection.index_config())
                settings = {"index_config": kinds, "dim": store.dim}
                settings["properties"] = self._properties(part)
                if part == "text":
                    settings["properties"][UNFINISHED_PROPERTY] = mark
            self._to[part] = opened.enter_context(self._opened(name, settings, index_config))
            if self._to[part].dim != store.dim:
                self._differs(part)
        where = (self._target.uri, self._target.name, None, self._target.storage)
        self._images_to = IndexedImages(self._to["image"], *where)
        # Only folders that this user allowed for the source: an index cannot allow folders itself.
        self._images_to.remember(self._images_from.folders.allowed)
        stored = [self._to["text"], self._to["image"]]
        self._storage = ImageStorage(
            self._target.storage,
            lambda: self._images_to.id,
            lambda ids: kept_images(stored, self._images_to.folders, ids),
        )

    def _opened(
        self, name: str, settings: dict[str, Any], index_config: Mapping[str, Any] | None
    ) -> MilvusStore:
        try:
            return self._target.opened(name, **settings)
        except InvalidValueError as error:
            if index_config is not None or "index_type" not in str(error):
                raise
            logger.warning(
                "%s: its vector index is of type %s, since %s",
                name,
                DEFAULT_INDEX["index_type"],
                error,
            )
            return self._target.opened(name, **{**settings, "index_config": None})

    def _properties(self, part: str) -> dict[str, str]:
        """The properties of the source, but with a new id for stored images and noted folders."""
        properties = self._from[part].properties()
        properties.pop(UNFINISHED_PROPERTY, None)
        if part == "image" and self._images_from.id is not None:
            images = json.loads(properties[IMAGES_PROPERTY]) | {"id": secrets.token_hex(16)}
            properties[IMAGES_PROPERTY] = json.dumps(images)
        return properties

    @contextmanager
    def keeping_images(self) -> Iterator[None]:
        """The context in which rows are written, if the source stores images."""
        kept = count_kept(self._source.storage)
        self._keeps = kept > 0 and self._images_from.id is not None
        with self._storage.inserting() if self._keeps and not self._only_compare else nullcontext():
            yield

    def copy(self, part: str) -> Iterator[int]:
        """Copy the rows of a collection; yields the number of rows in each batch."""
        transfer = Transfer(
            self._from[part],
            self._to[part],
            made=partial(self._made, part),
            deleting=self._storage.deleting,
            on_difference=partial(self._differs, part) if self._only_compare else None,
        )
        yield from transfer.run()
        self.report.rows[part] = transfer.written
        self.report.unchanged += transfer.unchanged
        self.report.removed += transfer.removed

    def _made(self, part: str, page: Sequence[dict[str, Any]]) -> Rows:
        rows: Rows = {}
        for row in page:
            why = why_not_storable(row, self._to[part].collection.max_lengths)
            if why is None:
                rows[row[ID_FIELD]] = self._moved(row)
            else:
                self.report.skipped.append(Skipped(f"{part} {row[ID_FIELD][:100]}", why))
        return rows

    def _moved(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the copy; a stored image gets its path in the storage of the copy."""
        path = image_path_of(row) if self._images_from.id is not None else None
        if path is None or not (self._keeps or self._only_compare):
            return row
        found = Path(self._images_from.folders.find(path))
        if not self._images_from.folders.keep(found):
            return row
        if not self._only_compare:
            try:
                self.report.images += self._storage.adopt(row[ID_FIELD], found)
            except ImageError as error:
                if path not in self._lost:
                    self._lost.add(path)
                    self.report.skipped.append(
                        Skipped(f"image of {row[ID_FIELD][:100]}", str(error))
                    )
                return row
        return with_image_path(row, str(self._target.storage / found.name))

    def _differs(self, part: str) -> None:
        raise InvalidValueError(
            f"{self._target} already exists and differs from {self._source} (in its {part} "
            "collection); pass another name, or overwrite it (overwrite=True, --overwrite)"
        )

    def finish(self) -> None:
        """Flush the written rows, and remove the mark."""
        self._storage.tidy()
        if self._only_compare:
            return
        for part, store in self._to.items():
            store.keep()
            stored = store.properties()
            properties = {k: v for k, v in self._properties(part).items() if k != IMAGES_PROPERTY}
            store.set_properties({k: v for k, v in properties.items() if stored.get(k) != v})
        self._to["text"].set_properties({UNFINISHED_PROPERTY: ""})
