"""llama-gap evaluate and demo: measure each method on labelled queries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.store.addresses import is_server


@model_options.with_models
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder in the format of EDIS, MixBench or BEIR; or a corpus beside a file "
            "queries.jsonl with lines {query, relevant: [ID, …], kind}.",
        ),
    ],
    *,
    models: model_options.Models,
    reranker: model_options.Reranker = None,
    first_stage: model_options.FirstStage = None,
    learn_first_stage: Annotated[
        bool,
        typer.Option(
            "--learn-first-stage", help="Learn the best --first-stage, by cross-validation."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only so many queries.")] = None,
    split: Annotated[str, typer.Option(help="The split whose queries are asked.")] = "test",
    db: Annotated[str | None, options.database_option("DATA's name with .db, here")] = None,
    html: options.Page = None,
    as_json: options.AsJson = False,
    runs: Annotated[Path | None, typer.Option(help="Write rankings here as TREC files.")] = None,
) -> None:
    """Compare ways to search, fuse and rerank on labelled queries.

    First indexes the documents that the index lacks.
    After Ctrl-C, the same command continues where it stopped.
    """
    from llama_index_gap.cli.experiment_tables import result_tables
    from llama_index_gap.cli.pages.experiment_page import render_experiment
    from llama_index_gap.evaluation.datasets import read_dataset
    from llama_index_gap.evaluation.examples import pick_examples
    from llama_index_gap.evaluation.experiment import Experiment

    model_options.check_first_stage(first_stage, reranker)
    if learn_first_stage and reranker is None:
        raise typer.BadParameter(
            "learns what counts beside a reranker; name one with --reranker",
            param_hint="--learn-first-stage",
        )
    db = db or f"{data.expanduser().resolve().name}.db"
    options.check_models(db, models)
    with terminal.resumable():
        dataset = read_dataset(data, split=split, show_progress=True).limited(limit)
        if runs is not None:
            runs.mkdir(parents=True, exist_ok=True)
        scorer = models.load_scorer(reranker)
        with options.open_or_make_index(
            *(db, "gap", models),
            image_root=dataset.corpus.root,
        ) as index:
            report = index.refresh_ref_docs(dataset.corpus.nodes, show_progress=True)
            experiment = Experiment(
                dataset, index, scorer, first_stage=first_stage, learn_first_stage=learn_first_stage
            )
            folder = Path() if is_server(db) else Path(db).parent
            results = folder / experiment.file_name
            result = experiment.run(results, show_progress=True)
    if report.skipped:
        first = report.skipped[0]
        terminal.say(
            "warning",
            f"{len(report.skipped):,} texts or images could not be indexed, so no method can find "
            f"them; the first is {first.source}: {first.reason}",
        )
    if as_json:
        terminal.print_json(result.to_dict())
    else:
        for part in result_tables(result):
            terminal.stdout.print(part)
            terminal.stdout.print()
    terminal.note(f"Written to {results}")
    if html is not None:
        terminal.write_page(html, render_experiment(result, pick_examples(result, dataset)))
    if runs is not None:
        result.write_runs(runs)
        terminal.note(f"Written to {runs}")


def demo(
    folder: Annotated[Path, typer.Option(help="Keep all files here.")] = Path("gap-demo"),
    articles: Annotated[int, typer.Option(min=100, help="Articles in the newsroom.")] = 3000,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each kind.")] = 100,
) -> None:
    """See, offline, what the modality gap costs and what closes it.

    Draws a made-up newsroom, indexes it with a tiny dual encoder, reranks
    with a tiny cross-encoder, and measures what each method finds.
    Both models were trained only on such newsrooms.
    """
    from llama_index_gap.cli.demo import run_demo

    run_demo(folder, terminal.stdout, articles=articles, queries_per_kind=queries)
