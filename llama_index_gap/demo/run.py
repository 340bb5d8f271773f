"""The demo: what the modality gap costs and what closes it, on a made-up newsroom, offline."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom
from llama_index_gap.embedding import DualEncoderEmbedding
from llama_index_gap.evaluation.datasets import read_dataset
from llama_index_gap.evaluation.examples import pick_examples
from llama_index_gap.evaluation.experiment import Experiment
from llama_index_gap.evaluation.experiment_page import render_experiment
from llama_index_gap.evaluation.tables import example_in_words, result_tables
from llama_index_gap.index import DualIndex


def run_demo(folder: str | Path, console: Console, *, articles: int, queries_per_kind: int) -> None:
    """Draw a newsroom, index it, ask it, and show what each method finds.

    Args:
        folder: where the newsroom, its index and the page are written; run again with it, the demo
            uses what is there.
        console: where to print.
        articles: size of the newsroom.
        queries_per_kind: queries that need a headline, a picture, or both: so many of each.

    Raises:
        FileExistsError: the folder holds a newsroom of another size.
    """
    started = time.monotonic()
    folder = Path(folder)
    shown = console.is_terminal

    console.print(
        f"[bold]1. Draw[/bold] a made-up newsroom: {articles:,} articles, each a headline and a "
        "picture that shows what the headline does not say"
    )
    corpus = write_newsroom(
        folder / "newsroom", articles=articles, queries_per_kind=queries_per_kind
    )
    dataset = read_dataset(corpus, show_progress=shown)

    console.print(
        "\n[bold]2. Index[/bold] it with a tiny CLIP that was [bold]trained on such newsrooms "
        "only[/bold] (on other events, places and scenes than these), and knows nothing else"
    )
    model = DualEncoderEmbedding(model_name=str(CHECKPOINT), dtype="float32")  # alike anywhere
    with DualIndex(str(folder / "newsroom.db"), embed_model=model) as index:
        report = index.refresh_ref_docs(dataset.corpus.nodes, show_progress=shown)
        console.print(report.summary(), highlight=False)

        console.print(
            "\n[bold]3. Ask[/bold] it: a third of the queries need the headline (text), a third "
            "the picture (image), a third both"
        )
        experiment = Experiment(dataset, index)
        result = experiment.run(folder / experiment.file_name, show_progress=shown)
    for part in result_tables(result):
        console.print(part)
        console.print()

    console.print("[bold]4. Look[/bold] at some of them")
    for example in pick_examples(result, dataset, 3):
        console.print(example_in_words(example))
        console.print()
    page = folder / "newsroom.html"
    page.write_text(render_experiment(result, pick_examples(result, dataset)), encoding="utf-8")
    console.print(
        Text(f"With their pictures: {page} (took {time.monotonic() - started:.0f} s)"),
        soft_wrap=True,
    )
