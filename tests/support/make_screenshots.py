"""Makes the screenshots of README and the docs, from the newsroom, with the system's Chromium.

    python tests/support/make_screenshots.py [pages] [results] [readme]

writes them to docs/assets: those of the command's pages, README's picture of results (after make
demo), and README itself as the site shows it; all of them if none is named.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from urllib.parse import urlencode

from chromium import Browser, browser, why_no_browser
from local_page import local_page
from paths import ROOT
from PIL import Image
from results_picture import compare_methods, render_comparison

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

sys.path.append(str(ROOT / "docs"))
from make_site import make_site  # beside the pages, in no package

ASSETS = ROOT / "docs" / "assets"
QUERY = "board game title, dockers, with a picture of a blue car in the rain"
PHONE, DESK, RESULTS = 390, 1280, 760  # pixels


def main() -> None:
    """Make what is named on the command line, or everything."""
    if problem := why_no_browser():
        sys.exit(problem)
    makers = {"pages": shoot_pages, "results": shoot_results, "readme": shoot_readme}
    for name in sys.argv[1:] or makers:  # results before README, which shows them
        with TemporaryDirectory() as folder, chdir(folder), browser() as tab:
            makers[name](tab)


def shoot_results(tab: Browser) -> None:
    """What four methods find in the demo's newsroom for one query."""
    demo = ROOT / "gap-demo"
    if not (demo / "newsroom.db").exists():
        sys.exit(f"{demo} has no newsroom.db; run make demo first")
    with DualIndex(str(demo / "newsroom.db"), image_root=demo / "newsroom") as index:
        found = compare_methods(index, MultiModalRerank(model=RERANKER, top_n=None))
    file = Path("results.html")
    file.write_text(render_comparison(found), encoding="utf-8")
    tab.look(RESULTS, height=1)
    tab.open(file.absolute().as_uri())
    shoot(tab, "results", whole=True)


def shoot_readme(tab: Browser) -> None:
    """The front page of the site, from its top to its end."""
    if problems := make_site(ROOT, Path("site").absolute()):
        sys.exit(problems)
    handler = partial(Silent, directory="site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for name, width in (("readme-phone", PHONE), ("readme-desk", DESK)):
            tab.look(width, height=900)
            tab.open(f"http://127.0.0.1:{server.server_port}/")
            shoot(tab, name, whole=True)
        server.shutdown()


class Silent(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:  # its name there
        """Called for each request."""


def shoot_pages(tab: Browser) -> None:
    """The pages of ``llama-gap``, and a result in a notebook."""
    with indexed() as index:
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


def shoot(tab: Browser, name: str, *, whole: bool = False) -> None:
    """Keep what is seen, or the whole page, in 256 colours: text and drawings need no more."""
    tab.run("document.activeElement.blur()")
    image = Image.open(BytesIO(tab.screenshot(whole=whole))).convert("RGB")
    found = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4)  # else backgrounds are tinted
    found.save(ASSETS / f"{name}.png", optimize=True)
    print(ASSETS / f"{name}.png")  # noqa: T201


if __name__ == "__main__":
    main()
