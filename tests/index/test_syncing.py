from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from content_vectors import ContentVectors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_nodes import of_document
from llama_index.core.schema import Document, ImageNode, TextNode
from PIL import Image

from llama_index_gap import read_corpus
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.syncing import SyncReport
from llama_index_gap.index.writing import IndexReport
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.store.rows import LABEL_KEYS


@pytest.fixture
def model() -> ContentVectors:
    return ContentVectors()


@pytest.fixture
def index(model: ContentVectors, tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as opened:
        yield opened


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Pages a, b and c, each with an image."""
    folder = tmp_path / "pages"
    for number, name in enumerate("abc"):
        page(folder, name, f"text of {name}", number)
    return folder


def page(folder: Path, name: str, text: str, image: int | None = None) -> None:
    folder.mkdir(exist_ok=True)
    shown = "" if image is None else f"\n\n![image of {name}]({name}.png)"
    (folder / f"{name}.md").write_text(f"# {name}\n\n{text}{shown}\n")
    if image is not None:
        draw(folder / f"{name}.png", image)


def draw(file: Path, colour: int) -> None:
    Image.new("RGB", (8, 8), (colour, 40, 90)).save(file)


def contents(index: DualIndex) -> dict[str, Any]:
    """Nodes, vectors and stored images of an index."""
    found: dict[str, Any] = {}
    for name, collection in index.collections().items():
        store = collection.store
        nodes = store.get_nodes()
        vectors = store.get_vectors([node.node_id for node in nodes])
        assert len(nodes) == store.count()
        for node in nodes:
            told = node.to_dict()
            told["image_path"] = str(told.get("image_path")).rpartition("/")[2]
            found[f"{name} {node.node_id}"] = (json.dumps(told), vectors[node.node_id].tolist())
    folder = index._images.folder
    found["kept"] = sorted(file.name for file in folder.glob("*.png"))
    return found


def documents(index: DualIndex) -> set[str | None]:
    nodes = index._stores["text"].get_nodes() + index._stores["image"].get_nodes()
    return {node.ref_doc_id for node in nodes}


def test_what_is_new_changed_and_vanished(
    index: DualIndex, model: ContentVectors, pages: Path
) -> None:
    first = index.sync(read_corpus(pages))
    assert first.new == ["a.md", "b.md", "c.md"]
    model.embedded.clear()

    assert index.sync(read_corpus(pages)) == SyncReport(
        unchanged=3, written=IndexReport(unchanged=9)
    )
    (pages / "a.md").unlink()
    page(pages, "b", "another text")
    page(pages, "d", "text of d")
    plan = index.sync(read_corpus(pages), dry_run=True)
    assert (plan.new, plan.changed, plan.vanished) == (["d.md"], ["b.md"], ["a.md"])
    assert model.embedded == []
    assert documents(index) == {"a.md", "b.md", "c.md"}

    done = index.sync(read_corpus(pages))
    assert (done.new, done.changed, done.vanished) == (plan.new, plan.changed, plan.vanished)
    assert (done.unchanged, done.others, done.written.deleted) == (1, 0, 5)
    assert model.embedded == ["title: b\n\nanother text", "title: d\n\ntext of d"]
    assert documents(index) == {"b.md", "c.md", "d.md"}
    assert index.count() == {"text": 4, "image": 1}


def test_it_is_as_if_indexed_anew(index: DualIndex, pages: Path, tmp_path: Path) -> None:
    index.sync(read_corpus(pages))
    page(pages, "a", "text of a", 77)  # another image under the same name
    shutil.move(pages / "b.png", pages / "moved.png")
    (pages / "b.md").write_text("# b\n\ntext of b\n\n![image of b](moved.png)\n")

    index.sync(read_corpus(pages))

    fresh = DualIndex.from_documents(
        read_corpus(pages), str(tmp_path / "fresh.db"), embed_model=ContentVectors()
    )
    with fresh:
        assert contents(index) == contents(fresh)


def test_a_renamed_document_and_a_moved_image_keep_their_vectors(
    index: DualIndex, model: ContentVectors, pages: Path
) -> None:
    index.sync(read_corpus(pages))
    model.embedded.clear()
    (pages / "a.md").rename(pages / "renamed.md")
    (pages / "a.png").rename(pages / "elsewhere.png")
    text = (pages / "renamed.md").read_text()
    (pages / "renamed.md").write_text(text.replace("a.png", "elsewhere.png"))

    report = index.sync(read_corpus(pages))

    assert report.renamed == {"renamed.md": "a.md"}
    assert model.embedded == []
    assert documents(index) == {"renamed.md", "b.md", "c.md"}


def test_vectors_that_change_places_are_not_mixed_up(index: DualIndex, pages: Path) -> None:
    """Two texts swap names; whichever row is written first gets the right vector."""
    index.sync(read_corpus(pages))
    one, other = (pages / "a.md").read_text(), (pages / "b.md").read_text()
    (pages / "a.md").write_text(other)
    (pages / "b.md").write_text(one)

    index.sync(read_corpus(pages))

    vectors = index._stores["text"].get_vectors(["a.md#text-0", "b.md#text-0"])
    expected = ContentVectors()._get_text_embedding("title: b\n\ntext of b")
    assert vectors["a.md#text-0"] == pytest.approx(expected, rel=1e-6)


# --- several corpora, and none -------------------------------------------------------------------


def test_documents_of_another_corpus_and_inserted_nodes_stay(
    index: DualIndex, pages: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    page(other, "x", "text of x")
    page(other, "y", "text of y")
    index.sync(read_corpus(pages))
    index.refresh_ref_docs(read_corpus(other))
    index.insert_nodes([TextNode(id_="note", text="a note")])
    (pages / "a.md").unlink()
    (other / "x.md").unlink()

    report = index.sync(read_corpus(pages))

    assert (report.vanished, report.others) == (["a.md"], 3)
    assert documents(index) == {"b.md", "c.md", "x.md", "y.md", None}
    assert index.sync(read_corpus(other)).vanished == ["x.md"]
    report = index.sync(read_corpus(other), whole_index=True)
    assert (report.vanished, report.others) == (["b.md", "c.md", "note"], 0)
    assert documents(index) == {"y.md"}


def test_an_index_that_knows_no_corpora(
    index: DualIndex, model: ContentVectors, pages: Path
) -> None:
    """An index of an earlier version; its documents are taken over when they are read again."""
    index.insert_nodes(read_corpus(pages).nodes)
    forget(index)
    model.embedded.clear()
    (pages / "a.md").unlink()

    report = index.sync(read_corpus(pages))

    assert (report.vanished, report.unchanged, report.others) == ([], 2, 3)
    assert model.embedded == []
    (pages / "b.md").unlink()
    assert index.sync(read_corpus(pages)).vanished == ["b.md"]
    assert index.sync(read_corpus(pages), whole_index=True).vanished == ["a.md"]


def forget(index: DualIndex) -> None:
    """Remove from all rows what earlier versions did not write."""
    for store in index._stores.values():
        ids = sorted(store.rows_from(None))
        rows = list(store._collection.read(ids, ["*"], 100))
        bare = [{k: v for k, v in row.items() if k not in LABEL_KEYS} for row in rows]
        store._collection.call("insert", data=bare)


def test_a_corpus_that_was_moved_is_the_same(
    index: DualIndex, model: ContentVectors, pages: Path, tmp_path: Path
) -> None:
    index.sync(read_corpus(pages))
    moved = pages.rename(tmp_path / "moved")
    (moved / "a.md").unlink()
    model.embedded.clear()

    report = index.sync(read_corpus(moved))

    assert report.notes == [f"treated as the corpus that was at {pages} before"]
    assert (report.vanished, report.unchanged, model.embedded) == (["a.md"], 2, [])
    assert index.sync(read_corpus(moved)).notes == []


def test_a_source_that_the_index_does_not_know_is_noted(index: DualIndex, pages: Path) -> None:
    index.sync([TextNode(id_="first", text="a note")], source="notes")
    index.sync(read_corpus(pages))
    index.sync([TextNode(id_="second", text="a note")], source="wiki")
    index.sync([TextNode(id_="third", text="a note")], source="letters")
    (pages / "a.md").unlink()
    nodes = list(read_corpus(pages).nodes)

    plan = index.sync(nodes, source="page", dry_run=True)

    assert plan.vanished == []
    assert plan.notes[0].startswith("2 documents have the ids of documents written from")
    assert plan.notes[1].startswith("no document in this index comes from the source 'page', so")
    known = plan.notes[1].partition("knows the sources ")[2].partition(". ")[0].split(", ")
    assert (known[0], known[3:]) == (repr(str(pages)), ["…"])
    assert index.sync(nodes, source=str(pages), dry_run=True).vanished == ["a.md"]
    assert index.sync(nodes, source=str(pages), dry_run=True).notes == []


def test_a_copy_of_a_corpus_is_another_one(index: DualIndex, pages: Path, tmp_path: Path) -> None:
    index.sync(read_corpus(pages))
    copy = Path(shutil.copytree(pages, tmp_path / "copy"))
    (copy / "a.md").unlink()

    report = index.sync(read_corpus(copy))

    (note,) = report.notes
    assert note.startswith("2 documents have the ids of documents written from")
    assert documents(index) == {"a.md", "b.md", "c.md"}
    assert index.sync(read_corpus(copy), source=str(pages)).vanished == ["a.md"]


def test_a_name_survives_whatever_happens_to_the_path(
    index: DualIndex, pages: Path, tmp_path: Path
) -> None:
    index.sync(read_corpus(pages), source="articles")
    copy = Path(shutil.copytree(pages, tmp_path / "copy"))
    (copy / "a.md").unlink()

    assert index.sync(read_corpus(copy), source="articles").vanished == ["a.md"]
    with pytest.raises(ValueError, match=r"source=' ': must be a name"):
        index.sync(read_corpus(copy), source=" ")


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
@pytest.mark.parametrize("name", ["caf\udce9", "/".join(["d" * 200] * 8)], ids=["bytes", "long"])
def test_a_path_that_no_row_takes(index: DualIndex, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    page(folder, "a", "text of a")
    page(folder, "b", "text of b")

    assert index.sync(read_corpus(folder)).written.text_rows == 2
    (folder / "a.md").unlink()
    assert index.sync(read_corpus(folder)).vanished == ["a.md"]


def test_nodes_and_documents_need_a_name(index: DualIndex) -> None:
    two = [Document(text="one", id_="1"), Document(text="two", id_="2")]
    with pytest.raises(ValueError, match="needs source="):
        index.sync(two)

    assert index.sync(two, source="mine").new == ["1", "2"]
    assert index.sync(two[:1], source="mine").vanished == ["2"]
    nodes = [TextNode(id_="3", text="three", relationships=of_document("d"))]
    assert index.sync(nodes, source="mine").vanished == ["1"]


# --- what must not be deleted --------------------------------------------------------------------


def test_a_corpus_that_is_not_there_deletes_nothing(index: DualIndex, pages: Path) -> None:
    index.sync(read_corpus(pages))
    shutil.rmtree(pages)
    pages.mkdir()

    with pytest.raises(ValueError, match="no Markdown, HTML or PDF files and no images"):
        index.sync(read_corpus(pages))
    with pytest.raises(ValueError, match="would empty the index"):
        index.sync(Corpus([], [], pages, pages))
    assert index.count() == {"text": 6, "image": 3}


def test_most_of_a_corpus_vanishes_only_if_that_is_meant(index: DualIndex, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for number in range(30):
        page(folder, f"{number:02}", f"text {number}", number if number < 12 else None)
    index.sync(read_corpus(folder))
    for number in range(16):
        (folder / f"{number:02}.md").unlink()

    with pytest.raises(ValueError, match=r"16 of the 30 documents .* not mounted.*Nothing was"):
        index.sync(read_corpus(folder))
    plan = index.sync(read_corpus(folder), dry_run=True)
    assert (len(plan.vanished), len(plan.notes)) == (16, 2)  # documents, and images
    assert len(documents(index)) == 30
    assert len(index.sync(read_corpus(folder), delete_most=True).vanished) == 16


@pytest.mark.parametrize("by_id", [False, True])
def test_a_page_that_cannot_be_read_is_kept(index: DualIndex, pages: Path, by_id: bool) -> None:
    if by_id:
        (pages / "a.md").write_text("---\nid: ferry\n---\ntext of a")
    index.sync(read_corpus(pages))
    (pages / "a.md").write_bytes(b"\xff\xfe\x00broken")
    (pages / "b.md").unlink()

    report = index.sync(read_corpus(pages))

    key = "ferry" if by_id else "a.md"
    assert report.vanished == ["b.md"]
    assert [kept.source for kept in report.kept] == [key]
    assert documents(index) == {key, "c.md"}
    assert index.sync(read_corpus(pages), delete_unreadable=True).vanished == [key]


def test_a_folder_that_is_not_read_any_more_keeps_its_documents(
    index: DualIndex, pages: Path, tmp_path: Path
) -> None:
    page(pages / "sub", "d", "text of d")
    index.sync(read_corpus(pages))
    (pages / "sub").rename(tmp_path / "outside")
    (pages / "sub").symlink_to(tmp_path / "outside")

    (kept,) = index.sync(read_corpus(pages)).kept

    assert kept.source == "sub/d.md"
    assert "lies outside root" in kept.reason
    (pages / "sub").unlink()
    assert index.sync(read_corpus(pages)).vanished == ["sub/d.md"]


def test_a_line_that_cannot_be_read_may_be_any_document_of_its_table(
    index: DualIndex, tmp_path: Path
) -> None:
    table = tmp_path / "docs.jsonl"
    lines = [json.dumps({"id": name, "text": f"text of {name}"}) for name in "abc"]
    table.write_text("\n".join(lines))
    index.sync(read_corpus(table))
    table.write_text("\n".join([lines[0], lines[1][:-3]]))

    report = index.sync(read_corpus(table))

    assert [kept.source for kept in report.kept] == ["b", "c"]
    assert "docs.jsonl:2" in report.kept[0].reason
    assert f"2 kept (b: {report.kept[0].reason}; c: " in report.summary()
    table.write_text(lines[0])
    assert index.sync(read_corpus(table)).vanished == ["b", "c"]


def test_an_image_that_cannot_be_read_is_kept_and_one_that_was_deleted_goes(
    index: DualIndex, pages: Path
) -> None:
    index.sync(read_corpus(pages))
    (pages / "a.png").write_bytes(b"no image")
    (pages / "b.png").unlink()

    report = index.sync(read_corpus(pages))

    assert [kept.source for kept in report.kept] == ["a.md, image a.png"]
    found = {node.node_id for node in index._stores["image"].get_nodes()}
    assert found == {"a.md#image-a.png", "c.md#image-c.png"}
    assert documents(index) == {"a.md", "b.md", "c.md"}


def test_a_page_of_which_nothing_is_left_goes(index: DualIndex, pages: Path) -> None:
    index.sync(read_corpus(pages))
    (pages / "a.md").write_text("")

    assert index.sync(read_corpus(pages)).vanished == ["a.md"]


def test_an_image_goes_with_its_last_document(
    index: DualIndex, pages: Path, tmp_path: Path
) -> None:
    shared = base64.b64encode((pages / "a.png").read_bytes()).decode()
    nodes = [
        ImageNode(id_=f"{name}#image", image=shared, relationships=of_document(name))
        for name in "xy"
    ]
    index.sync(nodes, source="mine")
    (kept,) = index._images.folder.glob("*.png")

    assert index.sync(nodes, source="mine", dry_run=True).unchanged == 2
    index.sync(nodes[1:], source="mine")
    assert kept.exists()
    index.sync([TextNode(id_="z", text="z", relationships=of_document("z"))], source="mine")
    assert not list(index._images.folder.glob("*.png"))


def test_a_plan_keeps_no_image(index: DualIndex, pages: Path) -> None:
    pixels = base64.b64encode((pages / "a.png").read_bytes()).decode()

    assert index.sync([ImageNode(id_="x", image=pixels)], source="s", dry_run=True).new == ["x"]
    assert not index._images.folder.exists()


# --- run again: from_documents, and refresh_ref_docs ---------------------------------------------


def test_run_again_after_a_text_shrank(tmp_path: Path, model: ContentVectors) -> None:
    uri = str(tmp_path / "gap.db")
    long = [Document(text="word " * 1_200, id_="d"), Document(text="other", id_="o")]
    DualIndex.from_documents(long, uri, embed_model=model).close()

    short = [Document(text="a word", id_="d")]
    with DualIndex.from_documents(short, uri, embed_model=model) as index:
        texts = index._stores["text"].get_nodes()
        assert sorted(node.get_content() for node in texts) == ["a word", "other"]
        assert (index.report.text_rows, index.report.deleted) == (1, 2)


def test_run_again_counts_what_vanished(pages: Path, tmp_path: Path, model: ContentVectors) -> None:
    uri = str(tmp_path / "gap.db")
    DualIndex.from_documents(read_corpus(pages), uri, embed_model=model).close()
    (pages / "a.md").unlink()

    with DualIndex.from_documents(read_corpus(pages), uri, embed_model=model) as index:
        assert (index.report.vanished, index.report.unchanged) == (1, 6)
        assert documents(index) == {"a.md", "b.md", "c.md"}
        assert index.sync(read_corpus(pages)).vanished == ["a.md"]


def test_without_blocking_the_event_loop(index: DualIndex, pages: Path) -> None:
    for expected in (3, 0):
        report = asyncio.run(index.async_sync(read_corpus(pages)))
        assert len(report.new) == expected


# --- an image is its content ---------------------------------------------------------------------


def test_a_replaced_image_is_embedded_anew_and_a_touched_one_is_not(
    index: DualIndex, model: ContentVectors, tmp_path: Path
) -> None:
    file, link = tmp_path / "a.png", tmp_path / "link.png"
    draw(file, 1)
    link.symlink_to(file)
    nodes = [ImageNode(id_="file", image_path=str(file)), ImageNode(id_="x", image_path=str(link))]
    index.insert_nodes(nodes)
    model.embedded.clear()

    os.utime(file, (0, 0))
    assert index.insert_nodes(nodes).unchanged == 2
    before = file.stat()
    draw(file, 2)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # its date shows no change
    assert index.insert_nodes(nodes).image_rows == 2
    draw(tmp_path / "b.png", 3)
    link.unlink()
    link.symlink_to(tmp_path / "b.png")
    assert index.insert_nodes(nodes).image_rows == 1
    assert model.embedded == ["a.png", "link.png", "link.png"]
    vector = index._stores["image"].get_vectors(["x"])["x"]
    expected = ContentVectors()._get_image_embedding(tmp_path / "b.png")
    assert vector == pytest.approx(expected, rel=1e-6)


def test_an_image_that_comes_as_base64_is_its_content(index: DualIndex, tmp_path: Path) -> None:
    for colour, written in ((1, 1), (1, 0), (2, 1)):
        draw(tmp_path / "a.png", colour)
        pixels = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
        report = index.insert_nodes([ImageNode(id_="x", image=pixels)])
        assert report.image_rows == written
    assert len(list(index._images.folder.glob("*.png"))) == 1


def test_an_image_replaced_while_it_is_embedded_is_embedded_again(tmp_path: Path) -> None:
    """Even if it later has its former content again."""
    file = tmp_path / "a.png"

    class Replacing(ContentVectors):
        def _get_image_embedding(self, img_file_path: Any) -> list[float]:
            if self.embedded:
                return super()._get_image_embedding(img_file_path)
            draw(file, 2)
            vector = super()._get_image_embedding(img_file_path)
            draw(file, 1)
            return vector

    draw(file, 1)
    node = ImageNode(id_="x", image_path=str(file))
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Replacing()) as index:
        index.insert_nodes([node])
        assert index.insert_nodes([node]).image_rows == 1
        assert index.insert_nodes([node]).unchanged == 1
        vector = index._stores["image"].get_vectors(["x"])["x"]
        expected = ContentVectors()._get_image_embedding(file)
        assert vector == pytest.approx(expected, rel=1e-6)


# --- any series of edits -------------------------------------------------------------------------

NAMES = st.sampled_from("abcd")
EDITS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.integers(0, 3)),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("draw"), NAMES, st.integers(0, 3)),
    st.tuples(st.just("move image"), NAMES, NAMES),
)


def edit(folder: Path, what: str, name: str, other: Any = None) -> None:
    file = folder / f"{name}.md"
    if what == "write":
        image = f"![{name}]({name}.png)" if other % 2 else ""
        file.write_text(f"# {name}\n\n{'some words ' * 300 * other} {image}")
    elif what == "delete":
        file.unlink(missing_ok=True)
    elif what == "rename" and file.exists():
        file.replace(folder / f"{other}.md")
    elif what == "draw":
        draw(folder / f"{name}.png", other)
    elif what == "move image" and (folder / f"{name}.png").exists():
        (folder / f"{name}.png").replace(folder / f"{other}.png")
        for each in folder.glob("*.md"):
            each.write_text(each.read_text().replace(f"]({name}.png)", f"]({other}.png)"))


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(series=st.lists(st.lists(EDITS, min_size=1, max_size=6), min_size=1, max_size=3))
def test_after_any_edits_it_is_as_if_indexed_anew(
    index: DualIndex, tmp_path: Path, series: list[list[Any]]
) -> None:
    folder = tmp_path / "edited"
    shutil.rmtree(folder, ignore_errors=True)
    page(folder, "always", "text", 9)
    index.clear()
    for edits in series:
        for each in edits:
            edit(folder, *each)
        index.sync(read_corpus(folder))

    shutil.rmtree(tmp_path / "fresh.db", ignore_errors=True)
    fresh = DualIndex.from_documents(
        read_corpus(folder), str(tmp_path / "fresh.db"), embed_model=ContentVectors()
    )
    with fresh:
        assert contents(index) == contents(fresh)
        for query in ("some words", "b"):
            scores = [
                {each.key: each.score for each in one.search(query)} for one in (index, fresh)
            ]
            assert scores[0] == pytest.approx(scores[1])
