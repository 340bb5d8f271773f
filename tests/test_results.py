from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_index.core.schema import (
    ImageNode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from parsed_page import EVIL, Parsed

from llama_index_gap.images.thumbnails import thumbnail
from llama_index_gap.modality import Leg
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.results import (
    FusionUsed,
    LegScore,
    SearchResult,
    documents_of,
)

SCORES = {"text": 0.7, "text_evidence": 3.0, "text_sigma": 2.0, "image": 0.3}


def of(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


def passage(text: str, document: str = "doc", **metadata: str) -> TextNode:
    return TextNode(id_=text, text=text, metadata=metadata, relationships=of(document))


def photo(path: object, caption: str = "", document: str = "doc") -> ImageNode:
    return ImageNode(text=caption, image_path=str(path), relationships=of(document))


def scored(node: TextNode, score: float | None = 3.0, **scores: float) -> ScoredNode:
    return ScoredNode(node=node, score=score, scores=scores or SCORES)


def test_nodes_of_a_document_come_together_passages_first() -> None:
    words, image, alone = passage("words", title="T"), photo("/a.png", "caption"), TextNode(id_="b")
    other = scored(alone, 1.0, text=0.1, text_evidence=1.0)

    first, second = documents_of([scored(image), other, scored(words)])

    assert (first.rank, first.key, first.title, first.score) == (1, "doc", "T", 3.0)
    assert (first.passages, first.images, first.text) == ([words], [image], "words")
    assert first.legs == [
        LegScore(Leg("text", "text"), 0.7, 3.0, 2.0),
        LegScore(Leg("text", "image"), 0.3, None),
    ]
    assert (first.part("text"), first.part("image")) == (3.0, None)
    assert (second.rank, second.key, second.title, second.images) == (2, "b", "b", [])


def test_each_node_may_stand_for_itself() -> None:
    hits = [scored(passage("a")), scored(passage("b"))]

    assert [document.key for document in documents_of(hits, "node")] == ["a", "b"]
    assert [document.key for document in documents_of(hits)] == ["doc"]


def test_legs_of_both_queries_add_up() -> None:
    scores = {"image_evidence": 1.0, "image": 0.1, "image_by_image": 0.2}
    (document,) = documents_of([scored(photo("/a.png"), image_by_image_evidence=2.0, **scores)])

    assert document.part("image") == 3.0
    assert [each.leg.title for each in document.legs] == ["image", "image by image"]


def test_what_a_reranker_gave_stands_for_the_modalities() -> None:
    hit = scored(passage("a"), 0.9, **SCORES, rerank_text=0.9, retrieval=3.0)
    (document,) = documents_of([hit])

    assert (document.score, document.fused, document.reranked) == (0.9, 3.0, {"text": 0.9})
    assert (document.part("text"), document.part("image")) == (0.9, None)
    (unread,) = documents_of([scored(passage("b"), None, **SCORES, retrieval=3.0)])
    assert (unread.part("text"), unread.fused) == (None, 3.0)


def test_other_retrievers_nodes_have_no_scores() -> None:
    (document,) = documents_of([NodeWithScore(node=passage("a"), score=0.5)])

    assert (document.scores, document.legs, document.fused) == ({}, [], 0.5)


def result(*hits: NodeWithScore) -> SearchResult:
    fusion = FusionUsed("rank", "sum", "too few")
    return SearchResult(documents_of(hits), text="query", fusion=fusion, database="gap.db")


def test_it_is_a_sequence_of_documents() -> None:
    hits = [scored(passage("a")), scored(passage("b", "other"))]
    found = result(*hits)

    assert (len(found), found[1].key, found[:1]) == (2, "other", (found[0],))
    assert [document.rank for document in found] == [1, 2]
    assert found.nodes == hits
    assert found.note == "too few"
    turned = found.with_nodes(hits[::-1], reranker="m0")
    assert ([each.key for each in turned], turned.reranker, turned.text) == (
        ["other", "doc"],
        "m0",
        "query",
    )
    assert not SearchResult(())


def test_a_prompt_shows_a_line_for_each_document() -> None:
    found = result(scored(passage("words " * 20, title="T")), scored(photo("/a.png", "cap", "b")))

    first, second, third = repr(found).splitlines()
    assert first == "<SearchResult: 2 documents>"
    assert second.startswith("1. T (3): words words")
    assert len(second) < 80
    assert third == "2. b (3): cap"


def test_what_was_not_reached_in_time_is_said() -> None:
    assert not result(scored(passage("a"))).partial
    hit = ScoredNode(node=passage("a"), score=1.0, partial=True)
    assert result(hit).partial


def test_it_is_json() -> None:
    found = json.loads(json.dumps(result(scored(photo("/a.png", "caption"))).to_dict()))

    assert (found["query"], found["note"]) == ({"text": "query", "image": None}, "too few")
    (document,) = found["documents"]
    assert document["legs"]["text"] == {
        **{"cosine": 0.7, "hub": None, "sigma": 2.0, "evidence": 3.0, "probability": None}
    }
    assert found["fusion"]["normalize"] == "rank"
    assert document["images"][0]["path"] == "/a.png"
    assert document["passages"] == []


def test_json_holds_no_image() -> None:
    found = SearchResult((), image="data:;base64,AAAA").to_dict()

    assert found["query"]["image"] == "<data URI of 17 characters>"


def test_a_notebook_shows_texts_and_images_escaped(noise_files: list[str]) -> None:
    hits = [
        scored(passage(EVIL, EVIL, title=EVIL)),
        scored(photo(noise_files[0], EVIL, EVIL)),
        scored(photo("/no/such.png", document="gone"), None),
    ]

    page = result(*hits)._repr_html_()
    parsed = Parsed(page)

    assert {tag for tag, _ in parsed.elements} <= {
        *("style", "div", "section", "figure", "details", "summary", "img", "p", "b", "i", "small")
    }
    assert parsed.attributes("onerror") == []
    assert EVIL in parsed.texts["b"]
    assert parsed.attributes("alt") == [EVIL]
    (source,) = parsed.attributes("src")
    assert source.startswith("data:image/jpeg;base64,")
    assert "no such file" in parsed.texts["p"]
    assert "</style>" not in page.partition("</style>")[2]


def test_a_notebook_says_what_each_leg_adds_in_few_bytes() -> None:
    found = result(scored(passage("words"), 1.5, text=0.3, text_evidence=2.0, image=0.1))

    page = found._repr_html_()

    assert "<i>text 2.00</i> <i>image –</i>" in page
    assert len(page) < 2_000
    assert "Nothing was found." in result()._repr_html_()


def test_thumbnails_are_small_and_keep_their_shape(tmp_path: Path, noise_files: list[str]) -> None:
    small = thumbnail(noise_files[3], 45)

    assert (small.width, small.height, small.problem) == (45, pytest.approx(20, abs=1), "")
    assert thumbnail(tmp_path / "no.png", 45).problem == "no such file"
