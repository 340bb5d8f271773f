from __future__ import annotations

import base64
import hashlib
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from parsed_page import EVIL, Parsed
from PIL import Image

from llama_index_gap.cli.pages.search_page import (
    Answer,
    FoundDocument,
    LegScore,
    found_documents,
    render_page,
)
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.text import excerpt


def image(path: str | Path | None, caption: str = "", **fields: Any) -> ImageNode:
    source = RelatedNodeInfo(node_id="doc")
    return ImageNode(
        text=caption,
        image_path=None if path is None else str(path),
        relationships={NodeRelationship.SOURCE: source},
        **fields,
    )


def text(words: str, **metadata: Any) -> TextNode:
    source = RelatedNodeInfo(node_id="doc")
    return TextNode(text=words, metadata=metadata, relationships={NodeRelationship.SOURCE: source})


def document(**changes: Any) -> FoundDocument:
    settings: dict[str, Any] = {
        "rank": 1,
        "id": "doc",
        "score": 4.0,
        "legs": [LegScore("text", 0.7, 3.0), LegScore("image", 0.3, 1.0)],
        "text": text("a passage", title="A title"),
        "image": None,
    }
    return FoundDocument(**{**settings, **changes})


def answer(*documents: FoundDocument, **changes: Any) -> Answer:
    settings: dict[str, Any] = {"text": "a query", "image": None, "database": "gap.db"}
    return Answer(**{**settings, **changes}, documents=list(documents))


# --- the documents behind hits ------------------------------------------------------------------


def test_nodes_of_a_document_come_together() -> None:
    scores = {"text": 0.7, "text_evidence": 3.0, "image": 0.3}
    passage, photo, alone = (
        text("words", title="T"),
        image("/a.png", "caption"),
        TextNode(id_="b"),
    )
    hits = [
        ScoredNode(node=passage, score=3.0, scores=scores),
        ScoredNode(node=alone, score=1.0, scores={"text": 0.1, "text_evidence": 1.0}),
        ScoredNode(node=photo, score=3.0, scores=scores),
    ]
    first, second = found_documents(hits)

    assert (first.rank, first.id, first.title, first.score) == (1, "doc", "T", 3.0)
    assert (first.passage, first.caption, first.image) == ("words", "caption", photo)
    assert first.legs == [LegScore("text", 0.7, 3.0), LegScore("image", 0.3, None)]
    assert (first.side("text"), first.side("image")) == (3.0, None)
    assert (second.rank, second.id, second.title, second.image) == (2, "b", "b", None)


def test_one_node_that_is_both_is_shown_as_the_image() -> None:
    (found,) = found_documents([ScoredNode(node=image("/a.png", "caption"), score=1.0)])

    assert (found.passage, found.caption) == ("", "caption")


def test_another_images_caption_is_the_passage() -> None:
    by_caption, by_look = image("/a.png", "found by this"), image("/b.png", "its own caption")
    (found,) = found_documents([ScoredNode(node=node, score=1.0) for node in (by_caption, by_look)])

    assert (found.passage, found.caption) == ("found by this", "its own caption")
    assert found.image is by_look


def test_searches_by_text_and_by_image_add_up_on_each_side() -> None:
    legs = [LegScore("text", 0.7, 3.0), LegScore("text_by_image", 0.1, 2.0)]

    assert document(legs=legs).side("text") == 5.0


def test_how_far_above_the_usual_is_what_the_ranking_says() -> None:
    node = TextNode(id_="a", text="A")
    scores = {"text": 0.4, "text_sigma": 2.5, "text_evidence": 5.1, "image": 0.3}

    (document,) = found_documents([ScoredNode(node=node, score=5.1, scores=scores)])

    assert [(leg.leg, leg.sigma) for leg in document.legs] == [("text", 2.5), ("image", None)]


def test_what_a_reranker_gave_stands_for_the_sides() -> None:
    legs = {"text": 0.7, "text_evidence": 3.0, "image": 0.3, "image_evidence": 1.0}
    scores = {**legs, "retrieval": 4.0, "rerank_text": 0.2, "rerank_image": 0.9}
    hits = [
        ScoredNode(node=TextNode(id_="a", text="A"), score=0.55, scores=scores),
        ScoredNode(node=TextNode(id_="b", text="B"), score=None, scores={"retrieval": 9.0}),
    ]

    read, unread = found_documents(hits)
    page = render_page(answer(read, unread, reranker="a <b>judge</b>"))

    assert (read.score, read.fused) == (0.55, 4.0)
    assert (read.side("text"), read.side("image")) == (0.2, 0.9)
    assert (unread.score, unread.fused, unread.reranked) == (None, 9.0, {})
    words = " ".join(re.sub("<[^>]*>", "", page).split())
    assert "0.200 text, 0.900 image by a &lt;b&gt;judge&lt;/b&gt;" in words
    assert "could not be read by" in words
    assert "What found it" in words


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("short\n\n text", "short text"),
        ("one two three four", "one two…"),
        ("ninechars", "ninechars"),
        ("一二三四五六七八九十一二", "一二三四五六七八九…"),
    ],
)
def test_excerpts_are_cut_between_words_where_there_are_any(words: str, shown: str) -> None:
    assert excerpt(words, 10) == shown
    assert len(shown) <= 10


# --- the page -----------------------------------------------------------------------------------


def test_texts_of_others_stay_texts(noise_files: list[str], tmp_path: Path) -> None:
    evil_file = tmp_path / "<b onload=alert(1)>.png"
    shutil.copy(noise_files[0], evil_file)
    evil = document(
        id=f"id {EVIL}",
        text=text(EVIL, title=EVIL),
        image=image(evil_file, EVIL),
        legs=[LegScore(EVIL, 0.5, 1.0)],
    )
    good = document(image=image(noise_files[0], "caption"), legs=[LegScore("text", 0.5, 1.0)])

    parsed = Parsed(render_page(answer(evil, text=EVIL, database=EVIL, note=EVIL)))
    plain = Parsed(render_page(answer(good)))

    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]
    assert {name for _, attributes in parsed.elements for name in attributes} == {
        name for _, attributes in plain.elements for name in attributes
    }
    for within in ("h1", "bdi", "span", "th", "title", "p"):
        assert EVIL in parsed.texts[within], within
    assert evil_file.name in parsed.texts["small"]
    assert EVIL in parsed.attributes("alt")


def test_the_page_needs_nothing_else(noise_files: list[str]) -> None:
    page = render_page(
        answer(document(image=image(noise_files[0], "caption")), image=noise_files[1])
    )
    parsed = Parsed(page)

    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[\w+/=]+", "", page))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in parsed.elements}
    sources = parsed.attributes("src")
    assert len(sources) == 2
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert parsed.attributes("href") == parsed.attributes("style") == []


def test_the_policy_allows_its_own_style_and_nothing_else() -> None:
    parsed = Parsed(render_page(answer(document())))
    digest = hashlib.sha256(parsed.texts["style"].encode()).digest()
    (policy,) = (
        attributes["content"]
        for _, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )

    assert policy == (
        "default-src 'none'; img-src data:; "
        f"style-src 'sha256-{base64.b64encode(digest).decode()}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_thumbnails_are_small_and_keep_their_shape(tmp_path: Path) -> None:
    Image.new("RGBA", (1600, 800), (255, 0, 0, 128)).save(tmp_path / "big.png")

    page = render_page(answer(document(image=image(tmp_path / "big.png"))))
    (source,) = Parsed(page).attributes("src")
    thumbnail = Image.open(BytesIO(base64.b64decode(str(source).partition(",")[2])))

    assert (thumbnail.format, thumbnail.size) == ("JPEG", (320, 160))
    assert 'width="320" height="160"' in page


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (image("/no/such.png", "its caption"), "no such file"),
        (image(None, "its caption", image_url="https://example.com/a.png"), "not fetched"),
    ],
)
def test_an_image_that_cannot_be_opened_leaves_its_reason(node: ImageNode, reason: str) -> None:
    parsed = Parsed(render_page(answer(document(image=node))))

    assert parsed.attributes("src") == []
    assert reason in parsed.texts["span"]
    assert "its caption" in parsed.texts["span"]


def test_a_damaged_query_image_leaves_its_reason(tmp_path: Path) -> None:
    (tmp_path / "q.png").write_bytes(b"<html>")

    page = render_page(answer(text="", image=str(tmp_path / "q.png")))

    assert "text (HTML or JSON?), not an image" in page
    assert "By image" in page
    assert "Nothing was found." in page


def test_bars_are_as_long_as_the_evidence() -> None:
    legs = [
        LegScore("text", 0.7, 3.0, 1.6),
        LegScore("image", 0.3, 1.5),
        LegScore("image_by_image", 0.2, None),
    ]
    page = render_page(answer(document(legs=legs)))

    assert re.findall(r'<rect class="(\w+)" width="([\d.]+)"', page) == [
        ("track", "100"),
        ("text", "100.0"),
        ("track", "100"),
        ("image", "50.0"),
        ("track", "100"),
        ("image", "0.0"),
    ]
    assert "cosine 0.700, +1.6 σ" in page
    assert "cosine 0.200, not among the best: adds nothing" in page


def test_a_ranking_by_place_says_so_and_shows_no_sigma() -> None:
    page = render_page(answer(document(score=0.0325), note="too few to sample"))

    assert "(too few to sample)" in page
    assert "0.0325" in page
    assert "σ" not in page
