"""The picture of README: one query, and the documents that four methods rank first."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from llama_index_gap import DualIndex, MultiModalRerank
from llama_index_gap.demo.newsroom import Query, make_articles
from llama_index_gap.results import SearchResult

QUERY = "the elderly before the weekend, pictured with a lime cottage in sunshine"  # README's
CLAIMS = frozenset(
    {
        ("who", "pensioners"),
        ("time", "friday"),
        ("thing", "green house"),
        ("sky", "day"),
    }
)
SHOWN = 3  # documents of each method

# Large letters: on a phone the picture is half as wide.
_STYLE = """
* { box-sizing: border-box; margin: 0; }
body { width: 760px; padding: 14px; background: #fff; color: #1d1c1a; font: 19px/1.25 sans-serif; }
h1 { font-size: 22px; }
h2 { margin: 16px 0 6px; padding-left: 8px; border-left: 6px solid #a49d91; font-size: 20px; }
section.ours h2 { border-color: #2f6db3; }
div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; }
article { padding: 7px; border: 2px solid #e2ded6; border-radius: 8px; }
article.right { border-color: #2b8a3e; background: #e9f7ec; }
img { display: block; width: 100%; height: 110px; object-fit: cover; border-radius: 4px; }
p { margin-top: 5px; }
b { color: #2b8a3e; }
"""


def compare_methods(index: DualIndex, reranker: MultiModalRerank) -> dict[str, SearchResult]:
    """The documents that each method finds; the last two are this package's."""
    mixed: dict[str, Any] = {"normalize": "none", "combine": "max", "hubs": False}
    ranks: dict[str, Any] = {"normalize": "rank", "combine": "sum", "hubs": False}
    return {
        "One mixed index": index.search(QUERY, top_k=SHOWN, **mixed),
        "Rank fusion (RRF)": index.search(QUERY, top_k=SHOWN, **ranks),
        "llama-index-gap": index.search(QUERY, top_k=SHOWN),
        "llama-index-gap, reranked": index.search(QUERY, top_k=SHOWN, reranker=reranker),
    }


def right_articles() -> set[str]:
    """The ids of the articles of the demo's newsroom that answer the query."""
    query = Query(QUERY, "both", CLAIMS)
    return {
        article.id for article in make_articles(3000, "test", 0) if query.is_answered_by(article)
    }


def render_comparison(found: dict[str, SearchResult]) -> str:
    """A page with a row for each method, right documents marked."""
    right, rows = right_articles(), []
    for name, result in found.items():
        cards = []
        for document in result:
            path = Path(document.images[0].image_path or "")  # type: ignore[attr-defined]
            mark = "<b>✓</b> " if document.key in right else ""
            cards.append(
                f"<article{' class=right' if mark else ''}>"
                f"<img src='{path.absolute().as_uri()}' alt=''>"
                f"<p>{mark}{document.rank}. {escape(document.text)}</p></article>"
            )
        ours = " class=ours" if name.startswith("llama") else ""
        rows.append(f"<section{ours}><h2>{escape(name)}</h2><div>{''.join(cards)}</div></section>")
    return (
        f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style>"
        f"<h1>“{escape(QUERY)}”</h1>{''.join(rows)}"
    )
