"""llama-gap reembed: an index embedded anew with another model."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llama_index_gap
from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.text import visible

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from llama_index_gap.index.versions import IndexAddress


@model_options.with_models
def reembed(
    *,
    models: model_options.Models,
    dimensions: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many dimensions (Matryoshka).", show_default="all"),
    ] = None,
    aligner: Annotated[
        Path | None, typer.Option(help="Move all vectors by this aligner.", show_default="none")
    ] = None,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    image_root: options.ImageRoots = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out what can no longer be read.")
    ] = False,
    device: options.Device = None,
    as_json: options.AsJson = False,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Embed an index anew with another model, other dimensions or an aligner.

    The index is searched as it was until all is there. Run again, it completes an interrupted run.
    """
    from llama_index_gap.index.reembedding import reembed_index

    model, image_model, image_query_model = models.names
    if model is None and dimensions is None and aligner is None:
        raise typer.BadParameter(
            "say what is to change; 'llama-gap models' lists some models",
            param_hint="--model / --dimensions / --aligner",
        )
    options.check_is_there(db)
    address = options.address(db, name, options.token(), tenant)
    settings: dict[str, Any] = {"dimensions": dimensions, "aligner": aligner, "device": device}
    if model is None:
        for_texts, for_images = _own_models(address, settings | models.places)
    else:
        for_both = replace(models, names=(model, image_model, None))
        loaded, for_images, _ = for_both.load(**settings)
        assert loaded is not None
        for_texts = loaded
    for_image_queries = replace(models, names=(None, None, image_query_model))
    again = for_image_queries.load(device=device)[2]
    started = time.monotonic()
    with terminal.resumable():
        report = reembed_index(
            address,
            for_texts,
            for_images,
            image_query_embed_model=again,
            image_root=image_root or None,
            skip_unreadable=skip_unreadable,
            show_progress=terminal.stderr.is_terminal,
        )
    if as_json:
        terminal.print_report(report)
        return
    took = terminal.duration(time.monotonic() - started)
    terminal.stdout.print(visible(f"Embedded anew in {took}: {report.summary()}"), markup=False)
    for lost in report.lost:
        terminal.stdout.print(visible(f"Gone: {lost}"), markup=False)
    terminal.print_skipped(report.skipped, all_skipped)


def _own_models(
    address: IndexAddress, settings: dict[str, Any]
) -> tuple[BaseEmbedding, BaseEmbedding | None]:
    """The models that the index was made with, with other settings."""
    from llama_index_gap.index.versions import stored_models

    stored = stored_models(address)
    changed = {key: value for key, value in settings.items() if value is not None}

    def built(identity: dict[str, Any] | None) -> BaseEmbedding | None:
        if identity is None:
            return None
        if identity["class_name"] != llama_index_gap.DualEncoderEmbedding.class_name():
            raise typer.BadParameter(
                f"{identity['model_name']} cannot be built from its name alone; name another",
                param_hint="--model",
            )
        kept = {key: value for key, value in identity.items() if key != "aligner"}
        return llama_index_gap.DualEncoderEmbedding.from_dict(kept | changed)

    for_texts = built(stored.get("text"))
    if for_texts is None:
        raise typer.BadParameter(f"{address} does not say its model", param_hint="--model")
    return for_texts, built(stored.get("image"))
