"""Runs the first stages of ``fusion_study.py`` in the newsroom, whose model has a narrow gap.

    python benchmarks/newsroom_fusion.py [--articles 3000] [--queries 200] [--quick]

It uses the newsroom of ``llama-gap demo`` and its checkpoint: articles with a headline and an
image, and equal numbers of queries for a headline, an image, or both. The sample consists of 300
unlabelled queries about articles of the development fold. ± is half of a 95 % bootstrap interval
over queries.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from llama_index.core.schema import MetadataMode
from rich.console import Console

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.demo.newsroom import (
    CHECKPOINT,
    QUERY_KINDS,
    make_articles,
    make_queries,
    write_newsroom,
)
from llama_index_gap.evaluation.datasets import read_dataset
from llama_index_gap.gap.arrays import FloatArray, unit_rows
from llama_index_gap.gap.estimates import bootstrap
from llama_index_gap.gap.hubs import reliability

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
from first_stage import Searched, evaluate  # noqa: E402
from fusion_study import DEFAULT, METHODS, WIDTH, WITH_SAMPLE, short, table_of  # noqa: E402
from two_modalities import BACKGROUND  # noqa: E402

OF_SAMPLE = 100  # queries of each kind in the sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--articles", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=200, help="number of each kind")
    parser.add_argument("--quick", action="store_true", help="a small newsroom, for tests")
    options = parser.parse_args()
    if options.quick:
        options.articles, options.queries = 150, 10
    model = DualEncoderEmbedding(model_name=str(CHECKPOINT), dtype="float32")

    def rows(vectors: list[list[float]]) -> FloatArray:
        return unit_rows(np.array(vectors), np.float64)

    with tempfile.TemporaryDirectory() as folder:
        dataset = read_dataset(
            write_newsroom(
                Path(folder), articles=options.articles, queries_per_kind=options.queries
            )
        )
        texts, images = dataset.corpus.text_nodes, dataset.corpus.image_nodes
        contents = [node.get_content(MetadataMode.EMBED) for node in texts]
        vectors = {
            "text": (texts, rows(model.get_text_embedding_batch(contents))),
            "image": (images, rows(model.get_image_embedding_batch(list(images)))),
        }
    queries = rows([model.get_query_embedding(query.text) for query in dataset.queries])
    others = make_queries(make_articles(1000, "development", 7), OF_SAMPLE, 7)
    sample = rows([model.get_query_embedding(query.text) for query in others])
    numbers = {node.ref_doc_id: number for number, node in enumerate(texts)}
    rng = np.random.default_rng(0)
    legs = {}
    for name, (nodes, stored) in vectors.items():
        drawn = rng.permutation(len(stored))[:BACKGROUND]
        places = np.full(len(stored), -1)
        places[drawn] = np.arange(len(drawn))
        documents = np.array([numbers[node.ref_doc_id] for node in nodes])
        legs[name] = Searched(stored, documents, stored[drawn], places)
    right = [[numbers[key] for key in dataset.qrels[query.id]] for query in dataset.queries]
    wanted = np.full((len(right), max(map(len, right))), -2)
    for row, keys in zip(wanted, right, strict=True):
        row[: len(keys)] = keys

    references = legs["text"].sample
    found = evaluate(queries, legs, wanted, METHODS, references=references, sample=sample)

    console = Console()
    console.width = max(console.width, WIDTH)
    for name, leg in legs.items():
        by_bank = [f"{reliability(leg.sample, bank):.2f}" for bank in (references, sample)]
        console.print(f"ρ of the {name} leg: {by_bank[0]} (headlines), {by_bank[1]} (sample)")
    kinds = np.array([query.kind for query in dataset.queries])
    for title, figures in (("nDCG@10", found.ndcg), ("recall@10", found.recall)):
        show(title, figures, kinds, console)


def show(title: str, figures: dict[str, FloatArray], kinds: FloatArray, console: Console) -> None:
    table = np.column_stack(list(figures.values()))
    names = list(figures)

    def means(counts: FloatArray) -> dict[tuple[str, str], float]:
        mean = counts @ table / counts.sum()
        leads = [mean[names.index(name)] for name in (DEFAULT, WITH_SAMPLE)]
        return {
            (name, what): value
            for at, name in enumerate(names)
            for what, value in zip(
                ("mean", *(DEFAULT, WITH_SAMPLE)),
                (mean[at], *(lead - mean[at] for lead in leads)),
                strict=True,
            )
        }

    strata = np.unique(kinds, return_inverse=True)[1]
    found = bootstrap(means, strata)
    cells = {}
    for name, values in figures.items():
        mean = found[name, "mean"]
        cells[name] = [
            f"{short(mean.value)} ({short(mean.low)}–{short(mean.high)})",
            *(short(values[kinds == kind].mean()) for kind in QUERY_KINDS),
            *(
                f"{short(lead.value, '+')} ({short(lead.low, '+')} {short(lead.high, '+')})"
                for lead in (found[name, DEFAULT], found[name, WITH_SAMPLE])
            ),
        ]
    console.print(f"\n{title}", highlight=False)
    columns = ("all", *QUERY_KINDS, f"{DEFAULT} leads by", "with a sample")
    console.print(table_of(columns, cells))


if __name__ == "__main__":
    main()
