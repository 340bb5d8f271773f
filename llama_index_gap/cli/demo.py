"""The demo: the cost of the modality gap, and ways to close it, on a made-up newsroom, offline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from llama_index_gap.cli.experiment_tables import example_in_words, result_tables
from llama_index_gap.cli.pages.experiment_page import render_experiment
from llama_index_gap.demo.newsroom import CHECKPOINT, RERANKER, development_queries, write_newsroom
from llama_index_gap.embedding import DualEncoderEmbedding
from llama_index_gap.evaluation.datasets import read_dataset, read_unlabelled
from llama_index_gap.evaluation.examples import pick_examples
from llama_index_gap.evaluation.experiment import DEFAULT, DEFAULT_RERANKED, Experiment
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.models import LoadingSettings, PairScorer, load_scorer
from llama_index_gap.nodes import by_document
from llama_index_gap.search.rerank import MultiModalRerank
from llama_index_gap.text import visible


def run_demo(folder: str | Path, console: Console, *, articles: int, queries_per_kind: int) -> None:
    """Draw a newsroom, index it, search it, rerank, and show what each method finds.

    Args:
        folder: for the newsroom, its index and the page. A second run reuses these files.
        console: where to print.
        articles: the number of articles in the newsroom.
        queries_per_kind: the number of queries that need the headline; as many need the image, and
            as many need both.

    Raises:
        FileExistsError: the folder holds a newsroom of another size.
    """
    started = time.monotonic()
    folder = Path(folder)

    console.print(
        f"[bold]1. Draw[/bold] a made-up newsroom: {articles:,} articles, each with a headline and "
        "an image that shows what the headline does not say"
    )
    corpus = write_newsroom(
        folder / "newsroom", articles=articles, queries_per_kind=queries_per_kind
    )
    dataset = read_dataset(corpus, show_progress=True)

    console.print(
        "\n[bold]2. Index[/bold] it with a tiny CLIP that was [bold]trained only on such "
        "newsrooms[/bold], with other events, places and scenes, and knows nothing else"
    )
    model = DualEncoderEmbedding(model_name=str(CHECKPOINT), dtype="float32")  # same anywhere
    with DualIndex(str(folder / "newsroom.db"), embed_model=model) as index:
        report = index.refresh_ref_docs(dataset.corpus.nodes, show_progress=True)
        console.print(visible(report.summary()), highlight=False, markup=False)

        unlabelled = folder / "queries.txt"
        unlabelled.write_text("\n".join(development_queries()), encoding="utf-8")
        learnt = index.learn_queries(read_unlabelled(unlabelled))
        console.print(
            f"and let it [bold]learn[/bold] from {learnt.texts:,} unlabelled queries to another "
            "newsroom how far the scores of a query spread"
        )
        console.print(
            "\n[bold]3. Search[/bold] it: a third of the queries need the headline (text), a third "
            "the image (image), a third both"
        )
        console.print(
            "[bold]4. Rerank[/bold] the candidates with a tiny cross-encoder, also trained only on "
            "such newsrooms"
        )
        scorer = load_scorer(RERANKER, LoadingSettings(dtype="float32"))
        timed = _time_reranking(index, scorer, [query.text for query in dataset.queries])
        experiment = Experiment(dataset, index, scorer)
        result = experiment.run(folder / experiment.file_name, show_progress=True)
    result = replace(result, notes=(*result.notes, timed))
    for part in result_tables(result):
        console.print(part)
        console.print()

    console.print("[bold]5. Look[/bold] at some queries on which reranking makes the difference")
    for example in pick_examples(result, dataset, 3, between=(DEFAULT, DEFAULT_RERANKED)):
        console.print(example_in_words(example))
        console.print()
    page = folder / "newsroom.html"
    page.write_text(render_experiment(result, pick_examples(result, dataset)), encoding="utf-8")
    console.print(
        Text(visible(f"With their images: {page} (took {time.monotonic() - started:.0f} s)")),
        soft_wrap=True,
    )


def _time_reranking(index: DualIndex, scorer: PairScorer, queries: Sequence[str]) -> str:
    """Time reranking for a first query, and for a second one over the same documents."""
    retriever = index.as_retriever(complete=True)
    reranker = MultiModalRerank(model=scorer, top_n=None)
    other = retriever.retrieve(queries[-1])[:2]
    reranker.postprocess_nodes(other, query_str=queries[-1])  # the first call warms up the model
    hits = retriever.retrieve(queries[0])
    seconds = []
    for text in queries[:2]:
        started = time.perf_counter()
        reranker.postprocess_nodes(hits, query_str=text)
        seconds.append(time.perf_counter() - started)
    documents = len(by_document(hits, "document"))
    return (
        f"reranking {documents} new documents took {seconds[0]:.2f} s; a second query over the "
        f"same documents took {seconds[1]:.2f} s"
    )
