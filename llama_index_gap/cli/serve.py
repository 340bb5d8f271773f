"""llama-gap mcp and llama-gap serve: an index for chat programs, and as a local page."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_index_gap.cli import model_options, options, terminal

if TYPE_CHECKING:
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.search.rerank import MultiModalRerank

_AT_ONCE = 64  # requests
_LONGEST_ADDRESS = 2**18  # bytes; a text of 10,000 characters takes up to 120,000
_LAST_ANSWERS_S = 5


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
            help="Also open images of the index in this folder, and let clients search by the "
            "images in it.",
            show_default="only the folders that were indexed here",
        ),
    ] = None,
    about: Annotated[
        str, typer.Option(metavar="TEXT", help="Tell the models what the index holds.")
    ] = "",
) -> None:
    """Offer an index to chat programs, as an MCP server over stdin and stdout.

    The programs can search and find similar images, but change nothing.
    Each program starts the server itself; docs/agents.md shows its settings.
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


@model_options.with_models
def serve(
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    reranker: model_options.Reranker = None,
    models: model_options.Models,
    image_root: options.ImageRoots = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Listen on this address. With any other than 127.0.0.1, whoever reaches it can "
            "search the index and see its images: there is no password.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Listen on this port; 0 takes a free one.")
    ] = 8765,
) -> None:
    """Show an index on a local page: what each leg finds for a query, and how fusion ranks it.

    The page searches and shows images of the index, and changes nothing. Ctrl-C ends it.
    """
    try:
        import uvicorn

        from llama_index_gap.cli.pages.serve_page import Served
        from llama_index_gap.cli.web_guard import is_loopback
        from llama_index_gap.cli.web_server import make_app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"starlette", "uvicorn", "python_multipart"}:
            raise
        terminal.fail(
            f"the page needs {missing}, which the extra serve brings: pip install "
            "'llama-index-gap[serve]', or in a checkout '.[serve]'"
        )
    options.check_is_there(db)

    def opened() -> tuple[DualIndex, MultiModalRerank | None]:
        rerank = models.load_reranker(reranker)
        return options.open_index(db, name, image_root, tenant=tenant, models=models), rerank

    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        terminal.fail(
            f"cannot listen on {host}, port {port}: {error.strerror}; name another --port"
        )
    with listening:
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{shown}:{listening.getsockname()[1]}/")
        if not is_loopback(host):
            terminal.say(
                "warning",
                f"this page is open to whoever reaches {host}: they can search the index and see "
                "its texts and images without a password; leave --host out to keep it to yourself",
            )
        terminal.note("Open this address in a browser; Ctrl-C ends it.")
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(opened, Served(db, name, reranker or ""), host=host),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                http="h11",
                ws="none",
                limit_concurrency=_AT_ONCE,
                h11_max_incomplete_event_size=_LONGEST_ADDRESS,
                timeout_graceful_shutdown=_LAST_ANSWERS_S,
            )
        )
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            raise typer.Exit(terminal.INTERRUPTED) from None
