"""Embedding an index again: completely or not at all, in one step, without leftovers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashed import Hashed, mixed_nodes
from index_nodes import labelled
from llama_index.core.schema import ImageNode, TextNode
from moved_rows import kept, properties, stored

from llama_index_gap import DualIndex, RelevanceCalibrator, StoreError
from llama_index_gap.index.image_storage import default_storage
from llama_index_gap.index.reembedding import reembed_index
from llama_index_gap.index.versions import IndexAddress
from llama_index_gap.store import collection as collections
from llama_index_gap.store.milvus import MilvusStore


def at(uri: Path | str, name: str = "gap") -> IndexAddress:
    return IndexAddress(str(uri), name, None, default_storage(str(uri), name).resolve())


@pytest.fixture
def files(noise_files: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "photos").mkdir()
    return [str(shutil.copy(file, tmp_path / "photos")) for file in noise_files]


@pytest.fixture
def index(files: list[str], tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "a.db"), embed_model=Hashed()) as opened:
        opened.insert_nodes(mixed_nodes(files))
        yield opened


def other(**settings: Any) -> Hashed:
    return Hashed(model_name="other", **{"embedded": [], **settings})


def fresh(tmp_path: Path, files: list[str], *models: Hashed) -> dict[str, dict[str, Any]]:
    """The vectors of a new index with these models."""
    with DualIndex(str(tmp_path / "fresh.db"), "gap", *models) as index:
        index.insert_nodes(mixed_nodes(files))
    return vectors(stored(str(tmp_path / "fresh.db")))


def vectors(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        part.partition("_v")[0]: {row_id: row["embedding"] for row_id, row in each.items()}
        for part, each in rows.items()
    }


def without_vectors(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        part.partition("_v")[0]: {
            row_id: {key: value for key, value in row.items() if key != "embedding"}
            for row_id, row in each.items()
        }
        for part, each in rows.items()
    }


@pytest.mark.parametrize("dimension", [8, 5])
def test_all_is_as_if_the_model_had_made_the_index(
    index: DualIndex, tmp_path: Path, files: list[str], dimension: int
) -> None:
    before = stored(index.uri)
    images = kept(at(index.uri).storage)

    report = index.reembed(other(dimension=dimension))

    assert (report.rows, report.unchanged, report.skipped) == ({"text": 3, "image": 4}, 0, [])
    after = stored(index.uri)
    assert after.keys() == {"text_v1", "image_v1"}, "nothing is left of the old collections"
    assert without_vectors(after) == without_vectors(before)
    assert vectors(after) == fresh(tmp_path, files, other(dimension=dimension))
    assert kept(at(index.uri).storage) == images
    assert index.embed_model.model_name == "other"
    again = index.insert_nodes(mixed_nodes(files))
    assert (again.unchanged, again.text_rows, again.image_rows) == (7, 0, 0)
    index.close()
    with pytest.raises(ValueError, match=r"made with .*other.*, not with .*hashed"):
        DualIndex(index.uri, embed_model=Hashed())
    with DualIndex(index.uri, embed_model=other(dimension=dimension)) as opened:
        assert opened.count() == {"text": 3, "image": 4}


def test_a_second_model_embeds_the_images_and_one_that_stays_embeds_nothing(
    index: DualIndex, tmp_path: Path, files: list[str]
) -> None:
    texts, images = other(), Hashed(model_name="third", dimension=6, embedded=[])
    index.reembed(texts, images)
    assert vectors(stored(index.uri)) == fresh(tmp_path, files, texts, images)

    images.embedded.clear()
    report = index.reembed(Hashed(model_name="fourth", embedded=[]), images)

    assert (report.rows, report.unchanged) == ({"text": 3, "image": 0}, 4)
    assert images.embedded == []
    assert stored(index.uri).keys() == {"text_v2", "image_v2"}


def test_image_queries_keep_their_model_or_gain_one(index: DualIndex) -> None:
    again = Hashed(model_name="again", embedded=[])
    report = index.reembed(Hashed(), image_query_embed_model=again)
    assert report.rows == {"text": 0, "image": 0, "image_query": 4}
    before = vectors(stored(index.uri))["image_query"]
    again.embedded.clear()

    report = index.reembed(other())

    assert report.rows == {"text": 3, "image": 4, "image_query": 0}
    assert again.embedded == []
    assert vectors(stored(index.uri))["image_query"] == before
    assert index.image_query_embed_model is again


def test_what_belongs_to_the_old_model_is_gone_and_told(index: DualIndex) -> None:
    index.learn_queries([f"query {number}" for number in range(30)])
    index.save_calibrator(RelevanceCalibrator.fit(labelled(), source=index.models()))

    report = asyncio.run(index.areembed(other()))

    assert [lost.partition(",")[0] for lost in report.lost] == [
        "the learnt queries",
        "the calibrator",
    ]
    assert index.query_sample().texts == 0
    assert index.calibrator() is None
    assert index.reembed(other()).lost == []
    index.learn_queries([f"query {number}" for number in range(30)])
    assert index.query_sample().texts == 30


def test_a_search_finds_the_old_index_or_the_new_one(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each write of a killed or running call, another object opens a complete index."""
    seen: list[tuple[str, int]] = []

    def looks(of: Any) -> Any:
        def looked(self: MilvusStore, *args: Any, **kwargs: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.undo()
                seen.append(found(index.uri))
                done = of(self, *args, **kwargs)
                seen.append(found(index.uri))
            return done

        return looked

    put, properties_ = MilvusStore.put_rows, MilvusStore.set_properties
    monkeypatch.setattr(MilvusStore, "put_rows", looks(put))
    monkeypatch.setattr(MilvusStore, "set_properties", looks(properties_))

    reembed_index(at(index.uri), other())

    assert set(seen) == {("hashed", 7), ("other", 7)}
    assert seen == sorted(seen), "first the old one, then the new one"
    with pytest.raises(StoreError, match="re-embedded: open the index again"):
        index.search("a red bicycle")  # opened before: never a mix of the two


def found(uri: str) -> tuple[str, int]:
    for model in (Hashed(), other()):
        try:
            with DualIndex(uri, embed_model=model) as opened:
                return model.model_name, sum(opened.count().values())
        except ValueError:
            continue
    raise AssertionError("neither opens")


@pytest.mark.parametrize("step", [1, 3, 6])
def test_run_again_it_ends_as_if_it_had_not_been_stopped(
    index: DualIndex, tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(collections, "MESSAGE_BYTES", 2**16)  # one row at a time
    put, writes = MilvusStore.put_rows, 0

    def stops(self: MilvusStore, rows: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == step:
            raise KeyboardInterrupt
        put(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(MilvusStore, "put_rows", stops)
        with pytest.raises(KeyboardInterrupt):
            index.reembed(other())
    assert found(index.uri) == ("hashed", 7)

    model = other()
    report = index.reembed(model)

    assert report.unchanged == step - 1 == 7 - len(model.embedded)
    assert stored(index.uri).keys() == {"text_v1", "image_v1"}
    assert vectors(stored(index.uri)) == fresh(tmp_path, files, other())


def test_stopped_after_the_change_it_clears_up(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("llama_index_gap.index.reembedding.drop_parts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reembed_index(at(index.uri), other())
    assert found(index.uri) == ("other", 7)
    assert stored(index.uri).keys() == {"text", "image", "text_v1", "image_v1"}

    report = reembed_index(at(index.uri), other())

    assert (sum(report.rows.values()), report.unchanged) == (0, 7)
    assert stored(index.uri).keys() == {"text_v1", "image_v1"}


def test_what_another_model_had_begun_goes(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MilvusStore, "finish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reembed_index(at(index.uri), other())

    reembed_index(at(index.uri), Hashed(model_name="third", dimension=3))

    assert stored(index.uri).keys() == {"text_v1", "image_v1"}
    assert len(stored(index.uri)["text_v1"]["a1"]["embedding"]) == 3


def test_overwriting_takes_all_versions(index: DualIndex) -> None:
    index.reembed(other())
    index.close()
    with DualIndex(index.uri, embed_model=Hashed(), overwrite=True) as anew:
        assert anew.count() == {"text": 0, "image": 0}
    assert sum(map(len, stored(index.uri).values())) == 0
    assert len(stored(index.uri)) == 2


# --- images that cannot be read ------------------------------------------------------------------


def test_an_image_that_is_gone_stops_the_change_and_names_the_way_out(
    index: DualIndex, files: list[str], tmp_path: Path
) -> None:
    index.insert_nodes([ImageNode(id_="d1", image_path=files[3])])
    Path(files[2]).unlink()
    before = stored(index.uri)

    with pytest.raises(ValueError, match=r"1 row cannot be embedded: image c1 .*no such") as no:
        index.reembed(other())
    assert "--image-root" in str(no.value)
    assert "--skip-unreadable" in str(no.value)
    assert {part: rows for part, rows in stored(index.uri).items() if "_v" not in part} == before
    assert index.count() == {"text": 3, "image": 5}

    model = other()
    report = index.reembed(model, skip_unreadable=True)

    assert model.embedded == [], "all else was embedded before"
    assert [each.source for each in report.skipped] == ["image c1"]
    assert index.count() == {"text": 3, "image": 4}
    assert index.get_nodes(["c1"]), "its caption stays"


def test_images_that_moved_are_found_below_the_root(
    index: DualIndex, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "photos").rename(tmp_path / "moved")

    with pytest.raises(ValueError, match="1 row cannot be embedded"):
        reembed_index(at(index.uri), other())
    report = reembed_index(at(index.uri), other(), image_root=tmp_path / "moved")

    assert (report.rows["image"], report.skipped) == (1, [])


def test_a_foreign_index_reads_no_image_of_this_machine(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders that an index stores allow nothing."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_DATA_HOME", str(tmp_path / "somebody else"))
        with DualIndex(str(tmp_path / "foreign.db"), embed_model=Hashed()) as foreign:
            foreign.insert_nodes([ImageNode(id_="x", text="a caption", image_path=files[0])])
    model = other()

    with pytest.raises(ValueError, match="cannot be embedded: image x"):
        reembed_index(at(tmp_path / "foreign.db"), model)
    assert model.embedded == ["a caption"]


def test_an_image_that_was_replaced_has_its_new_vector_and_digest(
    index: DualIndex, files: list[str]
) -> None:
    shutil.copy(files[4], files[2])

    index.reembed(other())

    found_ = np.array(stored(index.uri)["image_v1"]["c1"]["embedding"], dtype=np.float32)
    asked = np.array(other()._get_image_embedding(files[4]), dtype=np.float32)
    assert np.array_equal(found_, asked)
    assert index.insert_nodes(mixed_nodes(files)).unchanged == 7


@pytest.mark.parametrize(
    ("models", "error"),
    [
        ((Hashed(model_name="blind"),), "blind embeds no images"),
        ((Hashed(), Hashed(model_name="mute")), "mute embeds no texts"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything(
    index: DualIndex, models: tuple[Hashed, ...], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def modalities(self: Hashed) -> tuple[str, ...]:
        return {"blind": ("text",), "mute": ("image",)}.get(self.model_name, ("text", "image"))

    monkeypatch.setattr(Hashed, "modalities", property(modalities), raising=False)
    with pytest.raises(ValueError, match=error):
        index.reembed(*models)
    assert stored(index.uri).keys() == {"text", "image"}


@pytest.mark.parametrize("part", ["text", "image"])
def test_what_is_written_meanwhile_is_not_lost(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A text is inserted before the current place, while texts or images are embedded."""
    put = MilvusStore.put_rows

    def writes(self: MilvusStore, rows: Any) -> None:
        put(self, rows)
        if self.collection_name == f"gap_{part}_v1":
            with monkeypatch.context() as patch:
                patch.setattr(MilvusStore, "put_rows", put)
                index.insert_nodes([TextNode(id_="a0", text="late")])

    with monkeypatch.context() as patch:
        patch.setattr(MilvusStore, "put_rows", writes)
        with pytest.raises(StoreError, match="was written to meanwhile"):
            reembed_index(at(index.uri), other())
    assert found(index.uri) == ("hashed", 8)

    reembed_index(at(index.uri), other())
    assert "a0" in stored(index.uri)["text_v1"]


@pytest.mark.server
def test_on_a_server(milvus_url: str, tmp_path: Path, files: list[str]) -> None:
    address = IndexAddress(milvus_url, "anew", None, tmp_path / "images")
    with DualIndex(milvus_url, "anew", embed_model=Hashed(), storage_dir=address.storage) as index:
        index.insert_nodes(mixed_nodes(files))
        reading = index.as_retriever()
        index.reembed(other(dimension=5))
        assert vectors(stored(milvus_url, "anew")) == fresh(tmp_path, files, other(dimension=5))
        assert properties(milvus_url, "anew_text_v1")["unfinished"] == ""
        with pytest.raises(StoreError, match=r"open a new|open the index again"):
            reading.retrieve("a red bicycle")
        with pytest.raises(StoreError, match="re-embedded: open the index again"):
            MilvusStore(uri=milvus_url, collection_name="anew_text_v1").drop()
            index.search("a red bicycle")
