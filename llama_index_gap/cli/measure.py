"""llama-gap measure: measure the modality gap of an index, and recommend a mitigation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_index_gap.cli import model_options, options, terminal


@model_options.with_models
def measure(
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Labelled queries, one per line: {"query": …, "relevant": [ID, …]}.',
            show_default="stored texts and images",
        ),
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Also measure the gap of this reranker, with 16 queries."
        ),
    ] = None,
    image_root: options.ImageRoots = None,
    models: model_options.Models,
    html: options.Page = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the modality gap of an index, and say which mitigation fits.

    Compares one mixed index, before and after each alignment, with two fused indexes.
    Changes nothing.
    """
    from llama_index_gap.diagnosis.report import report_gap
    from llama_index_gap.evaluation.datasets import read_queries

    asked, qrels = read_queries(queries) if queries is not None else ([], {})
    with options.open_index(db, name, image_root, tenant=tenant, models=models) as index:
        rerank = models.load_reranker(reranker)
        report = report_gap(index, asked, qrels, reranker=rerank, show_progress=True)
    if as_json:
        terminal.print_json(report.to_dict())
    else:
        from llama_index_gap.cli.gap_tables import print_report

        print_report(report, terminal.stdout)
    if html is not None:
        from llama_index_gap.cli.pages.gap_page import render_report

        terminal.write_page(html, render_report(report))
