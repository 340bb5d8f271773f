"""An index opens only images in its folders, and deletes only files that it wrote."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    TextNode,
)
from PIL import Image

from llama_index_gap import DualIndex, ImageError, MilvusStore, open_image, read_corpus
from llama_index_gap.cli.pages.search_page import render_page
from llama_index_gap.errors import GapError
from llama_index_gap.index.indexed_images import IMAGES_PROPERTY
from llama_index_gap.nodes import CaptionedImageNode
from llama_index_gap.store.rows import to_node


class Colours(MockMultiModalEmbedding):
    """Embeds each image as its mean colour, and counts the images."""

    embedded: list[Any] = []

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        self.embedded.append(img_file_path)
        return [*map(float, open_image(img_file_path).resize((1, 1)).getpixel((0, 0))), 1.0]

    def _get_text_embedding(self, text: str) -> list[float]:
        self.embedded += [text] if text != "a" else []  # which asks for the dimensions
        return [1.0, 1.0, 1.0, 1.0]


def draw(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, "PNG")
    return path


def as_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def opened(uri: Path, **settings: Any) -> DualIndex:
    return DualIndex(str(uri), embed_model=Colours(embed_dim=4), **settings)


def copied(uri: Path, to: Path) -> Path:
    """Copy a database file or folder to another place."""
    (shutil.copytree if uri.is_dir() else shutil.copy)(uri, to)
    return to


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return draw(tmp_path / "private" / "secret.png", "green")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    lines = []
    for colour in ("red", "blue"):
        draw(folder / "images" / f"{colour}.png", colour)
        image = {"path": f"images/{colour}.png", "caption": f"a {colour} square"}
        lines.append(json.dumps({"id": colour, "text": f"on {colour}", "images": [image]}))
    (folder / "docs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def uri(corpus: Path, tmp_path: Path) -> Path:
    """An index of the corpus, made by this user."""
    uri, model = tmp_path / "gap.db", Colours(embed_dim=4)
    DualIndex.from_documents(read_corpus(corpus), str(uri), embed_model=model).close()
    return uri


@pytest.fixture
def hostile(uri: Path, secret: Path) -> Path:
    """The same index, with a row for a private image that somebody else wrote."""
    stored = json.dumps({"id": "0" * 32, "folders": ["/", str(secret.parent)]})
    node = ImageNode(id_="evil", text="x", image_path=str(secret), embedding=[1.0, 1.0, 1.0, 1.0])
    with MilvusStore(uri=uri, collection_name="gap_image") as store:
        store.add([node])
        store.set_properties({IMAGES_PROPERTY: stored})
    return uri


def images_in(page: str) -> int:
    return page.count("data:image/")


# --- opening ------------------------------------------------------------------------------------


def test_the_index_that_this_user_made_shows_its_images(uri: Path, corpus: Path) -> None:
    inside = corpus / "images" / "red.png"
    inside.unlink()
    inside.symlink_to("blue.png")  # a link that stays inside
    with opened(uri) as index:
        assert images_in(render_page(index.search("squares"))) == 2


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_an_image_that_became_a_link_elsewhere_is_opened_by_nobody(
    linked: str, uri: Path, corpus: Path, secret: Path
) -> None:
    if linked == "file":
        (corpus / "images" / "red.png").unlink()
        (corpus / "images" / "red.png").symlink_to(secret)
    else:
        shutil.rmtree(corpus / "images")
        (corpus / "images").symlink_to(secret.parent)
        draw(secret.parent / "red.png", "green")
    with opened(uri) as index:
        result = index.search("a red square", top_k=10, images_per_document=2)
        (node,) = index.get_nodes(["red#image-images/red.png"])
        calls: list[Callable[[], Any]] = [
            lambda: open_image(node),
            lambda: index.search(image=node),
            node.get_content_blocks,
            node.resolve_image,
        ]
        for call in calls:
            with pytest.raises(ImageError, match=rf"image_root={corpus}.*--image-root"):
                call()

        assert "red" in {document.key for document in result}  # the hit is there
        for page in (render_page(result), result._repr_html_()):
            assert images_in(page) == (1 if linked == "file" else 0)
            assert "lies outside the folders" in page
        tool = index.as_retriever(complete=True).as_tool()
        answer = tool.call("a red square")
        assert "lies outside the folders" in str(answer.content)
        similar = tool.call(image=node.node_id)
        assert similar.is_error
        assert "lies outside" in str(similar.content)
        report = index.insert_nodes([node])  # nor embedded anew
        assert "lies outside" in report.skipped[0].reason


def test_an_index_from_elsewhere_shows_only_what_the_user_names(
    hostile: Path, corpus: Path, secret: Path, tmp_path: Path
) -> None:
    elsewhere = copied(hostile, tmp_path / "copy.db")
    for place in (hostile, elsewhere):  # in the place of ours, and in another
        with opened(place) as index:
            assert images_in(render_page(index.search("x"))) == 0
            index.allow_images(corpus)
            page = render_page(index.search("x"))
            assert images_in(page) == 2
            assert "lies outside the folders" in page
    with opened(elsewhere, image_root=corpus) as index:
        assert images_in(render_page(index.search("x"))) == 2
    with opened(elsewhere, image_root=[corpus, secret.parent]) as index:
        assert images_in(render_page(index.search("x"))) == 3
    with pytest.raises(ValueError, match=r"image_root=.*nowhere: no such folder"):
        opened(elsewhere, image_root=tmp_path / "nowhere")


def test_a_row_that_somebody_added_to_our_index_shows_no_other_folder(
    uri: Path, secret: Path
) -> None:
    node = ImageNode(id_="evil", text="x", image_path=str(secret), embedding=[1.0, 1.0, 1.0, 1.0])
    with MilvusStore(uri=uri, collection_name="gap_image") as store:
        store.add([node])
    with opened(uri) as index:
        page = render_page(index.search("x"))
        assert images_in(page) == 2
        assert "lies outside" in page


def test_a_copy_of_a_store_keeps_to_the_folders(hostile: Path) -> None:
    with opened(hostile) as index:
        with index.collections()["image"].store.__deepcopy__() as copy:
            (node,) = copy.get_nodes(["evil"])
        with pytest.raises(ImageError, match="lies outside"):
            open_image(node)


@pytest.mark.parametrize("kind", ["Node", "ImageDocument", "IndexNode", "sound"])
def test_a_row_of_any_class_is_confined(kind: str, secret: Path, uri: Path) -> None:
    inner = ImageNode(image_path=str(secret))
    path = MediaResource(path=secret)
    made = {
        "Node": Node(image_resource=path),
        "ImageDocument": ImageDocument(image_path=str(secret)),
        "IndexNode": IndexNode(text="x", index_id="x", obj=inner),
        "sound": Node(text_resource=MediaResource(text="x"), audio_resource=path),
    }[kind]
    name = "IndexNode" if kind == "IndexNode" else "Node"
    row = {"_node_content": made.to_json(), "_node_type": name, "text": "x"}
    with opened(uri) as index:
        folders = index.get_nodes(["red#image-images/red.png"])[0].image_folders
    node = to_node(row, folders)
    if kind == "sound":
        assert [block.block_type for block in node.get_content_blocks()] == ["text"]
        return
    node = node.obj if isinstance(node, IndexNode) else node
    assert isinstance(node, CaptionedImageNode)
    with pytest.raises(ImageError, match="lies outside"):
        node.get_content_blocks()


@pytest.mark.parametrize("stored", ["{", "[]", '{"id": "../../x", "folders": []}', '{"id": 5}'])
def test_a_damaged_property_is_a_store_error(stored: str, uri: Path) -> None:
    with MilvusStore(uri=uri, collection_name="gap_image") as store:
        store.set_properties({IMAGES_PROPERTY: stored})
    with pytest.raises(GapError, match="'images' is damaged"):
        opened(uri)


# --- a corpus that moves ------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_a_moved_corpus_is_found_and_not_embedded_anew(
    absolute: bool, corpus: Path, tmp_path: Path
) -> None:
    def read(folder: Path) -> Any:
        if absolute:
            lines = [json.loads(line) for line in (folder / "docs.jsonl").read_text().splitlines()]
            for line in lines:
                image = line["images"][0]
                image["path"] = str(folder / "images" / Path(image["path"]).name)
            (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return read_corpus(folder)

    uri, model = tmp_path / "moving.db", Colours(embed_dim=4)
    DualIndex.from_documents(read(corpus), str(uri), embed_model=model).close()
    moved = corpus.rename(tmp_path / "moved")
    with opened(uri, image_root=moved) as index:  # one setting
        assert images_in(render_page(index.search("squares"))) == 2
        before = index.search("red").to_dict()["documents"]
    model.embedded.clear()
    with DualIndex.from_documents(read(moved), str(uri), embed_model=model) as index:
        assert (index.report.unchanged, index.report.image_rows) == (6, 0)
        assert model.embedded == []
        (node,) = index.get_nodes(["red#image-images/red.png"])
        assert node.image_path == str(moved / "images" / "red.png")
        after = index.search("red").to_dict()["documents"]
    assert [each["score"] for each in before] == pytest.approx([each["score"] for each in after])
    with opened(uri) as index:
        assert images_in(render_page(index.search("squares"))) == 2


def test_a_replaced_image_is_embedded_anew_and_its_caption_is_not(
    corpus: Path, tmp_path: Path
) -> None:
    uri, model = tmp_path / "changing.db", Colours(embed_dim=4)
    DualIndex.from_documents(read_corpus(corpus), str(uri), embed_model=model).close()
    model.embedded.clear()
    image = corpus / "images" / "red.png"
    size, times = image.stat().st_size, (image.stat().st_atime, image.stat().st_mtime)
    draw(image, "lime")
    image.write_bytes(image.read_bytes().ljust(size, b"\0"))
    os.utime(image, times)  # of the same age
    with DualIndex.from_documents(read_corpus(corpus), str(uri), embed_model=model) as index:
        assert (index.report.image_rows, index.report.unchanged) == (1, 5)
        assert model.embedded == [str(image)]


# --- deleting -----------------------------------------------------------------------------------


@pytest.fixture
def mydata(tmp_path: Path, secret: Path) -> Iterator[Path]:
    """A user's folder whose names look like those of a storage folder; all of it must stay."""
    folder = tmp_path / "mydata"
    own = "a" * 64 + ".png"
    for name in (
        "thesis.txt",
        "nodes/thesis.txt",
        f"nodes/{'b' * 32}",
        "pending/list.txt",
        f"pending/{'b' * 32}",
        own,
        "photos.users/me.txt",
        f"{'c' * 64}.png.users/me.txt",
        f"{'c' * 64}.png.users/{'d' * 32}",
        f"{'c' * 64}.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "nodes" / ("e" * 32)).symlink_to(secret)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    assert secret.exists()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_nothing_of_the_user_s_own_is_deleted(mydata: Path, tmp_path: Path, secret: Path) -> None:
    data = as_base64(secret)
    with opened(tmp_path / "gap.db", storage_dir=mydata) as index:
        for end in (index.clear, lambda: index.delete_nodes(["a", "b", "c"])):
            foreign = [
                ImageNode(id_="b", image_path=str(mydata / "thesis.txt")),
                ImageNode(id_="c", image_path=str(mydata / ("a" * 64 + ".png"))),
            ]
            index.insert_nodes([ImageNode(id_="a", image=data), *foreign])
            assert len(list(mydata.glob("*.png"))) == 3
            end()
            assert len(list(mydata.glob("*.png"))) == 2


def test_the_user_s_own_file_of_the_same_content_is_used_and_stays(
    tmp_path: Path, secret: Path
) -> None:
    with opened(tmp_path / "a.db") as index:
        index.insert_nodes([ImageNode(id_="a", image=as_base64(secret))])
        name = Path(index.get_nodes(["a"])[0].image_path).name
    mine = tmp_path / "mydata" / name
    draw(mine, "green")
    with opened(tmp_path / "b.db", storage_dir=mine.parent) as index:
        index.insert_nodes([ImageNode(id_="a", image=as_base64(secret))])
        assert index.get_nodes(["a"])[0].image_path == str(mine)
        index.clear()
        assert mine.exists()
        draw(mine, "red")
        report = index.insert_nodes([ImageNode(id_="a", image=as_base64(secret))])
        assert "is in the way and was not written here" in report.skipped[0].reason


@pytest.mark.parametrize("linked", ["gap.db.images", "gap.db.images/gap"])
def test_a_default_storage_that_is_a_link_is_refused(linked: str, tmp_path: Path) -> None:
    target = tmp_path / "precious" / "gap" / "nodes"
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("mine")
    (tmp_path / linked).parent.mkdir(exist_ok=True)
    (tmp_path / linked).symlink_to(tmp_path / "precious", target_is_directory=True)
    with pytest.raises(ValueError, match=r"gap\.db\.images.*is a link.*storage_dir="):
        opened(tmp_path / "gap.db")
    assert (target / "thesis.txt").exists()


def test_records_that_came_with_an_index_are_not_written_through(
    tmp_path: Path, secret: Path
) -> None:
    """Each file that an insert would write is replaced by a link; a first run finds the files."""
    uri, storage = tmp_path / "gap.db", tmp_path / "gap.db.images" / "gap"
    profile = tmp_path / "profile"
    profile.write_text("mine")
    node = ImageNode(id_="a", image=as_base64(secret))
    with opened(uri) as index:
        index.insert_nodes([node])
        written = [path for path in storage.rglob("*") if path.is_file()]
        assert written
        index.clear()
        for path in written:
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(profile)
        index.insert_nodes([node])
        index.clear()
    assert profile.read_text() == "mine"


def test_two_indexes_in_one_storage_delete_their_own_images(tmp_path: Path, secret: Path) -> None:
    data, storage = as_base64(secret), tmp_path / "images"
    red = as_base64(draw(tmp_path / "red.png", "red"))
    with (
        opened(tmp_path / "a.db", storage_dir=storage) as one,
        opened(tmp_path / "b.db", storage_dir=storage) as other,
    ):
        one.insert_nodes([ImageNode(id_="n", image=data), ImageNode(id_="own", image=red)])
        other.insert_nodes([ImageNode(id_="n", image=data)])
        one.clear()
        assert len(list(storage.glob("*.png"))) == 1
        assert open_image(other.get_nodes(["n"])[0]).size == (8, 8)
        other.delete_nodes(["n"])
        assert list(storage.glob("*.png")) == []


def test_an_image_that_another_node_took_over_by_its_path_stays(
    tmp_path: Path, secret: Path
) -> None:
    with opened(tmp_path / "gap.db") as index:
        index.insert_nodes([ImageNode(id_="a", image=as_base64(secret))])
        (node,) = index.get_nodes(["a"])
        index.insert_nodes([node.model_copy(update={"id_": "b"})])
        index.delete_nodes(["a"])
        assert open_image(index.get_nodes(["b"])[0]).size == (8, 8)
        index.delete_nodes(["b"])
        assert not Path(node.image_path).exists()


# --- inserts that end too early -----------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
def test_images_of_a_killed_insert_go_unless_a_row_uses_them(
    moment: str, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An insert is killed before its rows are written, or directly after."""
    storage, add = tmp_path / "gap.db.images" / "gap", MilvusStore.add

    class Killed(BaseException):
        """An error that no code handles."""

    def killed(store: MilvusStore, *arguments: Any, **more: Any) -> None:
        if moment == "after":
            add(store, *arguments, **more)
        raise Killed

    with opened(tmp_path / "gap.db") as index:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(MilvusStore, "add", killed)
            index.insert_nodes([ImageNode(id_="a", image=as_base64(secret))])
        assert len(list(storage.glob("*.png"))) == 1
        index.insert_nodes([TextNode(id_="t", text="another")])
        assert len(list(storage.glob("*.png"))) == (moment == "after")
        if moment == "after":
            assert open_image(index.get_nodes(["a"])[0]).size == (8, 8)
            index.delete_nodes(["a"])
        assert [path for path in storage.rglob("*") if path.is_file()] == []


def test_an_index_that_is_overwritten_takes_its_images_along(tmp_path: Path, secret: Path) -> None:
    storage = tmp_path / "gap.db.images" / "gap"
    with opened(tmp_path / "gap.db") as index:
        index.insert_nodes([ImageNode(id_="a", image=as_base64(secret))])
    (storage / "mine.txt").write_text("mine")
    opened(tmp_path / "gap.db", overwrite=True).close()
    assert [path.name for path in storage.rglob("*") if path.is_file()] == ["mine.txt"]


def test_an_image_that_could_not_be_embedded_does_not_stay(tmp_path: Path, secret: Path) -> None:
    broken = base64.b64encode(secret.read_bytes()[:45]).decode()
    storage = tmp_path / "gap.db.images" / "gap"
    with opened(tmp_path / "gap.db") as index:
        (skipped,) = index.insert_nodes([ImageNode(id_="a", image=broken)]).skipped
    assert "truncated" in skipped.reason
    assert [path for path in storage.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_the_images_of_an_insert_that_is_running_are_left_alone(
    tmp_path: Path, secret: Path
) -> None:
    """Two inserts run at once, as from two processes on a server."""
    red = as_base64(draw(tmp_path / "red.png", "red"))
    storage = tmp_path / "images"
    kept, go_on = threading.Event(), threading.Event()

    class Waiting(Colours):
        def _get_image_embedding(self, img_file_path: Any) -> list[float]:
            kept.set()
            assert go_on.wait(60)
            return super()._get_image_embedding(img_file_path)

    def open_with(model: Colours) -> DualIndex:
        return DualIndex(str(tmp_path / "gap.db"), embed_model=model, storage_dir=storage)

    with open_with(Colours(embed_dim=4)) as one, open_with(Waiting(embed_dim=4)) as other:
        one.insert_nodes([ImageNode(id_="z", image=red)])
        slow = threading.Thread(
            target=other.insert_nodes, args=([ImageNode(id_="a", image=as_base64(secret))],)
        )
        slow.start()
        assert kept.wait(60)
        one.insert_nodes([ImageNode(id_="b", image=red)])
        one.delete_nodes(["b", "z"])
        one.clear()
        go_on.set()
        slow.join()
        assert len(list(storage.glob("*.png"))) == 1  # of the one that was running
        assert open_image(one.get_nodes(["a"])[0]).size == (8, 8)
