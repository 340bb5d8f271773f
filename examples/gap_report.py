"""Measure the gap between the texts and images of an index, and get recommendations."""

import tempfile
from pathlib import Path

from rich.console import Console

from llama_index_gap import DualEncoderEmbedding, DualIndex
from llama_index_gap.cli.gap_tables import print_report
from llama_index_gap.cli.pages.gap_page import render_report
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom
from llama_index_gap.diagnosis.report import report_gap
from llama_index_gap.evaluation.datasets import read_dataset

PAGE = Path("gap-demo/gap.html")

with tempfile.TemporaryDirectory() as folder:
    # Yours: a corpus with queries.jsonl; without queries, stored vectors stand in for them.
    newsroom = read_dataset(write_newsroom(f"{folder}/newsroom", articles=200, queries_per_kind=40))
    embedding = DualEncoderEmbedding(model_name=CHECKPOINT)
    with DualIndex(f"{folder}/gap.db", embed_model=embedding) as index:
        index.insert_nodes(newsroom.corpus.nodes)
        # rounds: resamples for the intervals; the default has more, and takes longer
        report = report_gap(index, newsroom.queries, newsroom.qrels, rounds=100)

print_report(report, Console(highlight=False))
PAGE.parent.mkdir(exist_ok=True)
PAGE.write_text(render_report(report), encoding="utf-8")
print(f"\nThe report with plots: {PAGE.resolve()}")
