"""DualIndex.search: the same kind of result for every query and setting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from tiny_rerankers import make_tiny_qwen_reranker

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank, RelevanceCalibrator
from llama_index_gap.gap.calibrate import PAIRS
from llama_index_gap.modality import Leg
from llama_index_gap.models import load_scorer
from llama_index_gap.results import SearchResult


def of(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_reranker(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module")
def index(
    tiny_clip: Path, noise_files: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    """Sixty documents with two passages, five of them with a captioned image."""
    nodes: list[TextNode] = []
    for number in range(60):
        name, kind = f"d{number}", {"kind": "odd" if number % 2 else "even"}
        for part in ("bicycle", "harbour"):
            text = f"{part} number {number}"
            nodes.append(
                TextNode(id_=f"{name}#{part}", text=text, metadata=kind, relationships=of(name))
            )
        if number < 5:
            nodes.append(
                ImageNode(
                    id_=f"{name}#image",
                    text=f"a photo of number {number}",
                    image_path=noise_files[number],
                    metadata=kind,
                    relationships=of(name),
                )
            )
    uri = str(tmp_path_factory.mktemp("search") / "gap.db")
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as opened:
        opened.insert_nodes(nodes)
        scores, labels = np.linspace(-1, 1, 40), [0] * 15 + [1, 0] * 5 + [1] * 15
        labelled = dict.fromkeys(PAIRS, (scores, labels))
        opened.save_calibrator(RelevanceCalibrator.fit(labelled, source=opened.models()))
        yield opened


def test_a_search_says_how_it_was_done(index: DualIndex) -> None:
    found = index.search("a bicycle", top_k=3)

    assert isinstance(found, SearchResult)
    assert [document.rank for document in found] == [1, 2, 3]
    assert found.legs.keys() == {Leg("text", "text"), Leg("text", "image")}
    assert (found.fusion.normalize, found.fusion.combine) == ("background", "intent")
    assert found.note is None
    assert found.timings.keys() == {"embed", "search", "fuse", "complete"}
    assert (found.text, found.image, found.database) == ("a bicycle", None, index.uri)
    assert all(document.passages for document in found)


def test_it_finds_by_an_image_of_any_form(index: DualIndex, noise_files: list[str]) -> None:
    by_path = index.search(image=noise_files[1])
    by_content = index.search(image=Path(noise_files[1]).read_bytes())

    assert by_path[0].key == by_content[0].key == "d1"
    assert by_path.legs.keys() == {Leg("image", "image")}
    assert [node.node_id for node in by_path[0].images] == ["d1#image"]
    assert by_path[0].passages


def test_it_is_reranked_by_a_model_by_name_or_object(index: DualIndex, reranker: Path) -> None:
    by_name = index.search("a bicycle", top_k=4, reranker=reranker)
    scorer = load_scorer(str(reranker))
    by_scorer = index.search("a bicycle", top_k=4, reranker=scorer)
    by_object = index.search("a bicycle", top_k=4, reranker=MultiModalRerank(model=scorer, top_n=1))

    assert len(by_name) == 4
    assert by_name.reranker == scorer.name
    assert "rerank" in by_name.timings
    keys = [[document.key for document in each] for each in (by_name, by_scorer, by_object)]
    assert keys[0] == keys[1] == keys[2]
    assert by_name.fusion == index.search("a bicycle").fusion


def test_asynchronously(index: DualIndex) -> None:
    found = asyncio.run(index.asearch("a bicycle", top_k=2))

    assert [document.key for document in found] == [
        document.key for document in index.search("a bicycle", top_k=2)
    ]


def test_wrong_questions_are_refused(index: DualIndex) -> None:
    with pytest.raises(ValueError, match="the query is empty: pass a text, an image_path, or both"):
        index.search(" ")
    with pytest.raises(TypeError, match="no parameter 'topk'; did you mean 'top_k'"):
        index.search("a", topk=3)
    with pytest.raises(ValueError, match="top_k=0: must be at least 1"):
        index.search("a", top_k=0)


ODD = MetadataFilters(filters=[MetadataFilter(key="kind", value="odd")])
OPTIONS: list[tuple[str, Any]] = [
    ("image", True),
    ("top_k", 2),
    ("filters", ODD),
    ("reranker", True),
    ("similarity_top_k", 5),
    ("image_similarity_top_k", 0),
    ("normalize", "rank"),
    ("weights", {"text": 0.5}),
    ("hubs", False),
    ("min_probability", 0.2),
    ("group_by", "node"),
    ("passages_per_document", 0),
    ("images_per_document", 2),
    ("complete", False),
    ("image_queries", "also_texts"),
    ("on_leg_error", "degrade"),
]


@pytest.mark.parametrize("pair", [*combinations(OPTIONS, 2)], ids=lambda pair: "+".join(dict(pair)))
def test_every_pair_of_options_holds_and_says_the_truth(
    index: DualIndex, reranker: Path, noise_files: list[str], pair: tuple[tuple[str, Any], ...]
) -> None:
    asked = dict(pair)
    settings = dict(asked)
    image = noise_files[2] if settings.pop("image", None) else None
    if settings.pop("reranker", None):
        settings["reranker"] = reranker
    if settings.get("normalize") == "rank":
        settings["combine"] = "sum"

    found = index.search("a bicycle in a harbour", image, **settings)

    assert len(found) <= settings.get("top_k", 10)
    assert found.reranker is not None if "reranker" in asked else found.reranker is None
    assert ("complete" in found.timings) == (
        asked.get("complete", True) and asked.get("group_by") != "node"
    )
    assert found.note is None
    assert (found.fusion.normalize == "rank") == ("normalize" in asked)
    if "hubs" in asked:
        assert not found.fusion.hubs
    for document in found:
        assert document.nodes
        if "group_by" not in asked:
            assert len(document.passages) <= asked.get("passages_per_document", 3) or not (
                document.images
            )
            assert len(document.images) <= max(1, asked.get("images_per_document", 1))
        if "filters" in asked:
            assert document.metadata["kind"] == "odd"
        if asked.get("image_similarity_top_k") == 0:
            assert not any(leg.target == "image" for leg in found.legs)
    for leg, summary in found.legs.items():
        assert summary.error is None
        assert summary.hits <= asked.get("similarity_top_k", 16)
        if "min_probability" not in asked:
            assert summary.improbable == 0, leg
