"""llama-gap mcp: an index served to chat programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_index_gap.cli import model_options, options, terminal

if TYPE_CHECKING:
    from llama_index_gap.index.dual_index import DualIndex


@model_options.with_models
def mcp(
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    reranker: model_options.Reranker = None,
    models: model_options.Models,
    image_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also open images of the index that lie in this folder, and let clients search "
            "by its images.",
            show_default="only the folders that were indexed here",
        ),
    ] = None,
    about: Annotated[
        str, typer.Option(metavar="TEXT", help="Tell the models what the index holds.")
    ] = "",
) -> None:
    """Offer an index to chat programs, as an MCP server over stdin and stdout.

    The programs can search and find similar images, but change nothing.
    Each program starts the server itself: the README shows its settings.
    """
    try:
        from llama_index_gap.agents.mcp_server import make_server, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"mcp", "mcp_types"}:
            raise
        terminal.fail(
            "the MCP server needs one more package: pip install 'llama-index-gap[mcp]', or in a "
            "checkout '.[mcp]'"
        )
    options.check_is_there(db)
    if image_root is not None and not image_root.is_dir():
        raise FileNotFoundError(f"{image_root}: no such folder")

    def opened() -> tuple[DualIndex, list[Any]]:
        rerank = models.load_reranker(reranker)
        index = options.open_index(db, name, tenant=tenant, models=models)
        try:
            if image_root is not None:
                index.allow_images(image_root)
        except BaseException:
            index.close()
            raise
        return index, [rerank] if rerank else []

    terminal.note("Serving over stdin and stdout; Ctrl-C ends it.")
    try:
        serve(make_server(opened, about=about, image_root=image_root))
    except KeyboardInterrupt:
        raise typer.Exit(terminal.INTERRUPTED) from None
