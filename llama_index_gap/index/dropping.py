"""Removing an index from its database: its collections, and the images that it kept itself."""

from __future__ import annotations

from contextlib import suppress

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.index.image_storage import ImageStorage, default_storage
from llama_index_gap.index.indexed_images import IndexedImages
from llama_index_gap.index.versions import (
    UNFINISHED_PROPERTY,
    IndexAddress,
    drop_parts,
    find_indexes,
)
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.database import Database

DELETION = "its deletion"
"""What is begun where an index is being dropped."""


def drop_index(address: IndexAddress) -> list[str]:
    """Delete an index: all its collections, its learnt queries, and the images that it kept.

    Files of the user's stay, and so do the images of other indexes. Stopped halfway, it leaves an
    index that nothing opens, and that can be dropped again.

    Args:
        address: of the index, which may be unfinished or damaged.

    Returns:
        The names of the collections that were deleted.

    Raises:
        ValueError: there is no such index; names those that are there.
        StoreError: the database cannot be written.
    """
    with Database(address.uri, address.token, address.timeout) as database:
        found = find_indexes(database, address.name)
        if not found or not found[0].claimed:
            there = ", ".join(each.name for each in find_indexes(database)) or "none"
            raise InvalidValueError(
                f"{address.uri} holds no index {address.name!r}; its indexes are: {there}"
            )
        index = found[0]
        versions = sorted(index.versions.items(), key=lambda each: each[0] == index.current)
        for _, parts in versions:  # the current one last: as long as it is whole, nothing is gone
            if "text" in parts:
                database.set_property(parts["text"], UNFINISHED_PROPERTY, DELETION)
        for _, parts in versions:
            _forget_images(address, parts)
        for _, parts in versions:
            drop_parts(database, parts)
    return sorted(name for _, parts in versions for name in parts.values())


def _forget_images(address: IndexAddress, parts: dict[str, str]) -> None:
    """Delete the images that a version of the index keeps, and what was noted on this machine."""
    if "image" not in parts:
        return
    try:
        with address.opened(parts["image"]) as store:
            where = (address.uri, address.name, None, address.storage)
            indexed = IndexedImages(store, *where)
    except (StoreError, InvalidValueError):  # damaged: nobody knows which images are its own
        return
    ImageStorage(address.storage, lambda: indexed.id, lambda _: {}).clear()
    indexed.forget()
    if address.storage == default_storage(address.uri, address.name).resolve():
        for folder in ("nodes", "pending", ".", ".."):
            with suppress(OSError):  # it is not there, or holds what is not ours
                (address.storage / folder).resolve().rmdir()
