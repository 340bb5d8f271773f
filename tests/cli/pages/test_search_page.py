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

from llama_index_gap.cli.pages.search_page import render_page
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.results import FusionUsed, SearchResult, documents_of

SCORES = {"text": 0.7, "text_evidence": 3.0, "image": 0.3, "image_evidence": 1.0}


def of(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


def image(path: str | Path | None, caption: str = "", key: str = "doc", **fields: Any) -> ImageNode:
    shown = None if path is None else str(path)
    return ImageNode(text=caption, image_path=shown, relationships=of(key), **fields)


def text(words: str = "a passage", key: str = "doc", **metadata: Any) -> TextNode:
    return TextNode(text=words, metadata=metadata, relationships=of(key))


def found(*nodes: TextNode, score: float | None = 4.0, **scores: float) -> list[ScoredNode]:
    return [ScoredNode(node=node, score=score, scores=scores or SCORES) for node in nodes]


def result(hits: list[ScoredNode], **changes: Any) -> SearchResult:
    settings: dict[str, Any] = {
        "text": "a query",
        "database": "gap.db",
        "fusion": FusionUsed("background", "evidence"),
    }
    return SearchResult(documents_of(hits), **{**settings, **changes})


def test_texts_of_others_stay_texts(noise_files: list[str], tmp_path: Path) -> None:
    evil_file = tmp_path / "<b onload=alert(1)>.png"
    shutil.copy(noise_files[0], evil_file)
    evil = found(text(EVIL, EVIL, title=f"a {EVIL}"), image(evil_file, EVIL, EVIL))
    good = found(text(title="a title"), image(noise_files[0], "caption"))

    note = FusionUsed("background", "evidence", EVIL)
    parsed = Parsed(render_page(result(evil, text=EVIL, database=EVIL, fusion=note)))
    plain = Parsed(render_page(result(good, fusion=FusionUsed("background", "evidence", "why"))))

    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]
    assert {name for _, attributes in parsed.elements for name in attributes} == {
        name for _, attributes in plain.elements for name in attributes
    }
    for within in ("h1", "bdi", "span", "title", "p"):
        assert EVIL in parsed.texts[within], within
    assert evil_file.name in parsed.texts["small"]
    assert EVIL in parsed.attributes("alt")


def test_the_page_needs_nothing_else(noise_files: list[str]) -> None:
    page = render_page(result(found(image(noise_files[0], "caption")), image=noise_files[1]))
    parsed = Parsed(page)

    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[\w+/=]+", "", page))
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in parsed.elements}
    sources = parsed.attributes("src")
    assert len(sources) == 2
    assert all(str(source).startswith("data:image/jpeg;base64,") for source in sources)
    assert parsed.attributes("href") == parsed.attributes("style") == []


def test_the_policy_allows_the_page_s_own_style_and_script_and_nothing_else() -> None:
    evil = found(text(EVIL, EVIL, title=EVIL), image("/no.png", EVIL, EVIL))
    parsed = Parsed(render_page(result(evil, text=EVIL)))
    (policy,) = (
        attributes["content"]
        for _, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    style, script = (
        base64.b64encode(hashlib.sha256(parsed.texts[tag].encode()).digest()).decode()
        for tag in ("style", "script")
    )

    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )
    # One script, the same on each page, without any content of the page.
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    assert parsed.texts["script"] == Parsed(render_page(result([]))).texts["script"]


def test_what_the_filter_box_finds_is_marked_and_images_open_without_a_script(
    noise_files: list[str],
) -> None:
    hits = [*found(text(key="a")), *found(image(noise_files[0], "caption", "b"))]
    parsed = Parsed(render_page(result(hits)))

    assert [tag for tag, attributes in parsed.elements if "data-row" in attributes] == [
        "article",
        "article",
    ]
    (box,) = (each for tag, each in parsed.elements if each.get("class") == "filter")
    assert "hidden" in box  # until the script runs
    (large,) = (each for tag, each in parsed.elements if tag == "details")
    assert large == {"class": "large", "name": "large"}


def test_images_are_scaled_and_keep_their_shape(tmp_path: Path) -> None:
    Image.new("RGBA", (1600, 800), (255, 0, 0, 128)).save(tmp_path / "big.png")

    page = render_page(result(found(image(tmp_path / "big.png"))))
    (source,) = Parsed(page).attributes("src")
    thumbnail = Image.open(BytesIO(base64.b64decode(str(source).partition(",")[2])))

    assert (thumbnail.format, thumbnail.size) == ("JPEG", (800, 400))
    assert 'width="800" height="400"' in page


def test_the_page_shows_the_filters_and_the_metadata() -> None:
    hits = found(text(title="Red can", price=5, about="long " * 30))
    page = render_page(result(hits), ["price<20", "title~<b>"])

    words = re.sub(r"\s+", " ", re.sub("<[^>]+>", "", page))
    assert "1 document, best first, with price&lt;20 and title~&lt;b&gt;" in words
    assert "price: 5" in words
    assert "about:" not in words
    assert "title: Red can" not in words


def test_the_page_says_which_leg_found_a_document() -> None:
    page = render_page(result(found(text(), score=4.0, **SCORES)))

    assert "Found: 75% of it from text" in page


def test_the_page_says_what_the_first_stage_adds() -> None:
    scores = {"rerank_text": 0.8, "rerank_first_stage": 1.5, "retrieval": 2.0}
    both = render_page(result(found(text(), score=0.9, **scores), reranker="m0"))
    del scores["rerank_first_stage"]
    alone = render_page(result(found(text(), score=0.8, **scores), reranker="m0"))

    assert "the first stage adds <b>+1.50</b> to the log odds" in both
    assert "the probability of its log odds and of what the first stage adds" in both
    assert "first stage" not in alone


def test_a_reranker_in_a_folder_is_called_by_its_name() -> None:
    page = render_page(result(found(text()), reranker="/home/me/models/judge"))

    assert "by judge" in " ".join(re.sub("<[^>]*>", "", page).split())
    assert "/home/me" not in page


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (image("/no/such.png", "its caption"), "no such file"),
        (image(None, "its caption", image_url="https://example.com/a.png"), "not fetched"),
    ],
)
def test_an_image_that_cannot_be_opened_leaves_its_reason(node: ImageNode, reason: str) -> None:
    parsed = Parsed(render_page(result(found(node))))

    assert parsed.attributes("src") == []
    assert reason in parsed.texts["span"]
    assert "its caption" in parsed.texts["span"]


def test_a_damaged_query_image_leaves_its_reason(tmp_path: Path) -> None:
    (tmp_path / "q.png").write_bytes(b"<html>")

    page = render_page(result([], text="", image=str(tmp_path / "q.png")))

    assert "text (HTML or JSON?), not an image" in page
    assert "By image" in page
    assert "Nothing was found." in page


def test_bars_are_as_long_as_the_evidence() -> None:
    scores = {
        **{"text": 0.7, "text_evidence": 3.0, "text_sigma": 1.6},
        **{"image": 0.3, "image_evidence": 1.5, "image_by_image": 0.2},
    }
    page = render_page(result(found(text(), **scores)))

    assert re.findall(r'<rect class="(\w+)" width="([\d.]+)"', page) == [
        ("track", "100"),
        ("text", "100.0"),
        ("track", "100"),
        ("image", "50.0"),
        ("track", "100"),
        ("image", "0.0"),
    ]
    assert "cosine 0.700, +1.6\u00a0σ" in page
    assert "cosine 0.200, not among this leg's top hits: adds nothing" in page


def test_log_odds_may_be_below_0_and_hubs_are_said() -> None:
    scores = {
        **{"text": 0.7, "text_hub": 0.05, "text_evidence": 1.0, "text_sigma": 3.0},
        **{"image": 0.3, "image_evidence": -4.0, "image_sigma": 1.0},
    }
    used = FusionUsed("background", "intent", hubs={"text": 0.5})
    page = render_page(result(found(text(), **scores), fusion=used))

    assert re.findall(r'<rect class="(?:text|image)" width="([\d.]+)"', page) == ["100.0", "9.1"]
    assert "cosine 0.700 − 0.050 for its hub, +3.0\u00a0σ" in page
    assert "A bar shows log odds" in page
    assert "near to every query" in page


def test_all_passages_are_shown() -> None:
    page = render_page(
        result(found(text("the first"), text("the second"), image("/no.png", "cap")))
    )

    assert Parsed(page).texts["p"].count("the first") == 1
    assert "the second" in page


def test_a_reranker_s_scores_stand_beside_what_found_the_documents() -> None:
    scores = {**SCORES, "retrieval": 4.0, "rerank_text": 0.2, "rerank_image": 0.9}
    read = found(text(key="a"), score=0.55, **scores)
    unread = found(text(key="b"), score=None, retrieval=9.0)

    page = render_page(result([*read, *unread], reranker="a <b>judge</b>"))

    words = " ".join(re.sub("<[^>]*>", "", page).split())
    assert "0.200 text, 0.900 image by a &lt;b&gt;judge&lt;/b&gt;" in words
    assert "could not be read by" in words
    assert "How it was found" in words


def test_a_ranking_by_place_says_so_and_shows_no_sigma() -> None:
    by_place = FusionUsed("rank", "sum", "too few to sample")
    page = render_page(result(found(text(), score=0.0325), fusion=by_place))

    assert "There was too few to sample." in page
    assert "0.0325" in page
    assert "σ" not in page
