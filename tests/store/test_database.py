"""A database lists its collections without opening them."""

from __future__ import annotations

from pathlib import Path

from hashed import Hashed
from llama_index.core.schema import TextNode
from milvus_lite.server_manager import server_manager_instance

from llama_index_gap import DualIndex
from llama_index_gap.store.database import Database


def opened_collections(uri: str) -> set[str]:
    """The collections that Milvus Lite has read from disk in this process."""
    _, database, _ = server_manager_instance._servers[uri]
    return {name for _, name in database._collections}


def test_opening_an_index_reads_no_other_index_of_the_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "gap.db")
    for name in ("first", "second", "third"):
        with DualIndex(uri, name, Hashed()) as index:
            index.insert_nodes([TextNode(id_="a", text="a")])

    with DualIndex(uri, "second", Hashed()):
        assert opened_collections(uri) == {"second_text", "second_image"}


def test_names_are_those_that_milvus_lite_tells(tmp_path: Path) -> None:
    uri = str(tmp_path / "gap.db")
    with Database(uri, None) as empty:
        assert empty.names() == []
    with DualIndex(uri, "mine", Hashed()):
        pass
    (tmp_path / "gap.db" / "collections" / "left by a crash").mkdir()

    with Database(uri, None) as database:
        assert database.names() == ["mine_image", "mine_text"]
        assert database.names() == sorted(database._connection.client.list_collections())
