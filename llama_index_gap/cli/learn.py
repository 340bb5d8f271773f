"""llama-gap learn: let an index learn from unlabelled queries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.text import visible


@model_options.with_models
def learn(
    queries: Annotated[
        Path | None,
        typer.Argument(
            metavar="QUERIES",
            help="A text file with one query per line, or a .jsonl file with one object per line: "
            '{"text": …}, {"image_path": …}, or both; paths are relative to the file.',
        ),
    ] = None,
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    forget: Annotated[bool, typer.Option("--forget", help="Forget the learnt queries.")] = False,
    models: model_options.Models,
    as_json: options.AsJson = False,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Learn from 100 to 300 unlabelled queries, so that each search finds more.

    Take them from a log or a development set, never from the queries of an evaluation.
    Only their vectors are kept. They replace earlier ones of the same modality.
    """
    from llama_index_gap.evaluation.datasets import read_unlabelled

    if forget == (queries is not None):
        raise typer.BadParameter("pass a file of queries, or --forget", param_hint="QUERIES")
    given = [] if queries is None else read_unlabelled(queries)
    with options.open_index(db, name, tenant=tenant, models=models) as index:
        if queries is None:
            index.forget_queries()
            terminal.stdout.print(f"{name} has forgotten its queries", markup=False)
            return
        report = index.learn_queries(given)
        sample = index.query_sample()
    if as_json:
        terminal.print_report(report)
        return
    terminal.stdout.print(visible(report.summary().capitalize()), markup=False)
    terminal.print_skipped(report.skipped, all_skipped)
    terminal.stdout.print(
        f"Each search of {name} now compares its scores with those of {sample}, in every process "
        "that opens it from now on. 'llama-gap evaluate' measures the gain on labelled queries.",
        style="dim",
        markup=False,
    )
