"""llama-gap sync: bring an index in step with a corpus that has changed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.cli.reading_options import ChunkSize, CorpusPath, Reading, with_reading
from llama_index_gap.cli.running_options import Running, with_running
from llama_index_gap.text import duration, visible

if TYPE_CHECKING:
    from llama_index_gap.index.syncing import SyncReport

_SHOWN = 20


@model_options.with_models
@with_reading
@with_running
def sync(
    path: CorpusPath,
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")
    ] = False,
    source: options.Source = None,
    whole_index: Annotated[
        bool,
        typer.Option("--whole-index", help="Also delete everything else in the index."),
    ] = False,
    delete_unreadable: Annotated[
        bool,
        typer.Option(
            "--delete-unreadable", help="Also delete documents that may only be unreadable now."
        ),
    ] = False,
    delete_most: Annotated[
        bool, typer.Option("--delete-most", help="Allow deleting more than half of the corpus.")
    ] = False,
    reading: Reading,
    chunk_size: ChunkSize = None,
    running: Running,
    models: model_options.Models,
    all_listed: Annotated[
        bool, typer.Option("--all", help="List all documents and everything that is skipped.")
    ] = False,
) -> None:
    """Bring an index in step with its corpus: embed what is new or changed, delete what is gone.

    Documents of other corpora stay. A second run completes an interrupted one. Give the same
    reading options as you gave 'llama-gap index'.
    """
    options.check_is_there(db)
    started = time.monotonic()
    with terminal.resumable():
        corpus = reading.corpus(path, chunk_size)
        roots = [corpus.root] if corpus.root is not None else None
        with options.open_index(
            *(db, name, roots), tenant=tenant, models=models, **running.settings
        ) as index:
            report = index.sync(
                corpus,
                source=source,
                dry_run=dry_run,
                whole_index=whole_index,
                delete_unreadable=delete_unreadable,
                delete_most=delete_most,
                show_progress=True,
            )
    terminal.stdout.print(visible(f"Read {corpus.summary()}"), markup=False)
    done = (
        "Plan, nothing written" if dry_run else f"In step in {duration(time.monotonic() - started)}"
    )
    terminal.stdout.print(visible(f"{done}: {report.summary()}"), markup=False)
    _print_documents(report, all_listed)
    for note in report.notes:
        terminal.say("note", note)
    if report.others:
        rows = "1 other row stays" if report.others == 1 else f"{report.others:,} other rows stay"
        terminal.stdout.print(
            f"{rows}: from other corpora, from inserted nodes, or from documents that an earlier "
            "version wrote and that are gone since; --whole-index deletes them"
        )
    terminal.print_skipped([*corpus.skipped, *report.written.skipped], all_listed)


def _print_documents(report: SyncReport, all_listed: bool) -> None:
    """List the changed documents: all of them, or only the first of each kind of change."""
    former = {old: new for new, old in report.renamed.items()}
    sorts = {
        "new": [
            (key, f"was {report.renamed[key]}" if key in report.renamed else "")
            for key in report.new
        ],
        "changed": [(key, "") for key in report.changed],
        "vanished": [
            (key, f"is {former[key]} now" if key in former else "") for key in report.vanished
        ],
        "kept": [(skip.source, skip.reason) for skip in report.kept],
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    more = 0
    for sort, documents in sorts.items():
        shown = documents if all_listed else documents[:_SHOWN]
        more += len(documents) - len(shown)
        for cells in shown:
            table.add_row(sort, *(Text(visible(words), overflow="fold") for words in cells))
    terminal.stdout.print(table)
    if more:
        terminal.stdout.print(f"… and {more:,} more: --all lists them")
