"""llama-gap read and index: check a corpus, and put it into an index."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.cli.reading_options import ChunkSize, CorpusPath, Reading, with_reading
from llama_index_gap.cli.running_options import Running, with_running
from llama_index_gap.store.addresses import is_server
from llama_index_gap.text import duration, visible


@with_reading
def read(
    path: CorpusPath,
    *,
    reading: Reading,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Check a corpus: show what can be read, what is skipped, and why."""
    corpus = reading.corpus(path)
    terminal.stdout.print(visible(corpus.summary()), markup=False)
    terminal.print_skipped(corpus.skipped, all_skipped)


@model_options.with_models
@with_reading
@with_running
def index(
    path: CorpusPath,
    *,
    models: model_options.Models,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    source: options.Source = None,
    reading: Reading,
    running: Running,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the index first.")] = False,
    chunk_size: ChunkSize = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Index on a Ray cluster: its host:port, 'auto' for the one running on this "
            "machine, or 'local' to start one here.",
            show_default="this process",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --ray, the most workers to start.",
            show_default="one per GPU, or else per CPU",
        ),
    ] = None,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Put a corpus into an index; create the index if it is missing.

    A second run embeds only new and changed documents, and completes an interrupted run. Documents
    that are no longer in the corpus stay until 'llama-gap sync'.
    """
    if ray_actors is not None and ray is None:
        raise typer.BadParameter("needs --ray", param_hint="--ray-actors")
    if ray is not None and not is_server(db):
        raise typer.BadParameter(
            f"needs a Milvus server as --db, since only one process at a time can open {db}",
            param_hint="--ray",
        )
    options.check_models(db, models, overwrite=overwrite)
    started = time.monotonic()
    with terminal.resumable(" without --overwrite" if overwrite else ""):
        corpus = reading.corpus(path, chunk_size)
        with options.open_or_make_index(
            *(db, name, models),
            tenant=tenant,
            overwrite=overwrite,
            max_pixels=reading.max_pixels,
            image_root=corpus.root,
            **running.settings,
        ) as filled:
            if ray is None:
                report = filled.refresh_ref_docs(corpus, source=source, show_progress=True)
            else:
                from llama_index_gap.distributed.ingestion import ingest_with_ray

                report = ingest_with_ray(
                    *(filled, corpus),
                    address=ray,
                    actors=ray_actors,
                    source=source,
                    show_progress=True,
                )
    terminal.stdout.print(visible(f"Read {corpus.summary()}"), markup=False)
    took = duration(time.monotonic() - started)
    terminal.stdout.print(visible(f"Indexed in {took}: {report.summary()}"), markup=False)
    if report.vanished:
        documents = f"{report.vanished:,} document{'s are' if report.vanished > 1 else ' is'}"
        terminal.stdout.print(
            visible(
                f"{documents} in the index but no longer in {path}; to remove them, run "
                f"'llama-gap sync {path} --db {db}'"
            ),
            markup=False,
        )
    terminal.print_skipped([*corpus.skipped, *report.skipped], all_skipped)
    if not report.text_rows + report.image_rows + report.unchanged:
        terminal.fail(f"{path}: nothing in it could be indexed")
