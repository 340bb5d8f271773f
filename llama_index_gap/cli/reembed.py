"""llama-gap reembed: embed an index again with another model."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.cli.running_options import Running, with_running
from llama_index_gap.text import duration, visible


@model_options.with_models
@with_running
def reembed(
    *,
    models: model_options.Models,
    dimensions: Annotated[
        int | None,
        typer.Option(min=1, help="Keep this many dimensions (Matryoshka).", show_default="all"),
    ] = None,
    aligner: Annotated[
        Path | None, typer.Option(help="Move all vectors with this aligner.", show_default="none")
    ] = None,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    image_root: options.ImageRoots = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out rows that can no longer be read.")
    ] = False,
    running: Running,
    as_json: options.AsJson = False,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Embed an index again, with another model, other dimensions or an aligner.

    Searches use the old vectors until all new ones are there. A second run completes an
    interrupted one.
    """
    from llama_index_gap.index.reembedding import reembed_index

    model, image_model, image_query_model = models.names
    if model is None and dimensions is None and aligner is None:
        raise typer.BadParameter(
            "say what to change; 'llama-gap models' lists some models",
            param_hint="--model / --dimensions / --aligner",
        )
    options.check_is_there(db)
    address = options.address(db, name, options.token(), tenant)
    settings: dict[str, Any] = {"dimensions": dimensions, "aligner": aligner, **running.settings}
    if model is None:
        kept = {key: each for key, each in settings.items() if each is not None}
        changed = {"aligner": None, **models.places, **kept}
        loaded, for_images = options.own_models(address, changed, ("text", "image"))
    else:
        for_both = replace(models, names=(model, image_model, None))
        loaded, for_images, _ = for_both.load(**settings)
    assert loaded is not None
    for_image_queries = replace(models, names=(None, None, image_query_model))
    again = for_image_queries.load(**running.settings)[2]
    started = time.monotonic()
    with terminal.resumable():
        report = reembed_index(
            address,
            loaded,
            for_images,
            image_query_embed_model=again,
            image_root=image_root or None,
            skip_unreadable=skip_unreadable,
            show_progress=True,
        )
    if as_json:
        terminal.print_report(report)
        return
    took = duration(time.monotonic() - started)
    terminal.stdout.print(visible(f"Embedded again in {took}: {report.summary()}"), markup=False)
    for lost in report.lost:
        terminal.stdout.print(visible(f"Lost: {lost}"), markup=False)
    terminal.print_skipped(report.skipped, all_skipped)
