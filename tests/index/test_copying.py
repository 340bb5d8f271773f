"""Copies of an index: bit-identical, complete or not at all, and without files of others."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hashed import Hashed, mixed_nodes
from index_nodes import labelled
from llama_index.core.schema import TextNode
from moved_rows import kept, properties, stored

from llama_index_gap import DualIndex, RelevanceCalibrator, StoreError
from llama_index_gap.index.copying import copy_index
from llama_index_gap.index.dropping import drop_index
from llama_index_gap.index.image_storage import ImageStorage, default_storage
from llama_index_gap.index.versions import IndexAddress
from llama_index_gap.store import collection as collections
from llama_index_gap.store.milvus import MilvusStore


def at(uri: Path | str, name: str = "gap") -> IndexAddress:
    return IndexAddress(str(uri), name, None, default_storage(str(uri), name).resolve())


@pytest.fixture
def model() -> Hashed:
    return Hashed(embedded=[])


@pytest.fixture
def source(model: Hashed, noise_files: list[str], tmp_path: Path) -> Iterator[DualIndex]:
    """An index with a query sample, a calibrator and a third collection."""
    uri = str(tmp_path / "a.db")
    with DualIndex(uri, embed_model=model, image_query_embed_model=Hashed(model_name="q")) as index:
        index.insert_nodes(mixed_nodes(noise_files))
        index.learn_queries([f"query {number}" for number in range(30)])
        calibrator = RelevanceCalibrator.fit(labelled(), source=index.models())
        index.save_calibrator(calibrator)
        yield index


def keys(index: DualIndex) -> list[str]:
    return [document.key for document in index.search("a red bicycle")]


def without_place(rows: dict[str, dict[str, Any]], storage: Path) -> dict[str, Any]:
    """Rows without the folders of stored images."""
    told = {}
    for row_id, row in rows.items():
        content = json.loads(row.get("_node_content", "{}"))
        path = Path(content.get("image_path") or "/")
        if path.parent == storage:
            content["image_path"] = path.name
        told[row_id] = {**row, "_node_content": content}
        if path.parent == storage:
            told[row_id]["gap_fingerprint"] = row["gap_fingerprint"].partition("-")[0]
    return told


def test_a_copy_is_equal_to_the_bit_and_embeds_nothing(
    source: DualIndex, model: Hashed, tmp_path: Path, noise_files: list[str]
) -> None:
    embedded = list(model.embedded)
    report = source.copy_to(str(tmp_path / "b.db"))

    assert report.rows["text"] == 3
    assert report.rows["image"] == report.rows["image_query"] == 4
    assert report.images == 2, "one image is kept once for two nodes"
    assert not report.skipped
    assert model.embedded == embedded
    before, after = stored(source.uri), stored(str(tmp_path / "b.db"))
    assert before.keys() == after.keys() >= {"text", "image", "image_query", "text_queries"}
    for part, rows in before.items():
        storage = at(source.uri).storage
        told = without_place(rows, storage)
        assert told == without_place(after[part], at(tmp_path / "b.db").storage), part
    with DualIndex(
        str(tmp_path / "b.db"), embed_model=model, image_query_embed_model=Hashed(model_name="q")
    ) as copied:
        assert copied.query_sample() == source.query_sample()
        assert copied.calibrator() == source.calibrator()
        assert keys(copied) == keys(source)
        path = Path(str(copied.get_nodes(["a2"])[0].image_path))
        assert path.parent == at(tmp_path / "b.db").storage
        assert path.read_bytes() == Path(noise_files[0]).read_bytes()
        assert copied.get_nodes(["c1"])[0].image_path == noise_files[2], "the user's file stays"
        copied.get_nodes(["c1"])[0].resolve_image()  # still opens on this machine
        report = copied.insert_nodes(mixed_nodes(noise_files))
        assert (report.unchanged, report.text_rows, report.image_rows) == (11, 0, 0)
        assert kept(path.parent) == kept(at(source.uri).storage)


def test_run_again_it_changes_nothing_and_refuses_what_differs(
    source: DualIndex, tmp_path: Path
) -> None:
    uri = str(tmp_path / "b.db")
    source.copy_to(uri)
    before = stored(uri)

    again = source.copy_to(uri)
    assert (sum(again.rows.values()), again.images) == (0, 0)
    assert again.unchanged == sum(map(len, before.values()))
    source.insert_nodes([TextNode(id_="new", text="new")])
    with pytest.raises(ValueError, match=r"differs from.*overwrite"):
        source.copy_to(uri)
    assert stored(uri) == before
    source.delete_nodes(["new", "a1"])
    with pytest.raises(ValueError, match=r"differs from.*overwrite"):
        source.copy_to(uri)

    source.copy_to(uri, overwrite=True)
    assert stored(uri)["text"].keys() == {"a2", "c1"}
    assert kept(at(uri).storage) == kept(at(source.uri).storage), "no image twice"


def test_within_a_database_to_another_name(source: DualIndex, model: Hashed) -> None:
    report = asyncio.run(source.acopy_to(name="other"))

    assert report.images == 2
    found = keys(source)
    drop_index(at(source.uri))
    with pytest.raises(ValueError, match="no such collection"):
        DualIndex(source.uri)
    with DualIndex(
        source.uri, "other", model, image_query_embed_model=Hashed(model_name="q")
    ) as other:
        assert keys(other) == found
        assert Path(str(other.get_nodes(["a2"])[0].image_path)).is_file()


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ({}, "needs uri, name or both"),
        ({"name": "gap"}, "is the index to copy"),
        ({"uri": "same"}, "is the index to copy"),
        ({"name": "1"}, "no digit first"),
        ({"uri": "b.txt"}, "ends in .db"),
    ],
)
def test_what_cannot_be_a_copy(source: DualIndex, to: dict[str, str], error: str) -> None:
    if to.get("uri") == "same":  # another name for the same file
        link = Path(source.uri).with_name("link.db")
        link.symlink_to(source.uri)
        to = {"uri": str(link)}
    with pytest.raises(ValueError, match=error):
        source.copy_to(**to)


def test_there_must_be_something_to_copy(source: DualIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no index 'nope'; its indexes are: gap"):
        copy_index(at(source.uri, "nope"), at(tmp_path / "b.db"))
    with pytest.raises(ValueError, match="no such database"):
        copy_index(at(tmp_path / "nope.db"), at(tmp_path / "b.db"))
    assert not (tmp_path / "b.db").exists()
    assert not (tmp_path / "nope.db").exists()


@pytest.mark.parametrize("step", [1, 4, 9])
def test_a_copy_that_stops_is_no_index_until_it_is_run_again(
    source: DualIndex, model: Hashed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    uri = str(tmp_path / "b.db")
    monkeypatch.setattr(collections, "MESSAGE_BYTES", 2**16)  # one row at a time
    writes = 0
    put = MilvusStore.put_rows

    def stops(self: MilvusStore, rows: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == step:
            raise KeyboardInterrupt
        put(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(MilvusStore, "put_rows", stops)
        with pytest.raises(KeyboardInterrupt):
            source.copy_to(uri)
    for open_it in (lambda: DualIndex(uri), lambda: DualIndex(uri, embed_model=model)):
        with pytest.raises(StoreError, match=r"unfinished: a copy of .*a\.db: gap; run that again"):
            open_it()
    with pytest.raises(StoreError, match="unfinished"):
        copy_index(at(uri), at(tmp_path / "c.db"))
    with pytest.raises(ValueError, match="is not a copy of that"):
        copy_index(other_index(tmp_path), at(uri))

    source.copy_to(uri)
    for part, rows in stored(source.uri).items():
        told = without_place(rows, at(source.uri).storage)
        assert told == without_place(stored(uri)[part], at(uri).storage), part
    assert kept(at(uri).storage) == kept(at(source.uri).storage)


def other_index(tmp_path: Path) -> IndexAddress:
    with DualIndex(str(tmp_path / "other.db"), embed_model=Hashed()):
        return at(tmp_path / "other.db")


def test_a_copy_that_goes_on_has_what_the_source_has_now(
    source: DualIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes and images are added and deleted meanwhile."""
    with monkeypatch.context() as patch:
        patch.setattr(MilvusStore, "finish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            source.copy_to(str(tmp_path / "b.db"))
    source.delete_nodes(["a1", "b2"])
    source.insert_nodes([TextNode(id_="new", text="new")])

    report = source.copy_to(str(tmp_path / "b.db"))

    assert report.removed == 3
    assert stored(str(tmp_path / "b.db"))["text"].keys() == {"a2", "c1", "new"}
    assert kept(at(tmp_path / "b.db").storage) == kept(at(source.uri).storage)


def test_only_a_batch_of_rows_is_held(
    source: DualIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.insert_nodes([TextNode(id_=f"{n:03}", text=f"text {n}") for n in range(50)])
    monkeypatch.setattr(collections, "MESSAGE_BYTES", 2**18)
    sizes = []
    put = MilvusStore.put_rows
    monkeypatch.setattr(
        MilvusStore, "put_rows", lambda self, rows: (sizes.append(len(rows)), put(self, rows))
    )

    source.copy_to(str(tmp_path / "b.db"))

    assert max(sizes) <= 5, "3 × 2¹⁸ bytes hold five rows of the largest kind"
    assert stored(str(tmp_path / "b.db"))["text"].keys() == stored(source.uri)["text"].keys()


# --- trust ---------------------------------------------------------------------------------------


def damage(uri: str, row_id: str, path: str) -> None:
    """Let a row name another file as its image, as the maker of an index could."""
    for part in ("text", "image", "image_query"):
        with MilvusStore(uri=uri, collection_name=f"gap_{part}") as store:
            for page in list(store.collection.pages(["*"])):
                for row in page:
                    if row["id"] == row_id:
                        content = {**json.loads(row["_node_content"]), "image_path": path}
                        store.put_rows([{**row, "_node_content": json.dumps(content)}])


def test_a_copy_takes_no_file_from_elsewhere(
    source: DualIndex, tmp_path: Path, noise_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign index, without notes on this machine, names files of this machine."""
    storage = at(source.uri).storage
    secret = tmp_path / "secret.png"
    shutil.copy(noise_files[3], secret)
    foreign = tmp_path / "foreign"
    shutil.copytree(source.uri, foreign / "a.db")
    shutil.copytree(storage, foreign / "a.db.images" / "gap")
    ours = foreign / "a.db.images" / "gap"
    first, second = sorted(ours.glob("*.png"))
    first.unlink()
    first.symlink_to(secret)  # a link in the storage
    second.write_bytes(secret.read_bytes())  # does not match its name
    damage(str(foreign / "a.db"), "c1", str(secret))
    opened: list[str] = []
    monkeypatch.setattr(
        "llama_index_gap.index.image_storage.open_file",
        lambda path, root: opened.append(str(path)) or path.open("rb"),
    )

    report = copy_index(at(foreign / "a.db"), at(tmp_path / "b.db"))

    assert report.images == 0
    assert {str(second)} >= set(opened)
    assert any("does not match the hash in its name" in each.reason for each in report.skipped)
    copied = at(tmp_path / "b.db").storage
    assert not list(copied.glob("*.png"))
    with (
        DualIndex(
            str(tmp_path / "b.db"),
            embed_model=Hashed(),
            image_query_embed_model=Hashed(model_name="q"),
        ) as index,
        pytest.raises(ValueError, match="image_root"),
    ):
        index.get_nodes(["c1"])[0].resolve_image()


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a" * 64 + "/../../x.png"])
def test_a_copy_writes_below_its_own_storage_only(
    source: DualIndex, tmp_path: Path, name: str
) -> None:
    damage(source.uri, "a2", str(at(source.uri).storage / name))
    before = {path for path in tmp_path.rglob("*") if "a.db" not in str(path)}

    report = source.copy_to(str(tmp_path / "b.db"))

    new = {path for path in tmp_path.rglob("*") if "a.db" not in str(path)} - before
    assert all(path.is_relative_to(tmp_path / "b.db") or "b.db.images" in str(path) for path in new)
    assert stored(source.uri)["image"]["a2"] == stored(str(tmp_path / "b.db"))["image"]["a2"]
    assert report.images == 2


def test_a_link_is_no_storage(source: DualIndex, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b.db.images").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ValueError, match="is a link"):
        source.copy_to(str(tmp_path / "b.db"))


def test_what_lies_in_an_images_place_stays(
    source: DualIndex, tmp_path: Path, noise_files: list[str]
) -> None:
    folder = at(tmp_path / "b.db").storage
    folder.mkdir(parents=True)
    name = sorted(at(source.uri).storage.glob("*.png"))[0].name
    (folder / name).write_text("mine")

    report = source.copy_to(str(tmp_path / "b.db"))

    assert (folder / name).read_text() == "mine"
    assert len(report.skipped) == 1
    assert "in the way" in report.skipped[0].reason


def test_a_row_that_no_database_takes_is_left_out_and_told(
    source: DualIndex, tmp_path: Path
) -> None:
    with MilvusStore(uri=source.uri, collection_name="gap_text") as store:
        page = next(store.collection.pages(["*"]))
        row = dict(page[0])
        store.put_rows([{**row, "id": "nan", "embedding": [float("nan")] * 8}])
        store.put_rows([{**row, "id": "big", "extra": "x" * 70_000}])

    report = source.copy_to(str(tmp_path / "b.db"))

    reasons = {each.source: each.reason for each in report.skipped}
    assert "NaN" in reasons["text nan"]
    assert "its metadata: 7" in reasons["text big"]
    assert {"nan", "big"}.isdisjoint(stored(str(tmp_path / "b.db"))["text"])


# --- dropping ------------------------------------------------------------------------------------


def test_drop_takes_all_of_one_index_and_nothing_else(
    source: DualIndex, tmp_path: Path, noise_files: list[str]
) -> None:
    source.copy_to(name="other")
    mine = at(source.uri).storage / "mine.txt"
    mine.write_text("mine")

    gone = drop_index(at(source.uri))

    assert gone == ["gap_image", "gap_image_query", "gap_text", "gap_text_queries"]
    assert stored(source.uri) == {}
    assert [path.name for path in at(source.uri).storage.iterdir()] == ["mine.txt"]
    assert Path(noise_files[2]).is_file()
    assert kept(at(source.uri, "other").storage)["images"] == 2
    assert stored(source.uri, "other")["text"].keys() == {"a1", "a2", "c1"}
    with pytest.raises(ValueError, match="its indexes are: other"):
        drop_index(at(source.uri))


def test_drop_takes_nobodys_collection(source: DualIndex) -> None:
    """A collection of LlamaIndex's store happens to have such a name."""
    with MilvusStore(uri=source.uri, collection_name="articles_text", dim=4):
        pass

    with pytest.raises(ValueError, match="no index 'articles'"):
        drop_index(at(source.uri, "articles"))


def test_a_drop_that_stops_leaves_no_index(
    source: DualIndex, model: Hashed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ImageStorage, "clear", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drop_index(at(source.uri))
    with pytest.raises(StoreError, match="unfinished: its deletion"):
        DualIndex(source.uri, embed_model=model)

    drop_index(at(source.uri))
    assert stored(source.uri) == {}
    assert not at(source.uri).storage.exists()


# --- moved by hand -------------------------------------------------------------------------------


def test_a_database_that_was_moved_with_its_images_keeps_them(
    model: Hashed, noise_files: list[str], tmp_path: Path
) -> None:
    """Even after a killed insert: a row names the image by its old path."""
    nodes = mixed_nodes(noise_files)
    with DualIndex(str(tmp_path / "a.db"), embed_model=model) as index:
        index.insert_nodes(nodes)
        index._images._note_pending("b2", *(path.name for path in _image_of(index, "b2")))
    (tmp_path / "new").mkdir()
    for moved_on in ("a.db", "a.db.images"):
        (tmp_path / moved_on).rename(tmp_path / "new" / moved_on)

    with DualIndex(str(tmp_path / "new" / "a.db"), embed_model=model) as moved:
        moved.delete_nodes([])  # cleans up

        for node_id in ("a2", 'b"1\\', "b2"):
            [path] = _image_of(moved, node_id)
            assert path.is_file(), node_id
            assert path.is_relative_to(tmp_path / "new")


def _image_of(index: DualIndex, node_id: str) -> list[Path]:
    return [Path(str(node.image_path)) for node in index.get_nodes([node_id])]


def test_a_copy_of_a_moved_database_has_its_images(
    source: DualIndex, tmp_path: Path, noise_files: list[str]
) -> None:
    (tmp_path / "new").mkdir()
    source.close()
    for moved_on in ("a.db", "a.db.images"):
        (tmp_path / moved_on).rename(tmp_path / "new" / moved_on)

    report = copy_index(at(tmp_path / "new" / "a.db"), at(tmp_path / "b.db"))

    assert report.images == 2
    assert not report.skipped


# --- a server ------------------------------------------------------------------------------------


@pytest.mark.server
def test_from_a_file_to_a_server_and_back(
    milvus_url: str, source: DualIndex, model: Hashed, tmp_path: Path
) -> None:
    source.insert_nodes([TextNode(id_=f"{n:04}", text=f"text {n}") for n in range(900)])
    server = IndexAddress(milvus_url, "moved", None, tmp_path / "server images")
    copy_index(at(source.uri), server)
    back = copy_index(server, at(tmp_path / "back.db"))

    assert not back.skipped
    before, after = stored(source.uri), stored(str(tmp_path / "back.db"))
    assert before.keys() == after.keys()
    for part, rows in before.items():
        told = without_place(rows, at(source.uri).storage)
        assert told == without_place(after[part], at(tmp_path / "back.db").storage), part
    assert properties(str(tmp_path / "back.db"), "gap_text")["calibrator"]
    again = copy_index(at(source.uri), server)
    assert sum(again.rows.values()) == 0
    drop_index(server)
    assert not list((tmp_path / "server images").glob("*.png"))


def test_an_index_type_that_a_file_lacks_is_replaced_and_told(
    source: DualIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(collections.Collection, "index_config", lambda _: {"index_type": "DISKANN"})
    with caplog.at_level(logging.WARNING):
        source.copy_to(str(tmp_path / "b.db"))

    assert "its vector index is of type HNSW, since index_type 'DISKANN'" in caplog.text
