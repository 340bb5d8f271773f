"""The default first stage on corpora that differ from those of the studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from named_vectors import NamedVectors

from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.store.connection import Connection

D = 32


class Seeded(NamedVectors):
    """Each name has its own direction; ``like NAME`` gives a vector that leans towards NAME's."""

    model_name: str = "seeded"
    lean: float = 0.0

    def vector_of(self, name: str) -> list[float]:
        own, _, like = name.partition(" like ")
        rng = np.random.default_rng(list(own.encode()))
        vector = rng.normal(size=D) / np.sqrt(D)
        if like:
            vector = 0.6 * vector + 0.8 * np.array(self.vector_of(like))
        elif self.lean:  # towards one direction; those that lean far are hubs
            vector[0] += self.lean * rng.uniform()
        return (vector / np.linalg.norm(vector)).tolist()


class Constant(Seeded):
    """A useless model: every image and every query has the same vector."""

    model_name: str = "constant"

    def vector_of(self, name: str) -> list[float]:
        return [1.0] + [0.0] * (D - 1)


def text(key: str, words: str = "", **metadata: Any) -> TextNode:
    return TextNode(
        id_=f"{key}#text",
        text=words or f"text {key}",
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=key)},
        metadata=metadata,
        excluded_embed_metadata_keys=list(metadata),
    )


def image(key: str, name: str = "", **metadata: Any) -> ImageNode:
    return ImageNode(
        id_=f"{key}#image",
        image_path=f"/images/{name or f'image {key}'}",
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=key)},
        metadata=metadata,
    )


def made(uri: Path, nodes: list[Any], *models: MultiModalEmbedding) -> DualIndex:
    index = DualIndex(str(uri), "gap", *(models or (Seeded(),)))
    index.insert_nodes(nodes)
    return index


def first(index: DualIndex, query: str, **settings: Any) -> str:
    return index.search(query, **settings)[0].key


@pytest.mark.parametrize(("texts", "images"), [(15, 4), (30, 6), (120, 40), (400, 40)])
def test_a_few_images_do_not_come_before_the_right_text(
    texts: int, images: int, tmp_path: Path
) -> None:
    """With rank fusion, any of them would: each of four images has a high rank."""
    nodes = [text(str(i)) for i in range(texts)] + [image(str(i)) for i in range(images)]
    with made(tmp_path / "gap.db", nodes) as index:
        for i in range(images, images + 5):
            assert first(index, f"asked {i} like text {i}") == str(i)
        for i in range(3):
            assert first(index, f"asked {i} like image {i}") == str(i)


def test_an_image_leg_that_knows_nothing_changes_no_order(tmp_path: Path) -> None:
    """The other model shares no space with the texts: all its images have one vector."""
    nodes = [text(str(i)) for i in range(60)] + [image(str(i)) for i in range(60)]
    with made(tmp_path / "gap.db", nodes, Seeded(), Constant()) as index:
        found = index.search("asked like text 7", top_k=5)
        alone = index.search("asked like text 7", top_k=5, image_similarity_top_k=0)

    assert [document.key for document in found] == [document.key for document in alone]
    assert found[0].key == "7"
    assert "image" not in found.fusion.hubs


def test_all_texts_alike(tmp_path: Path) -> None:
    nodes = [text(str(i), "the same words") for i in range(60)]
    with made(tmp_path / "gap.db", [*nodes, *(image(str(i)) for i in range(60))]) as index:
        assert first(index, "asked like image 7") == "7"
        assert len(index.search("the same words", top_k=10)) == 10


def test_a_text_that_lies_there_forty_times_is_no_hub(tmp_path: Path) -> None:
    """Copies are near each other, but not near the queries; a query for them finds them."""
    copies = [text(f"copy {i}", "boilerplate") for i in range(40)]
    nodes = [*copies, *(text(str(i)) for i in range(60))]
    with made(tmp_path / "gap.db", nodes) as index:
        assert first(index, "asked like boilerplate").startswith("copy")
        assert first(index, "asked like text 7") == "7"


def test_a_filter_leaves_the_background_as_it_is(tmp_path: Path) -> None:
    nodes = [text(str(i), kind="rare" if i < 3 else "common") for i in range(100)]
    nodes += [image(str(i), kind="rare" if i < 3 else "common") for i in range(100)]
    rare = MetadataFilters(filters=[MetadataFilter(key="kind", value="rare")])
    with made(tmp_path / "gap.db", nodes) as index:
        found = index.search("asked like text 2", filters=rare)
        nothing = MetadataFilters(filters=[MetadataFilter(key="kind", value="none")])
        assert len(index.search("asked", filters=nothing)) == 0

    assert found[0].key == "2"
    assert {document.key for document in found} <= {"0", "1", "2"}


def test_hubs_are_found_taken_off_and_said(tmp_path: Path) -> None:
    nodes = [text(str(i)) for i in range(200)]
    with made(tmp_path / "gap.db", nodes, Seeded(lean=3.0)) as index:
        corrected = index.search("text 7 again", top_k=3)
        half = index.search("text 7 again", top_k=3, hubs=0.3)
        plain = index.search("text 7 again", top_k=3, hubs=False)

    assert 0.4 < corrected.fusion.hubs["text"] <= 0.6
    assert half.fusion.hubs["text"] == pytest.approx(corrected.fusion.hubs["text"] / 2)
    assert plain.fusion.hubs == {}
    assert corrected[0].scores["text_hub"] > 0
    assert "text_hub" not in plain[0].scores


def test_what_the_query_is_itself_comes_first_however_much_of_a_hub(tmp_path: Path) -> None:
    nodes = [text(str(i)) for i in range(200)]
    with made(tmp_path / "gap.db", nodes, Seeded(lean=3.0)) as index:
        assert [first(index, f"text {i}") for i in range(20)] == [str(i) for i in range(20)]


def test_a_search_never_waits_for_the_clock_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strongly consistent read waits up to 0.2 s; a search needs none, having seen the rows."""
    calls: list[tuple[str, str]] = []
    call = Connection.call

    def recorded(
        self: Connection, method: str, name: str, timeout: float | None, **given: Any
    ) -> Any:
        calls.append((method, given.get("consistency_level", "")))
        return call(self, method, name, timeout, **given)

    monkeypatch.setattr(Connection, "call", recorded)
    nodes = [text(str(i)) for i in range(400)] + [image(str(i)) for i in range(0, 400, 10)]
    model = Seeded(lean=3.0)
    with DualIndex(str(tmp_path / "gap.db"), "gap", model, image_query_embed_model=model) as index:
        index.insert_nodes(nodes)
        index.search("the first one draws the background")
        calls.clear()
        for i in range(10):
            index.search(f"text {i} again", complete=True)

    assert "query" in {method for method, _ in calls}
    assert {level for _, level in calls} == {"Session"}
