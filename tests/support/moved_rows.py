"""The stored contents of a database."""

from __future__ import annotations

from typing import Any

from llama_index_gap import MilvusStore
from llama_index_gap.store.database import Database


def stored(uri: str, name: str = "gap") -> dict[str, dict[str, dict[str, Any]]]:
    """All rows of an index, by the collection's suffix and the row's id."""
    with Database(uri, None) as database:
        names = [each for each in database.names() if each.startswith(f"{name}_")]
        found = {}
        for each in names:
            with MilvusStore(uri=uri, collection_name=each) as store:
                pages = list(store.collection.pages(["*"]))
                found[each.removeprefix(f"{name}_")] = {
                    row["id"]: dict(row) for page in pages for row in page
                }
    return found


def properties(uri: str, collection: str) -> dict[str, str]:
    with MilvusStore(uri=uri, collection_name=collection) as store:
        return store.properties()


def kept(folder: Any) -> dict[str, int]:
    """The number of files of each kind in an image storage."""
    return {
        "images": len(list(folder.glob("*.png"))),
        "nodes": len(list((folder / "nodes").glob("*"))),
        "pending": len(list((folder / "pending").glob("*"))),
        "users": len(list(folder.glob("*.users/*"))),
    }
