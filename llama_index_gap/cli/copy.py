"""llama-gap copy and drop: copy an index, and remove one."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from llama_index_gap.cli import options, terminal
from llama_index_gap.store.addresses import is_server
from llama_index_gap.text import duration, visible


def copy(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FILE|URL",
            callback=options.checked_database,
            help="The database of the copy (set a server's token in MILVUS_TO_TOKEN).",
            show_default="the same",
        ),
    ] = None,
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    to_name: Annotated[
        str | None, typer.Option(help="The name of the copy.", show_default="the same")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="First delete an index of that name.")
    ] = False,
    as_json: options.AsJson = False,
    all_skipped: options.AllSkipped = False,
) -> None:
    """Copy an index to another database or another name, without embedding anything again.

    Without --tenant, the copy of an index with tenants has all of them. A second run completes an
    interrupted copy; until then, the copy cannot be opened.
    """
    from llama_index_gap.index.copying import CopyReport, copy_index
    from llama_index_gap.index.tenants import list_tenants

    if to is None and to_name is None:
        raise typer.BadParameter("say where to put the copy", param_hint="--to / --to-name")
    options.check_is_there(db)
    target = to or db
    token = os.environ.get("MILVUS_TO_TOKEN")
    # The token of one server never goes to another.
    if token is None and (target == db or not is_server(db)):
        token = options.token()
    tenants: list[str | None] = [tenant]
    if tenant is None:
        tenants = [*list_tenants(db, name, token=options.token(), timeout=options.timeout())]
    started, report = time.monotonic(), CopyReport()
    with terminal.resumable(" without --overwrite" if overwrite else ""):
        for each in tenants or [None]:
            report.add(
                copy_index(
                    options.address(db, name, options.token(), each),
                    options.address(target, to_name or name, token, each),
                    overwrite=overwrite,
                    show_progress=True,
                )
            )
    if as_json:
        terminal.print_report(report)
        return
    took = duration(time.monotonic() - started)
    terminal.stdout.print(visible(f"Copied in {took}: {report.summary()}"), markup=False)
    terminal.print_skipped(report.skipped, all_skipped)


def drop(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The index, as 'info' names it.")],
    *,
    db: options.Database = "gap.db",
    tenant: options.Tenant = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove an index: its collections and the images that it stored. Your own files stay."""
    from llama_index_gap.index.dropping import drop_index

    options.check_is_there(db)
    if not yes:
        typer.confirm(visible(f"Remove the index {name} from {db}?"), abort=True, err=True)
    gone = drop_index(options.address(db, name, options.token(), tenant))
    terminal.stdout.print(visible(f"{name} removed: {', '.join(gone)}"), markup=False)
