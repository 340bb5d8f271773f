"""Makes the screenshots of the docs, from the newsroom, with the system's Chromium.

    python tests/support/make_screenshots.py

writes them to docs/assets.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

from chromium import Browser, browser, why_no_browser
from local_page import local_page
from paths import ROOT
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank, read_corpus
from llama_index_gap.cli.pages.gap_page import render_report
from llama_index_gap.cli.pages.search_page import render_page
from llama_index_gap.cli.pages.serve_page import Served
from llama_index_gap.demo.newsroom import (
    CHECKPOINT,
    RERANKER,
    development_queries,
    write_newsroom,
)
from llama_index_gap.diagnosis.report import report_gap

ASSETS = ROOT / "docs" / "assets"
QUERY = "tailors, Quarndon, with a picture of a tree of ivory foliage on the road"
PHONE, DESK = 390, 1280  # pixels


def main() -> None:
    """Draw a newsroom, index it, and show it on each page."""
    if problem := why_no_browser():
        sys.exit(problem)
    with TemporaryDirectory() as folder, chdir(folder), indexed() as index, browser() as tab:
        rerank, close = MultiModalRerank(model=RERANKER, top_n=None), index.close
        index.close = lambda: None  # type: ignore[method-assign]  # not with the page
        shown = Served("newsroom.db", "gap", "the demo’s reranker")
        with local_page(lambda: (index, rerank), shown) as address:
            asked = f"{address}/?{urlencode({'q': QUERY, 'k': 5})}"
            tab.look(DESK, height=1000)
            tab.open(asked)
            shoot(tab, "serve")
            tab.look(DESK, dark=True, height=1000)
            tab.open(f"{asked}&rerank=on")
            shoot(tab, "serve-reranked-dark")
            tab.look(PHONE, height=844)
            tab.open(asked)
            shoot(tab, "serve-phone")
        index.close = close  # type: ignore[method-assign]
        found = index.search(QUERY, top_k=5)
        pages = {
            "search-page": render_page(found),
            "gap-page": render_report(report_gap(index, rounds=100)),
            "notebook": "<!doctype html><meta charset=utf-8><body style='font:15px sans-serif'>"
            + found._repr_html_(),
        }
        for name, page in pages.items():
            file = Path(f"{name}.html")
            file.write_text(page, encoding="utf-8")
            tab.look(960, height=640)
            tab.open(file.absolute().as_uri())
            if name == "gap-page":
                tab.run("document.querySelectorAll('section')[1].scrollIntoView()")
            shoot(tab, name)


@contextmanager
def indexed() -> Iterator[DualIndex]:
    """A small newsroom, indexed in this folder, that has learnt from queries."""
    write_newsroom("newsroom", articles=300, queries_per_kind=8)
    shutil.copytree(CHECKPOINT, "checkpoint")  # pages name the model's folder
    model = DualEncoderEmbedding(model_name="checkpoint")
    with DualIndex("newsroom.db", embed_model=model) as index:
        index.insert_nodes(read_corpus("newsroom").nodes)
        index.learn_queries(development_queries(60))
        yield index


def shoot(tab: Browser, name: str) -> None:
    """Keep what is seen, in 256 colours, which a page of text and drawings has not."""
    tab.run("document.activeElement.blur()")
    image = Image.open(BytesIO(tab.screenshot(whole=False))).convert("RGB")
    image.quantize(256).save(ASSETS / f"{name}.png", optimize=True)
    print(ASSETS / f"{name}.png")  # noqa: T201


if __name__ == "__main__":
    main()
