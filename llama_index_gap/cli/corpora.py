"""llama-gap read, and index: a corpus checked, and put into an index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import llama_index_gap
from llama_index_gap.cli import options, terminal
from llama_index_gap.text import visible

CorpusPath = Annotated[
    Path, typer.Argument(help="A .jsonl, .csv or .tsv file, or a folder.", metavar="PATH")
]
Root = Annotated[
    Path | None, typer.Option(help="Folder that images must lie in.", show_default="the corpus'")
]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Skip larger images.", show_default="89 megapixels")
]


def read(
    path: CorpusPath,
    root: Root = None,
    max_pixels: MaxPixels = None,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Check a corpus: show how much can be read, and what is skipped and why."""
    from llama_index_gap.images.limits import MAX_PIXELS

    corpus = llama_index_gap.read_corpus(
        path,
        root=root,
        max_pixels=max_pixels or MAX_PIXELS,
        show_progress=terminal.stderr.is_terminal,
    )
    terminal.stdout.print(visible(corpus.summary()), markup=False)
    terminal.print_skipped(corpus.skipped, all_skipped)


def index(
    path: CorpusPath,
    *,
    model: options.Model = None,
    image_model: options.ImageModel = None,
    image_query_model: options.ImageQueryModel = None,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    root: Root = None,
    max_pixels: MaxPixels = None,
    device: options.Device = None,
    local_files_only: options.LocalFilesOnly = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop the index first.")] = False,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Put a corpus into an index; make the index if it is missing.

    Run again, it embeds only new and changed documents, and completes an interrupted run.
    """
    from llama_index_gap.images.limits import MAX_PIXELS

    options.check_models(db, model, image_model, overwrite=overwrite)
    max_pixels, shown = max_pixels or MAX_PIXELS, terminal.stderr.is_terminal
    started = time.monotonic()
    with terminal.resumable(" without --overwrite" if overwrite else ""):
        corpus = llama_index_gap.read_corpus(
            path, root=root, max_pixels=max_pixels, show_progress=shown
        )
        with options.open_or_make_index(
            *(db, name, model, image_model, image_query_model),
            overwrite=overwrite,
            local_files_only=local_files_only,
            device=device,
            max_pixels=max_pixels,
            image_root=corpus.root,
        ) as filled:
            report = filled.refresh_ref_docs(corpus.nodes, show_progress=shown)
    terminal.stdout.print(visible(f"Read {corpus.summary()}"), markup=False)
    took = terminal.duration(time.monotonic() - started)
    terminal.stdout.print(visible(f"Indexed in {took}: {report.summary()}"), markup=False)
    terminal.print_skipped([*corpus.skipped, *report.skipped], all_skipped)
    if not report.text_rows + report.image_rows + report.unchanged:
        terminal.fail(f"{path}: nothing in it could be indexed")
