"""The files of a Milvus Lite database, and checks for lost ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llama_index_gap.store.connection import StoreError

_KINDS = ("data_files", "delta_files")


def check_lite_files(database: str, collection: str, of: str, *, overwrite: bool) -> None:
    """Refuse a collection that has lost files; Milvus Lite would take it for an empty one.

    Args:
        database: path of the database.
        collection: its name.
        of: the collection, for the message.
        overwrite: as for ``lost_files``.

    Raises:
        StoreError: files are lost; names them.
    """
    if lost := lost_files(database, collection, overwrite=overwrite):
        raise StoreError(
            f"{of} is damaged: {lost}; restore it from a copy of the database, or build it again "
            "with overwrite=True (for a DualIndex, with embed_model too)"
        )


def lite_collections(database: str) -> list[str]:
    """The names of the collections whose files a database has; none if its layout is unknown.

    To list them, Milvus Lite itself would open every collection, and load its rows into memory.

    Args:
        database: its path.
    """
    folder = Path(database) / "collections"
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def is_whole(database: str, collection: str) -> bool:
    """Whether Milvus Lite accepts a folder as a collection.

    Args:
        database: path of the database.
        collection: the folder's name.
    """
    return (Path(database) / "collections" / collection / "schema.json").is_file()


def lost_files(database: str, collection: str, *, overwrite: bool) -> str | None:
    """Say which of its files a collection has lost.

    To Milvus Lite, a collection without ``schema.json`` does not exist, and one that has lost its
    list of files, or the files in it, is empty. If a process was killed while it created the
    collection, this function removes the remains.

    Args:
        database: path of the database.
        collection: its name.
        overwrite: whether it is about to be dropped; then no loss matters.

    Returns:
        The lost files, in words; None if none are lost, or the database has another layout.
    """
    folder = Path(database) / "collections" / collection
    if not folder.is_dir():
        return None
    if not (folder / "schema.json").is_file():
        held = [path for path in folder.rglob("*") if not path.is_dir()]
        if held and not overwrite and held != [folder / "schema.json.tmp"]:
            return f"{folder / 'schema.json'} is missing"
        shutil.rmtree(folder)  # Milvus Lite can neither drop such a collection nor create it
        return None
    if overwrite:  # it will be dropped
        return None
    partitions = folder / "partitions"
    manifests = [folder / "manifest.json", folder / "manifest.json.prev"]
    if not any(manifest.is_file() for manifest in manifests):
        stored = next(partitions.glob("*/data/*.parquet"), None)
        return None if stored is None else f"{manifests[0]}, which lists {stored}, is missing"
    listed = _listed(folder)
    if listed is None:
        return None  # Milvus Lite will read it, and raise its own error
    files = [
        partitions / name / file
        for name, of_partition in listed["partitions"].items()
        for kind in _KINDS
        for file in of_partition[kind]
    ]
    lost = [file for file in files if not file.is_file()]
    more = f" and {len(lost) - 1} more of its files are" if len(lost) > 1 else " is"
    return f"{lost[0]}{more} missing" if lost else None


def waits_for_index(database: str, collection: str) -> bool | None:
    """Whether some files of a loaded collection are still being indexed; None if unknown.

    Milvus Lite indexes flushed rows in a thread that does not report when it is done. But it writes
    each index to a file.

    Args:
        database: path of the database.
        collection: its name.
    """
    folder = Path(database) / "collections" / collection
    if (listed := _listed(folder)) is None:
        return None
    return any(
        not (folder / "partitions" / name / "indexes" / f"{Path(file).stem}.{suffix}").is_file()
        for name, of_partition in listed["partitions"].items()
        for file in of_partition["data_files"]
        for suffix in listed["indexes"]
    )


def drop_indexes(database: str, collection: str) -> int:
    """Delete the files of a collection's indexes; Milvus Lite rebuilds them from the rows.

    Args:
        database: path of the database.
        collection: its name.

    Returns:
        How many files were deleted.
    """
    folder = Path(database) / "collections" / collection / "partitions"
    files = list(folder.glob("*/indexes/*.idx"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def _listed(folder: Path) -> dict[str, Any] | None:
    """A collection's list of files; None if it cannot be read, or has another layout."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return {
            "partitions": {
                name: {kind: [str(file) for file in each[kind]] for kind in _KINDS}
                for name, each in manifest["partitions"].items()
            },
            "indexes": [
                f"{name}.{each['index_type'].lower()}.idx"
                for name, each in manifest.get("index_specs", {}).items()
            ],
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
