"""Measures the figures of the newsroom's model cards: what both models find, and the gap.

    python benchmarks/newsroom.py [MODEL] [--reranker MODEL] [--articles 3000] [--queries 200]
        [--seed 0]

The models are the package's own, or those of other folders, run in float32. Recall@10 is measured
on the newsroom's test fold, with 95 % bootstrap intervals over queries: by headlines alone, by
images alone, by both as ``DualIndexRetriever`` ranks them, and by one mixed index of raw scores.
The last table shows how often both models score an answer above a near miss, which fails in one
claim. ``llama-gap demo`` measures what reranking adds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import MetadataMode
from rich.console import Console
from rich.table import Table

from llama_index_gap import DualEncoderEmbedding, DualIndex
from llama_index_gap.demo.newsroom import (
    CHECKPOINT,
    QUERY_KINDS,
    RERANKER,
    Article,
    Claim,
    make_articles,
    make_queries,
    write_newsroom,
)
from llama_index_gap.evaluation.datasets import Dataset, read_dataset
from llama_index_gap.evaluation.metrics import Run, estimate, judge
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.measure import measure_gap
from llama_index_gap.gap.neighbours import own_modality_share
from llama_index_gap.models import LoadingSettings, PairScorer, load_scorer

K = 10
CROWD = 400  # articles among which near misses are sought
MOST = 30  # answers, and near misses, of a query


@dataclass(frozen=True)
class Embedded:
    """A newsroom and its vectors."""

    dataset: Dataset
    texts: FloatArray
    images: FloatArray
    queries: FloatArray

    def of_kind(self, kind: str) -> list[bool]:
        """For each query, whether it is of a kind."""
        return [query.kind == kind for query in self.dataset.queries]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the newsroom's dual encoder.")
    parser.add_argument("model", nargs="?", default=str(CHECKPOINT))
    parser.add_argument("--reranker", default=str(RERANKER))
    parser.add_argument("--articles", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=200, help="number of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the newsroom")
    arguments = parser.parse_args()
    console = Console()
    model = DualEncoderEmbedding(model_name=arguments.model, dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_newsroom(
            Path(scratch) / "newsroom",
            articles=arguments.articles,
            queries_per_kind=arguments.queries,
            seed=arguments.seed,
        )
        dataset = read_dataset(folder)
        both = _search_both(dataset, model, Path(scratch) / "newsroom.db", console)
        embedded = _embed(dataset, model)
    console.print(_recall(embedded, both))
    console.print(_gap(embedded))
    scorer = load_scorer(arguments.reranker, LoadingSettings(dtype="float32"))
    console.print(_near_misses(model, scorer, arguments.queries, arguments.seed))


def _search_both(
    dataset: Dataset, model: DualEncoderEmbedding, database: Path, console: Console
) -> Run:
    """Each query's documents as ``DualIndexRetriever`` ranks them."""
    started = time.perf_counter()
    with DualIndex.from_documents(dataset.corpus, uri=str(database), embed_model=model) as index:
        indexed = time.perf_counter()
        retriever = index.as_retriever(top_k=K)
        run = {
            query.id: list(
                dict.fromkeys(str(hit.node.ref_doc_id) for hit in retriever.retrieve(query.text))
            )
            for query in dataset.queries
        }
    console.print(
        f"{len(dataset.corpus.document_ids):,} articles indexed in {indexed - started:.0f} s, "
        f"{len(run):,} queries answered in {time.perf_counter() - indexed:.0f} s"
    )
    return run


def _embed(dataset: Dataset, model: DualEncoderEmbedding) -> Embedded:
    headlines = [node.get_content(MetadataMode.EMBED) for node in dataset.corpus.text_nodes]
    images: list[Any] = list(dataset.corpus.image_nodes)
    vectors = (
        model.get_text_embedding_batch(headlines),
        model.get_image_embedding_batch(images),
        [model.get_query_embedding(query.text) for query in dataset.queries],
    )
    return Embedded(dataset, *(np.array(part, dtype=np.float32) for part in vectors))


def _recall(embedded: Embedded, both: Run) -> Table:
    ids = embedded.dataset.corpus.document_ids
    by_text = embedded.queries @ embedded.texts.T
    by_image = embedded.queries @ embedded.images.T
    ways = {
        "headlines": _ranked(embedded.dataset, ids, by_text),
        "images": _ranked(embedded.dataset, ids, by_image),
        "both, fused": both,
        "mixed index": _ranked(embedded.dataset, [*ids, *ids], np.hstack([by_text, by_image])),
    }
    metric = f"recall@{K}"
    recall = [judge(run, embedded.dataset.qrels, [metric])[metric] for run in ways.values()]
    table = Table("query needs", *ways, title=f"Recall@{K}, with 95 % intervals")
    for kind in QUERY_KINDS:
        chosen = embedded.of_kind(kind)
        table.add_row(kind, *(str(estimate(values[chosen])) for values in recall))
    return table


def _ranked(dataset: Dataset, ids: Sequence[str], scores: FloatArray) -> Run:
    """The documents with the best vectors, each once."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return {
        query.id: list(dict.fromkeys(ids[place] for place in places))
        for query, places in zip(dataset.queries, best, strict=True)
    }


def _gap(embedded: Embedded) -> Table:
    texts, images, queries = embedded.texts, embedded.images, embedded.queries
    rows = np.arange(len(texts))
    report = measure_gap(texts, images, pairs=np.stack([rows, rows], axis=1), queries=queries)
    table = Table("figure", "value", "interval", title="The gap, with 95 % intervals")

    def add(name: str, value: float, low: float, high: float) -> None:
        table.add_row(name, f"{value:.3f}", f"{low:.3f}–{high:.3f}")

    figures = {
        "centroid distance ‖Δ‖": report.distance,
        "separation": report.separation,
        "relative modality gap": report.rmg,
        "query to headline, mean cosine": report.scores["query_to_text"].mean,
        "query to headline, standard deviation": report.scores["query_to_text"].std,
        "query to image, mean cosine": report.scores["query_to_image"].mean,
        "query to image, standard deviation": report.scores["query_to_image"].std,
    }
    for name, figure in figures.items():
        assert figure is not None
        add(name, figure.value, figure.low, figure.high)
    shares = own_modality_share(queries, texts, images, K)
    for kind in QUERY_KINDS:
        share = estimate(shares[embedded.of_kind(kind)])
        name = f"headlines in the best {K} of a mixed index, query for {kind}"
        add(name, share.value, share.low, share.high)
    return table


def _near_misses(model: DualEncoderEmbedding, scorer: PairScorer, queries: int, seed: int) -> Table:
    """How often an answer beats a near miss, whose headline or image fails in one claim."""
    articles = make_articles(CROWD, "test", seed + 1)
    contents = {
        "text": [article.headline for article in articles],
        "image": [article.image() for article in articles],
    }
    vectors = {
        "text": np.array(model.get_text_embedding_batch(contents["text"])),
        "image": np.array(model.get_image_embedding_batch(contents["image"])),
    }
    told = defaultdict(list)
    for query in make_queries(articles, queries, seed + 1):
        vector = np.array(model.get_query_embedding(query.text))
        for modality, asked in (("text", query.said), ("image", query.shown)):
            amiss = np.array([len(article.lacks(asked)) for article in articles])
            right, wrong = (np.flatnonzero(amiss == number)[:MOST] for number in (0, 1))
            if not asked or not len(wrong):
                continue
            chosen = [*right, *wrong]
            scores = scorer.score(query.text, [contents[modality][place] for place in chosen])
            for name, found in (("dual", vectors[modality][chosen] @ vector), ("cross", scores)):
                better = found[: len(right), None] > found[len(right) :]
                told[modality, query.kind, name].append(better.mean())
                for amiss_claim in {_amiss(asked, articles[place]) for place in wrong}:
                    of_claim = [_amiss(asked, articles[place]) == amiss_claim for place in wrong]
                    told[modality, amiss_claim, name].append(better[:, of_claim].mean())
    table = Table(
        "document", "query needs", "dual encoder", "cross-encoder", title="Near misses told apart"
    )
    for modality, kind in (
        *(("text", "text"), ("text", "both")),
        *(("image", "image"), ("image", "both")),
    ):
        shares = (str(estimate(told[modality, kind, name])) for name in ("dual", "cross"))
        table.add_row(modality, kind, *shares)
    of_images = ("colour of a thing", "kind of a thing", "thing", "relation", "setting", "sky")
    for modality, claim in (
        *(("text", name) for name in ("who", "event", "place", "time")),
        *(("image", name) for name in of_images),
    ):
        shares = [told[modality, claim, name] for name in ("dual", "cross")]
        if all(shares):
            table.add_row(
                modality, f"any; {claim} amiss", *(str(estimate(each)) for each in shares)
            )
    return table


def _amiss(asked: frozenset[Claim], article: Article) -> str:
    """The one claim that an article does not hold; of a thing, its colour or kind if only that."""
    ((name, value),) = article.lacks(asked)
    if name != "thing":
        return name
    colour, kind = value.split()
    colours, kinds = zip(article.scene.first, article.scene.second, strict=True)
    if kind in kinds:
        return "colour of a thing"
    return "kind of a thing" if colour in colours else "thing"


if __name__ == "__main__":
    main()
