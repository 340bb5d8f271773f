"""Queries that an index learns from: what is kept, for which collection, and its effect."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compass import Compass, Needle, four_nodes
from llama_index.core.schema import QueryBundle, TextNode
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, DualIndex, StoreError
from llama_index_gap.store.collection import Collection
from llama_index_gap.store.milvus import MilvusStore


def texts(angle: int, count: int = 30) -> list[str]:
    return [f"{angle} degrees, number {number}" for number in range(count)]


def images(angle: int, count: int = 30) -> list[Path]:
    return [Path(f"/nowhere/{angle} degrees, {number}.png") for number in range(count)]


def spread(index: DualIndex, asking: Any = "text", name: Any = "text") -> float | None:
    return index.collections()[name].background(asking).spread(0.0)


@pytest.fixture
def model() -> Compass:
    return Compass(embedded=[])


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "gap.db")


@pytest.fixture
def index(uri: str, model: Compass) -> Iterator[DualIndex]:
    with DualIndex(uri, embed_model=model) as opened:
        opened.insert_nodes(four_nodes())
        yield opened


# --- what is learnt ------------------------------------------------------------------------------


def test_the_spread_of_queries_by_hand(index: DualIndex) -> None:
    """A query at 0° scores 1, 0, −1 and 0, with variance ½, as does any other angle."""
    assert spread(index) is None

    report = index.learn_queries(texts(0) + texts(45))

    assert (report.texts, report.images, report.skipped) == (60, 0, [])
    assert spread(index) == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert spread(index, name="image") == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert spread(index, asking="image", name="image") is None
    assert index.search("10 degrees").fusion.sample_queries == 60
    assert index.count() == {"text": 4, "image": 4}


def test_each_modality_is_replaced_by_itself(index: DualIndex) -> None:
    index.learn_queries(texts(0))
    before = index.query_sample()
    index.learn_queries(images(90, 40))
    both = index.query_sample()
    index.learn_queries([QueryBundle(text, image_path=None) for text in texts(180, 31)])
    after = index.query_sample()

    assert (before.texts, before.images) == (30, 0)
    assert (both.texts, both.images) == (30, 40)
    assert (after.texts, after.images) == (31, 40)
    assert len({before.fingerprint, both.fingerprint, after.fingerprint}) == 3
    assert str(after) == "31 text queries and 40 image queries"
    assert spread(index, "image", "image") == pytest.approx(np.sqrt(0.5), abs=1e-6)


def test_fewer_than_before_leave_no_rest(index: DualIndex) -> None:
    index.learn_queries(texts(0, 200))
    index.learn_queries(texts(90, 30))

    assert index.query_sample().texts == 30


def test_a_query_of_both_counts_for_each(index: DualIndex) -> None:
    both = [
        QueryBundle(text, image_path=str(image))
        for text, image in zip(texts(0), images(90), strict=True)
    ]

    report = index.learn_queries(both)

    assert (report.texts, report.images) == (30, 30)


def test_what_is_no_query_is_counted(index: DualIndex) -> None:
    given = [*texts(0), "", " \n", f" {texts(0)[0]} ", "north", *images(90), *images(90, 2)]

    report = index.learn_queries(iter(given))

    assert (report.texts, report.images, report.duplicates) == (30, 30, 3)
    assert [skipped.source for skipped in report.skipped] == ["query 31", "query 32", "query 34"]
    assert "'north' points nowhere" in report.skipped[-1].reason
    assert "3 duplicates, 3 skipped" in report.summary()


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([], "no queries to learn from"),
        (["", " "], r"no queries to learn from \(2 skipped\); pass at least 30"),
        (texts(0, 29), "29 text queries to learn from .*: a modality needs at least 30"),
        (texts(0, 29) * 2, "29 text queries to learn from .29 duplicates"),
        (texts(0) + images(0, 2), "2 image queries to learn from .* or no images"),
        (["north", *texts(0, 29)], "the first because 'north' points nowhere"),
        ("0 degrees", "must be a list of queries, not one"),
        ([*texts(0), 7], "query 31 is of type int: must be a text"),
        ([*texts(0), {"text": "0"}], "query 31 is of type dict: must be a text"),
    ],
)
def test_what_cannot_be_learnt_changes_nothing(
    index: DualIndex, queries: Any, message: str
) -> None:
    index.learn_queries(texts(0))
    before = index.query_sample()

    with pytest.raises(ValueError, match=message):
        index.learn_queries(queries)

    assert index.query_sample() == before


def test_the_name_of_an_image_is_no_text(index: DualIndex, noise_files: list[str]) -> None:
    for name in (noise_files[0], "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match=r"query 31, .*, is an image, not a text: pass a Path"):
            index.learn_queries([*texts(0), name])
    assert index.learn_queries([*texts(0), "0 degrees, none.png"]).texts == 31


def test_of_more_than_300_the_same_300_are_drawn(
    index: DualIndex, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llama_index_gap")
    many = [f"{number} degrees" for number in range(400)]

    first = index.learn_queries(many)
    drawn = index.query_sample()
    index.learn_queries(many)

    assert (first.texts, first.left_out) == (300, 100)
    assert "100 not drawn" in first.summary()
    assert "100 not drawn" in caplog.text
    assert index.query_sample() == drawn
    index.learn_queries(many[:300])
    assert index.query_sample() != drawn


def test_images_of_any_form_once_and_unreadable_ones_counted(
    tiny_clip: Path, tmp_path: Path, uri: str
) -> None:
    rng = np.random.default_rng(0)
    opened = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(31)]
    paths = [tmp_path / f"{number}.png" for number in range(31)]
    for image, path in zip(opened, paths, strict=True):
        image.save(path)
    (tmp_path / "copy.png").write_bytes(paths[0].read_bytes())
    (tmp_path / "text.png").write_text("no image")
    content = paths[29].read_bytes()
    given = [*paths[:29], tmp_path / "copy.png", tmp_path / "text.png", tmp_path / "none.png"]

    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as index:
        report = index.learn_queries([*given, content, BytesIO(content), opened[30], b"no image"])

        assert (report.images, report.duplicates, len(report.skipped)) == (31, 2, 3)
        assert index.query_sample().images == 31


# --- for whom ------------------------------------------------------------------------------------


def test_another_process_has_it_too(tiny_clip: Path, uri: str) -> None:
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as index:
        index.insert_nodes([TextNode(id_=f"{i}", text=f"text {i}") for i in range(40)])
        index.learn_queries([f"query {number}" for number in range(40)])
        known = index.query_sample()
    code = (
        "import sys; from llama_index_gap import DualIndex\n"
        "with DualIndex(sys.argv[1]) as index:\n"
        "    print(index.query_sample().fingerprint, index.search('a').fusion.sample_queries)"
    )

    shown = subprocess.run(
        [sys.executable, "-c", code, uri], capture_output=True, text=True, check=False
    )

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == [known.fingerprint, "40"]


def test_from_several_event_loops(index: DualIndex) -> None:
    for angle in (0, 90):
        assert asyncio.run(index.alearn_queries(texts(angle))).texts == 30
    asyncio.run(index.aforget_queries())
    assert index.query_sample().texts == 0


def test_it_is_deleted_with_the_index_or_by_itself(index: DualIndex, model: Compass) -> None:
    index.learn_queries(texts(0))
    index.forget_queries()
    index.forget_queries()
    assert str(index.query_sample()) == "no queries"
    assert spread(index) is None

    index.learn_queries(texts(0))
    index.clear()
    assert index.query_sample().texts == 0

    index.learn_queries(texts(0))
    with DualIndex(index.uri, embed_model=model, overwrite=True) as anew:
        assert anew.query_sample().texts == 0


def test_an_index_of_a_similar_name_is_left_alone(uri: str, model: Compass) -> None:
    names = ("gap", "gap_text", "gap_queries", "gap_text_queries", "gap_image_query")
    indexes = [DualIndex(uri, name, model) for name in names]
    for index in indexes:
        index.insert_nodes(four_nodes())
        index.learn_queries(texts(0))

    indexes[0].clear()

    for index in indexes[1:]:
        assert index.count() == {"text": 4, "image": 4}
        assert index.query_sample().texts == 30
    for index in indexes:
        index.close()


def test_a_model_for_image_queries_learns_images_and_the_images_model_none(
    uri: str, model: Compass
) -> None:
    with DualIndex(uri, embed_model=model, image_query_embed_model=Needle(embedded=[])) as index:
        index.insert_nodes(four_nodes())
        index.learn_queries([*texts(0), *images(90)])

        assert spread(index, "image", "image_query") == pytest.approx(np.sqrt(0.5), abs=1e-6)
        assert index.query_sample().images == 30
        assert index.query_sample().texts == 30


# --- two models ----------------------------------------------------------------------------------


def many_texts(count: int) -> list[TextNode]:
    return [TextNode(id_=f"{i}", text=f"{i} degrees") for i in range(count)]


def test_stored_texts_are_embedded_once_by_the_model_of_images(uri: str, model: Compass) -> None:
    needle = Needle(embedded=[])

    def embedded(added: int) -> int:
        """How many texts the images' model embeds in a newly opened index."""
        with DualIndex(uri, "gap", model, needle) as index:
            index.insert_nodes(many_texts(added))
            needle.embedded.clear()
            assert index.collections()["image"].background("text").size == 4
            return len(needle.embedded)

    with DualIndex(uri, "gap", model, needle) as index:
        index.insert_nodes(four_nodes())
    assert embedded(40) == 44
    assert embedded(40) == 0
    assert embedded(80) == 0  # 84 is less than twice 44
    assert embedded(100) == 104
    assert embedded(100) == 0

    with DualIndex(uri, "gap", model, needle) as index:
        index.learn_queries(texts(0, 32))
        assert index.query_sample().texts == 32
        index.delete_nodes([f"{number}" for number in range(60)])
    assert embedded(0) == 0  # the queries are used instead
    with DualIndex(uri, "gap", model, needle) as index:
        index.forget_queries()
    assert embedded(0) == 44


def test_a_database_that_takes_nothing_is_no_failure(
    uri: str,
    model: Compass,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with DualIndex(uri, "gap", model, Needle(embedded=[])) as index:
        index.insert_nodes([*four_nodes(), *many_texts(40)])
        call = Collection.call

        def refusing(self: Collection, method: str, **arguments: Any) -> Any:
            if method == "create_collection":
                raise StoreError("permission denied")
            return call(self, method, **arguments)

        monkeypatch.setattr(Collection, "call", refusing)

        assert index.search("0 degrees")[0].key == "0"
    assert (
        "could not keep the vectors of 44 texts, embedded by the images' model to find hubs"
        in caplog.text
    )
    assert "permission denied" in caplog.text


# --- rows of somebody else's ---------------------------------------------------------------------


def rows_of(uri: str) -> MilvusStore:
    return MilvusStore(uri=uri, collection_name="gap_text_queries", dim=2)


def other_model(store: MilvusStore) -> None:
    stored = store.properties()["models"]
    store.set_properties({"models": stored.replace("compass", "astrolabe")})


def no_model(store: MilvusStore) -> None:
    store.set_properties({"models": "[[["})


def other_row(store: MilvusStore) -> None:
    store.add([TextNode(id_="x", text="", metadata={"kind": "spy"}, embedding=[1.0, 0.0])])


def no_count(store: MilvusStore) -> None:
    about = {"kind": "stored", "texts": "many"}
    store.add([TextNode(id_="x", text="", metadata=about, embedding=[1.0, 0.0])])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_model, "embedded by .*'astrolabe'.*, but the index has .*'compass'"),
        (no_model, "names no models"),
        (other_row, "row 'x' is not a query; its kind is 'spy'"),
        (no_count, "row 'x' stands for 'many' texts"),
    ],
)
def test_what_is_damaged_is_named_and_can_be_replaced(
    uri: str, model: Compass, damage: Any, message: str
) -> None:
    with DualIndex(uri, embed_model=model) as index:
        index.insert_nodes(four_nodes())
        index.learn_queries(texts(0))
    with rows_of(uri) as store:
        damage(store)

    with DualIndex(uri, embed_model=model) as index:
        with pytest.raises(StoreError, match=f"gap_text_queries.*{message}.*forget_queries"):
            index.search("0 degrees")
        index.learn_queries(texts(90))
        assert index.search("0 degrees").fusion.sample_queries == 30


def test_vectors_of_other_dimensions_are_named_and_can_be_forgotten(
    uri: str, model: Compass
) -> None:
    with DualIndex(uri, embed_model=model) as index:
        index.insert_nodes(four_nodes())
        index.learn_queries(texts(0))
    with rows_of(uri) as store:
        properties = store.properties()
    with MilvusStore(uri=uri, collection_name="gap_text_queries", dim=3, overwrite=True) as store:
        store.set_properties(properties)
        about = {"kind": "text"}
        store.add([TextNode(id_="x", text="", metadata=about, embedding=[1.0, 0.0, 0.0])])

    with DualIndex(uri, embed_model=model) as index:
        with pytest.raises(StoreError, match=r"gap_text_queries.*vectors of 3 dimensions"):
            index.query_sample()
        index.forget_queries()
        assert index.search("0 degrees").fusion.sample_queries == 0


def test_more_rows_than_a_sample_has_are_not_read(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.learn_queries(texts(0))
    monkeypatch.setattr("llama_index_gap.index.query_sample.MOST_STORED", 9)

    with pytest.raises(StoreError, match="it has 30 rows; a query sample has at most 27"):
        index.query_sample()


def test_few_queries_steady_the_spread_and_leave_hubs_to_stored_texts(
    index: DualIndex, model: Compass
) -> None:
    """Finding hubs takes 32 references."""
    rng = np.random.default_rng(0)
    near = np.abs(rng.normal(0, 20, 60))  # directions with many and with few neighbours
    index.insert_nodes([TextNode(id_=f"n{i}", text=f"{a:.2f} x") for i, a in enumerate(near)])
    stored = index.collections()["text"].background("text").hubs
    index.learn_queries(texts(0, 31))
    few = index.collections()["text"].background("text")
    index.learn_queries(texts(0, 32))
    enough = index.collections()["text"].background("text")

    assert stored is not None
    assert few.hubs is not None
    assert len(few.hubs.references) == len(stored.references) == 64
    assert few.queries is not None
    assert len(few.queries) == 31
    assert enough.hubs is None or len(enough.hubs.references) == 32
