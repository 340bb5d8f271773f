"""The pages in a real browser: which scripts run, what is fetched, and what a click shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, browser, why_no_browser
from llama_index.core.schema import ImageNode, TextNode
from local_page import local_page
from parsed_page import EVIL

from llama_index_gap import DualIndex, MultiModalRerank
from llama_index_gap.cli.pages.search_page import render_page
from llama_index_gap.cli.pages.serve_page import Served
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.results import FusionUsed, SearchResult, documents_of

pytestmark = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser())

SHOWN = "[...document.querySelectorAll('article')].filter(a => a.offsetParent).length"
LARGE = "document.querySelector('.large img').getBoundingClientRect().width"


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(demo: Path, reranker: Path) -> Iterator[str]:
    """The URL of an application with a reranker, in a thread of this process."""

    def opened() -> tuple[DualIndex, MultiModalRerank]:
        rerank = MultiModalRerank(model=str(reranker), top_n=None)
        return DualIndex(str(demo / "gap.db")), rerank

    with local_page(opened, Served("gap.db", "gap", "judge")) as address:
        yield address


def page_of(tmp_path: Path, image: str, words: str = "words") -> str:
    hits = [
        ScoredNode(node=TextNode(text=f"{words} {name}", metadata={"title": name}), score=1.0)
        for name in ("apple", "pear")
    ]
    hits.append(ScoredNode(node=ImageNode(text=words, image_path=image), score=1.0))
    page = tmp_path / "page.html"
    found = SearchResult(documents_of(hits), text=words, fusion=FusionUsed("rank", "sum"))
    page.write_text(render_page(found), encoding="utf-8")
    return page.as_uri()


def test_the_filter_box_leaves_what_has_all_its_words(
    tab: Browser, tmp_path: Path, noise_files: list[str]
) -> None:
    tab.open(page_of(tmp_path, noise_files[0]))

    assert tab.run(SHOWN) == 3
    tab.type(".filter input", "WORDS pea")
    assert tab.run(SHOWN) == 1
    assert tab.run("document.querySelector('.filter output').value") == "1 of 3"


def test_a_click_shows_an_image_large_and_another_one_or_escape_small(
    tab: Browser, tmp_path: Path, noise_files: list[str]
) -> None:
    tab.look(1000, height=700)
    tab.open(page_of(tmp_path, noise_files[0]))
    small = tab.run(LARGE)
    assert small < 100

    tab.click(".large summary")
    assert tab.run(LARGE) > 900
    tab.click(".large summary")
    assert tab.run(LARGE) == small
    tab.click(".large summary")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Escape")
    assert tab.run(LARGE) == small


def test_texts_of_others_run_nothing_and_fetch_nothing(
    tab: Browser, tmp_path: Path, noise_files: list[str]
) -> None:
    before, complaints = len(tab.requests), len(tab.complaints)
    page = page_of(tmp_path, noise_files[0], EVIL)
    tab.open(page)

    fetched = [each for each in tab.requests[before:] if not each.startswith("data:image/jpeg")]
    assert fetched == [page]
    assert tab.complaints[complaints:] == []
    # Even without escaping, the policy would not let scripts run.
    tab.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">');"
        "const s = document.createElement('script'); s.textContent = 'window.ran=1';"
        "document.body.append(s)"
    )
    assert tab.run("window.ran") is None
    assert any("Content Security Policy" in each for each in tab.complaints[complaints:])


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_local_page_fits_a_phone_and_a_desk_light_and_dark(
    tab: Browser, address: str, width: int, dark: bool
) -> None:
    tab.look(width, dark=dark)
    tab.open(f"{address}/?q=a+white+ship")

    assert tab.run("document.documentElement.scrollWidth") == width
    red = tab.run("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0]
    assert (int(red) < 100) is dark
    side = "document.querySelector('.{}').getBoundingClientRect().y"
    parts = ("together", "alone.text", "alone.image")
    fused, text, image = (tab.run(side.format(each)) for each in parts)
    assert text == image
    assert (fused == text) is (width == 1280)


def test_a_wide_image_stays_beside_its_text(tab: Browser, address: str) -> None:
    tab.look(1280)
    tab.open(f"{address}/?q=a+white+ship")
    article = "document.querySelector('.together article:has(figure)')"
    tab.run(f"{article}.querySelector('img').style.width = '2000px'")
    edge = f"{article}.querySelector('{{}}').getBoundingClientRect().{{}}"

    assert tab.run(edge.format("img", "width")) > 150
    assert tab.run(edge.format("figure", "right")) <= tab.run(edge.format(".about", "left"))
    assert tab.run(edge.format("img", "right")) <= tab.run(edge.format(".about", "left"))


def test_a_search_in_the_local_page(tab: Browser, address: str, demo: Path) -> None:
    before = len(tab.requests)
    tab.look(1280)
    tab.open(address)
    tab.type("#q", "a white ship")
    tab.follow("document.querySelector('form button').click()")
    first = tab.run("document.querySelector('.together bdi').innerText")
    assert tab.run("document.querySelectorAll('section').length") == 3
    assert tab.run("[...document.images].every(i => i.naturalWidth)")

    tab.follow("document.querySelector('a[href*=\"rank-sum\"]').click()")
    assert "rank × sum" in tab.run("document.querySelector('.together .quiet').innerText")
    assert tab.run("document.querySelector('#q').value") == "a white ship"
    tab.follow("document.querySelector('a[href*=\"rerank=on\"]').click()")
    assert "before reranking" in tab.run("document.querySelector('.together').innerText")

    tab.choose_file("#file", demo / "corpus" / "images" / "tram.png")
    tab.follow("document.querySelector('form button').click()")
    assert tab.run("document.querySelectorAll('section').length") >= 4  # the image searches too
    tab.follow("document.querySelector('.asked a').click()")
    assert tab.run("document.querySelectorAll('.asked').length") == 0

    assert first
    assert {each.split("/")[2] for each in tab.requests[before:] if "data:" not in each} == {
        address.split("/")[2]
    }
