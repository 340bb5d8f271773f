from __future__ import annotations

import base64
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from PIL import Image
from store_nodes import DIM, equal, node, vector

from llama_index_gap.images.opening import ImageError
from llama_index_gap.nodes import CaptionedImageNode
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import StoredRow


def test_a_node_comes_back_as_it_was(store: MilvusStore) -> None:
    original = TextNode(
        id_="a",
        text="A ship.",
        embedding=vector(0),
        metadata={"title": "Harbour", "year": 2024, "tags": ["x", "y"], "deep": {"k": [1, None]}},
        excluded_embed_metadata_keys=["year"],
        excluded_llm_metadata_keys=["title"],
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"z": 1}, hash="h"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="b"),
        },
        start_char_idx=3,
        end_char_idx=10,
    )
    before = original.model_copy(deep=True)
    assert store.add([original]) == ["a"]
    assert original == before

    [read] = store.get_nodes(["a"])
    found = store.query(VectorStoreQuery(vector(0), similarity_top_k=1))
    for result in (read, (found.nodes or [])[0]):
        assert type(result) is TextNode
        assert result == original.model_copy(update={"embedding": None})
        assert result.ref_doc_id == "doc"
    assert found.similarities == pytest.approx([1.0])


def test_an_image_node_comes_back_with_its_caption(store: MilvusStore, tmp_path: Path) -> None:
    path = tmp_path / "ship.png"
    Image.new("RGB", (4, 3)).save(path)
    original = ImageNode(
        id_="a",
        text="a white ship",
        image_path=str(path),
        image_mimetype="image/png",
        metadata={"title": "Harbour"},
        embedding=vector(0),
    )
    store.add([original])
    [read] = store.get_nodes(["a"])

    assert isinstance(read, CaptionedImageNode)
    assert read.to_dict() == {**original.to_dict(), "embedding": None}
    text, image = read.get_content_blocks()
    assert isinstance(text, TextBlock)
    assert text.text == "a white ship"
    assert isinstance(image, ImageBlock)
    assert image.path == path
    assert len(read.get_content_blocks(MetadataMode.LLM)) == 3
    again = metadata_dict_to_node(node_to_metadata_dict(read))
    assert again.to_dict() == read.to_dict()


def test_an_image_node_without_caption_and_one_by_url() -> None:
    assert CaptionedImageNode(id_="a").get_content_blocks() == []
    remote = CaptionedImageNode(id_="a", image_url="http://example.org/ship.png")
    [block] = remote.get_content_blocks()
    assert isinstance(block, ImageBlock)
    assert str(block.url) == "http://example.org/ship.png"
    with pytest.raises(ImageError, match="its URL is not fetched; use"):
        remote.resolve_image()
    with pytest.raises(ImageError, match="no such file"):
        CaptionedImageNode(id_="a", image_path="gone.png").get_content_blocks()


@pytest.mark.parametrize("name", ["ship.jpeg", "ship.JPG", "ship"])
def test_an_image_says_what_it_is_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    """LlamaIndex knows only ``.jpg``; with another name, a query engine reads it as a path."""
    Image.new("RGB", (4, 4)).save(tmp_path / name, format="JPEG")
    [block] = CaptionedImageNode(image_path=str(tmp_path / name)).get_content_blocks()

    assert isinstance(block, ImageBlock)
    assert block.inline_url().startswith("data:image/jpeg;base64,")
    (tmp_path / name).write_text("no image")
    with pytest.raises(ImageError, match=f"{name}.*not an image"):
        CaptionedImageNode(image_path=str(tmp_path / name)).get_content_blocks()


def test_base64_in_a_captioned_image_node() -> None:
    encoded = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"  # noqa: E501
    [block] = CaptionedImageNode(image=encoded).get_content_blocks()
    assert isinstance(block, ImageBlock)
    assert Image.open(block.resolve_image()).size == (1, 1)


@pytest.mark.parametrize("held", ["image_path", "image"])
@pytest.mark.parametrize("suffix", ["tiff", "bmp", "png"])
def test_a_chat_model_is_shown_formats_that_it_takes(
    suffix: str, held: str, tmp_path: Path
) -> None:
    path = tmp_path / "ship.jpeg"
    Image.new("RGB", (4, 4), "red").save(path, format=suffix)
    data = base64.b64encode(path.read_bytes()).decode()
    source = {"image_path": str(path)} if held == "image_path" else {"image": data}

    node = CaptionedImageNode(**source, image_mimetype="image/webp")  # it is none
    [block] = node.get_content_blocks()

    kind = "png" if suffix == "png" else "jpeg"
    assert isinstance(block, ImageBlock)
    assert block.inline_url().startswith(f"data:image/{kind};base64,")
    with Image.open(block.resolve_image()) as shown:
        assert shown.format == kind.upper()


def test_the_newer_node_class(store: MilvusStore) -> None:
    original = Node(
        id_="a",
        text_resource=MediaResource(text="hello", mimetype="text/markdown"),
        image_resource=MediaResource(path=Path("ship.png")),
        embedding=vector(0),
    )
    store.add([original, Node(id_="b", embedding=vector(1))])
    read, bare = store.get_nodes(["a", "b"])
    assert read == original.model_copy(update={"embedding": None})
    assert bare.get_content() == ""


def test_an_index_node(store: MilvusStore) -> None:
    store.add([IndexNode(id_="a", text="t", index_id="i", embedding=vector(0))])
    [read] = store.get_nodes(["a"])
    assert isinstance(read, IndexNode)
    assert (read.text, read.index_id) == ("t", "i")


def test_numpy_dates_and_other_metadata(store: MilvusStore) -> None:
    metadata = {
        "float": np.float32(1.5),
        "int": np.int64(7),
        "array": np.arange(3),
        "day": date(2024, 5, 1),
        "time": datetime(2024, 5, 1, 12, 30),
        "day64": np.datetime64("2024-05-01"),
        "price": Decimal("1.50"),
        "path": Path("a/b"),
        "set": {"x"},
        "nan": float("nan"),
    }
    original = node("a", **metadata)
    original.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(
        node_id="d", metadata={"float": np.float32(2)}
    )
    store.add([original])
    assert original.metadata == metadata

    [read] = store.get_nodes(filters=equal("int", 7))
    assert read.metadata == {
        "float": 1.5,
        "int": 7,
        "array": [0, 1, 2],
        "day": "2024-05-01",
        "time": "2024-05-01T12:30:00",
        "day64": "2024-05-01",
        "price": "1.50",
        "path": "a/b",
        "set": ["x"],
        "nan": None,
    }
    assert store.get_nodes(filters=equal("day", "2024-05-01")) == [read]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("bad").model_copy(update={"embedding": None}), "has no embedding"),
        (node("bad").model_copy(update={"embedding": [1, 2]}), r"shape \(2,\).* of 4 dimensions"),
        (node("bad").model_copy(update={"embedding": [1, 2, 3, np.nan]}), "NaN or infinity"),
        (node("bad").model_copy(update={"embedding": [1, 2, 3, 1e39]}), "NaN or infinity"),
        (node("bad").model_copy(update={"embedding": [0] * DIM}), "no direction"),
        (node("bad").model_copy(update={"text": "é" * 32_768}), r"its text: 65,536 bytes"),
        (node("bad").model_copy(update={"text": "\ud800"}), "not valid Unicode"),
        (node("bad", long="x" * 40_000), "its metadata and relationships: 80,"),
        (node("bad" * 30_000), "its id: 90,000 bytes"),
        (node("bad", source="d" * 70_000), "its doc_id: 70,000 bytes"),
        (node("bad", big=[{"n": 2**63}]), "more than 64 bits"),
        (node("bad", thing=object()), "is not JSON"),
        (node("bad", text="x"), "key 'text' is a field of the collection; rename"),
        (node("bad", doc_id="x"), "key 'doc_id' is a field"),
        (node("bad", gap_bucket=1), "key 'gap_bucket' is a field"),
        (node("bad", gap_fingerprint="x"), "key 'gap_fingerprint' is a field"),
        (ImageNode(id_="bad", image="aGVsbG8=", embedding=vector(0)), "pixels are never stored"),
        (
            Node(id_="bad", image_resource=MediaResource(data=b"aGVsbG8="), embedding=vector(0)),
            "pixels are never stored",
        ),
    ],
)
def test_a_node_that_cannot_be_stored_is_named_and_nothing_is_written(
    store: MilvusStore, bad: BaseNode, message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s)^node 'bad.*{message}"):
        store.add([node("good"), bad])
    assert store.count() == 0


def test_an_empty_id(store: MilvusStore) -> None:
    with pytest.raises(ValueError, match="has an empty id"):
        store.add([node("")])


def test_the_longest_text_and_metadata_fit(store: MilvusStore) -> None:
    store.add([node("a").model_copy(update={"text": "x" * 65_535}), node("b", long="x" * 32_000)])
    first, second = store.get_nodes(["a", "b"])
    assert (len(first.get_content()), len(second.metadata["long"])) == (65_535, 32_000)


def test_metadata_that_repeats_the_source_is_no_clash(store: MilvusStore) -> None:
    store.add([node("a", source="d", doc_id="d", document_id="d")])
    assert store.get_nodes(ref_doc_ids=["d"])[0].metadata == {"doc_id": "d", "document_id": "d"}


def test_what_a_row_says_of_its_origin_may_be_anything() -> None:
    row = {"doc_id": None, "gap_fingerprint": 5, "gap_source": ["/etc"], "gap_place": "a.md"}

    assert StoredRow.of(row) == StoredRow("", None, {"gap_place": "a.md"})
