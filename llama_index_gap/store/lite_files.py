"""The files of a Milvus Lite database, and what of them is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llama_index_gap.store.connection import StoreError

_KINDS = ("data_files", "delta_files")


def check_lite_files(database: str, collection: str, of: str, *, overwrite: bool) -> None:
    """Refuse a collection that has lost files, before Milvus Lite takes it for an empty one.

    Args:
        database: path of the database.
        collection: its name.
        of: the collection, for the message.
        overwrite: as for ``lost_files``.

    Raises:
        StoreError: says which are lost.
    """
    if lost := lost_files(database, collection, overwrite=overwrite):
        raise StoreError(
            f"{of} is damaged: {lost}; bring it back from a copy of the database, or start anew "
            "with overwrite=True (a DualIndex: with embed_model, too)"
        )


def lite_collections(database: str) -> list[str]:
    """The names of the collections whose files a database has; a file of another layout has none.

    Milvus Lite itself opens every collection to list them, with all that its rows take.

    Args:
        database: its path.
    """
    folder = Path(database) / "collections"
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def is_whole(database: str, collection: str) -> bool:
    """Whether Milvus Lite takes a folder for a collection.

    Args:
        database: path of the database.
        collection: the folder's name.
    """
    return (Path(database) / "collections" / collection / "schema.json").is_file()


def lost_files(database: str, collection: str, *, overwrite: bool) -> str | None:
    """Say which of its files a collection has lost.

    Milvus Lite takes a collection without ``schema.json`` for one that is not there, and one that
    has lost its list of files, or the files themselves, for an empty one. What a process left that
    was killed while it made the collection is removed.

    Args:
        database: path of the database.
        collection: its name.
        overwrite: it is about to be dropped, so that nothing is lost.

    Returns:
        What is lost, in words; None if nothing is, or the database has another layout.
    """
    folder = Path(database) / "collections" / collection
    if not folder.is_dir():
        return None
    if not (folder / "schema.json").is_file():
        held = [path for path in folder.rglob("*") if not path.is_dir()]
        if held and not overwrite and held != [folder / "schema.json.tmp"]:
            return f"{folder / 'schema.json'} is not there"
        shutil.rmtree(folder)  # as Milvus Lite would, which can neither drop it so nor make it
        return None
    if overwrite:  # it will be dropped
        return None
    partitions = folder / "partitions"
    manifests = [folder / "manifest.json", folder / "manifest.json.prev"]
    if not any(manifest.is_file() for manifest in manifests):
        stored = next(partitions.glob("*/data/*.parquet"), None)
        return None if stored is None else f"{manifests[0]}, which lists {stored}, is not there"
    listed = _listed(folder)
    if listed is None:
        return None  # Milvus Lite reads it, and says so
    files = [
        partitions / name / file
        for name, of_partition in listed["partitions"].items()
        for kind in _KINDS
        for file in of_partition[kind]
    ]
    lost = [file for file in files if not file.is_file()]
    more = f" and {len(lost) - 1} more of its files are" if len(lost) > 1 else " is"
    return f"{lost[0]}{more} not there" if lost else None


def waits_for_index(database: str, collection: str) -> bool | None:
    """Whether some of a loaded collection's files are still being indexed; None: nobody can tell.

    Milvus Lite indexes what was flushed in a thread that tells nobody when it is done, but it
    writes each index into a file.

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
    """Delete the files of a collection's indexes; Milvus Lite builds them anew from its rows.

    Args:
        database: path of the database.
        collection: its name.

    Returns:
        How many there were.
    """
    folder = Path(database) / "collections" / collection / "partitions"
    files = list(folder.glob("*/indexes/*.idx"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def _listed(folder: Path) -> dict[str, Any] | None:
    """What a collection's list of files says; None if it cannot be read, or is another one's."""
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
