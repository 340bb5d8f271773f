"""llama-gap read, and index: a corpus checked, and put into an index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import llama_index_gap
from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.text import visible

CorpusPath = Annotated[
    Path, typer.Argument(help="A .jsonl, .csv, .tsv or .pdf file, or a folder.", metavar="PATH")
]
Root = Annotated[
    Path | None, typer.Option(help="Folder that images must lie in.", show_default="the corpus'")
]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Skip larger images.", show_default="89 megapixels")
]
TextField = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="A table's column of texts; repeatable."),
]
ImageField = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="A table's column of images; repeatable."),
]
IdField = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN", help="A table's column of ids; repeatable.")
]
ChunkSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Cut texts into chunks of so many tokens.",
        show_default="512, or fewer that the model reads",
    ),
]
Drafts = Annotated[bool, typer.Option("--drafts", help="Read unpublished pages, too.")]
Pages = Annotated[
    bool, typer.Option("--pages", help="Make every page of a PDF file an image, too.")
]


def read(
    path: CorpusPath,
    *,
    root: Root = None,
    text_field: TextField = None,
    image_field: ImageField = None,
    id_field: IdField = None,
    pages: Pages = False,
    max_pixels: MaxPixels = None,
    drafts: Drafts = False,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Check a corpus: show how much can be read, and what is skipped and why."""
    from llama_index_gap.images.limits import MAX_PIXELS

    corpus = llama_index_gap.read_corpus(
        path,
        root=root,
        text_field=text_field,
        image_field=image_field,
        id_field=id_field,
        pages=pages,
        max_pixels=max_pixels or MAX_PIXELS,
        drafts=drafts,
        show_progress=terminal.stderr.is_terminal,
    )
    terminal.stdout.print(visible(corpus.summary()), markup=False)
    terminal.print_skipped(corpus.skipped, all_skipped)


@model_options.with_models
def index(
    path: CorpusPath,
    *,
    models: model_options.Models,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    source: options.Source = None,
    root: Root = None,
    text_field: TextField = None,
    image_field: ImageField = None,
    id_field: IdField = None,
    pages: Pages = False,
    max_pixels: MaxPixels = None,
    drafts: Drafts = False,
    device: options.Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop the index first.")] = False,
    chunk_size: ChunkSize = None,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Put a corpus into an index; make the index if it is missing.

    Run again, it embeds only new and changed documents, and completes an interrupted run. Documents
    that are no longer in the corpus stay until 'llama-gap sync'.
    """
    from llama_index_gap.images.limits import MAX_PIXELS

    options.check_models(db, models, overwrite=overwrite)
    max_pixels, shown = max_pixels or MAX_PIXELS, terminal.stderr.is_terminal
    started = time.monotonic()
    with terminal.resumable(" without --overwrite" if overwrite else ""):
        corpus = llama_index_gap.read_corpus(
            path,
            root=root,
            chunk_size=chunk_size,
            text_field=text_field,
            image_field=image_field,
            id_field=id_field,
            max_pixels=max_pixels,
            drafts=drafts,
            pages=pages,
            show_progress=shown,
        )
        with options.open_or_make_index(
            *(db, name, models),
            tenant=tenant,
            overwrite=overwrite,
            device=device,
            max_pixels=max_pixels,
            image_root=corpus.root,
        ) as filled:
            report = filled.refresh_ref_docs(corpus, source=source, show_progress=shown)
    terminal.stdout.print(visible(f"Read {corpus.summary()}"), markup=False)
    took = terminal.duration(time.monotonic() - started)
    terminal.stdout.print(visible(f"Indexed in {took}: {report.summary()}"), markup=False)
    if report.vanished:
        documents = f"{report.vanished:,} document{'s are' if report.vanished > 1 else ' is'}"
        terminal.stdout.print(
            visible(
                f"{documents} in the index and no longer in {path}: 'llama-gap sync {path} --db "
                f"{db}' removes what is gone"
            ),
            markup=False,
        )
    terminal.print_skipped([*corpus.skipped, *report.skipped], all_skipped)
    if not report.text_rows + report.image_rows + report.unchanged:
        terminal.fail(f"{path}: nothing in it could be indexed")
