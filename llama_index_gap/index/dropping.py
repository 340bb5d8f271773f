"""Removes an index from its database: its collections and its stored images."""

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
"""The mark of an index that is being dropped."""


def drop_index(address: IndexAddress) -> list[str]:
    """Delete an index: all its collections, its learnt queries, and its stored images.

    The user's own files stay, and so do the images of other indexes. If the call is stopped
    halfway, nothing opens the index any more, and the same call completes the deletion.

    Args:
        address: the address of the index, which may be unfinished or damaged.

    Returns:
        The names of the deleted collections.

    Raises:
        ValueError: there is no such index; the message names the existing ones.
        StoreError: the database cannot be written.
    """
    with Database(address.uri, address.token, address.timeout) as database:
        found = find_indexes(database, address.name)
        if not found or not found[0].claimed:
            existing = ", ".join(each.name for each in find_indexes(database)) or "none"
            raise InvalidValueError(
                f"{address.uri} holds no index {address.name!r}; its indexes are: {existing}"
            )
        index = found[0]
        versions = sorted(index.versions.items(), key=lambda each: each[0] == index.current)
        for _, parts in versions:  # the current version last, so that the index opens until then
            if "text" in parts:
                database.set_property(parts["text"], UNFINISHED_PROPERTY, DELETION)
        for _, parts in versions:
            _forget_images(address, parts)
        for _, parts in versions:
            drop_parts(database, parts)
    return sorted(name for _, parts in versions for name in parts.values())


def _forget_images(address: IndexAddress, parts: dict[str, str]) -> None:
    """Delete the stored images of a version, and what this machine noted about its images."""
    if "image" not in parts:
        return
    try:
        with address.opened(parts["image"]) as store:
            where = (address.uri, address.name, None, address.storage)
            indexed = IndexedImages(store, *where)
    except (StoreError, InvalidValueError):  # damaged: its images cannot be told from others
        return
    ImageStorage(address.storage, lambda: indexed.id, lambda _: {}).clear()
    indexed.forget()
    if address.storage == default_storage(address.uri, address.name).resolve():
        for folder in ("nodes", "pending", ".", ".."):
            with suppress(OSError):  # it does not exist, or has files that are not ours
                (address.storage / folder).resolve().rmdir()
