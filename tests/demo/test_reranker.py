"""The cross-encoder in the package is the one that its model card describes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from llama_index_gap import MultiModalRerank
from llama_index_gap.demo.newsroom import RERANKER, make_articles, make_queries
from llama_index_gap.models import LoadingSettings, PairScorer, load_scorer

CARD = (RERANKER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scorer() -> PairScorer:
    return load_scorer(RERANKER, LoadingSettings(dtype="float32"))


def test_it_loads_as_jina_reranker_m0_does() -> None:
    assert MultiModalRerank(model=str(RERANKER)).model_name == str(RERANKER)


def test_it_is_small_and_free(scorer: PairScorer) -> None:
    assert sum(file.stat().st_size for file in RERANKER.iterdir()) < 8_000_000
    assert scorer.licence == "mit"


@pytest.mark.parametrize(("modality", "kind"), [("text", "text"), ("image", "image")])
def test_it_tells_near_misses_apart_as_its_card_says(
    scorer: PairScorer, modality: str, kind: str
) -> None:
    articles = make_articles(100, "test", 5)
    queries = [query for query in make_queries(articles, 24, seed=5) if query.kind == kind]
    told = []
    for query in queries:
        amiss = np.array([len(article.lacks(query.claims)) for article in articles])
        chosen = np.flatnonzero(amiss <= 1)
        documents = [
            articles[at].headline if modality == "text" else articles[at].image() for at in chosen
        ]
        scores, amiss = scorer.score(query.text, documents), amiss[chosen]
        if amiss.any():
            told.append((scores[amiss == 0][:, None] > scores[amiss == 1]).mean())
    assert len(told) > 12
    assert np.mean(told) == pytest.approx(stated(kind), abs=0.15)
    assert np.mean(told) > 0.6  # by chance it were 0.5


def stated(kind: str) -> float:
    """The share of near misses told apart, from the model card."""
    (share,) = re.findall(rf"^\| {kind} \| ([\d.]+) ", CARD, re.MULTILINE)
    return float(share)
