"""llama-gap info, and delete: looking after an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import llama_index_gap
from llama_index_gap.cli import options, terminal
from llama_index_gap.modality import PLURAL
from llama_index_gap.text import visible


def info(
    db: options.Database = "gap.db", name: options.Name = "gap", as_json: options.AsJson = False
) -> None:
    """Show what an index holds, and which models made it. Loads no model."""
    facts = _facts(db, name)
    if as_json:
        terminal.print_json(facts)
        return
    rows = [("database", facts["database"])]
    for role, held in facts["collections"].items():
        about = f"{held['rows']:,} rows of {held['dimension']} numbers in {held['name']}"
        rows.append((PLURAL[role], about))
    for role, model in facts["models"].items():
        for_both = role == "text" and "image" not in facts["models"]
        title = "model" if for_both else f"model of {PLURAL[role]}"
        rows.append((title, f"{model['name']} (licence: {model['licence'] or 'not stated'})"))
    rows.append(("images in", facts["images"]))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for title, about in rows:
        table.add_row(title, Text(visible(about), overflow="fold"))
    terminal.stdout.print(table)


def _facts(db: str, name: str) -> dict[str, Any]:
    from llama_index_gap.index.image_storage import default_storage
    from llama_index_gap.index.models import stored_identities

    options.check_is_there(db)
    held: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for role in PLURAL:
        if role == "image_query" and role not in stored:
            continue
        with llama_index_gap.MilvusStore(
            uri=db, collection_name=f"{name}_{role}", token=options.token()
        ) as store:
            stored = stored_identities(store.properties(), f"{db}: {name}")
            held[role] = {
                "name": store.collection_name,
                "rows": store.count(),
                "dimension": store.dim,
            }
    models = {}
    for role in PLURAL:
        if identity := stored.get(role):
            model = str(identity["model_name"])
            models[role] = {"name": model, "licence": licence(model), "settings": identity}
    kept = default_storage(db, name)
    images = str(kept) if kept.is_dir() else "their own files"
    return {"database": db, "name": name, "collections": held, "models": models, "images": images}


def licence(model: str) -> str | None:
    """A model's licence, as far as it is known here without loading or downloading the model."""
    from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
    from llama_index_gap.models.presets import PRESETS

    for preset in PRESETS.values():
        if model in (preset.name, *preset.checkpoints):
            return preset.licence
    return Checkpoint(model, Path(model)).licence if Path(model).is_dir() else None


def delete(
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids of documents, as 'search --explain' shows them."),
    ] = None,
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    local_files_only: options.LocalFilesOnly = False,
    everything: Annotated[bool, typer.Option("--all", help="Delete all documents.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete all without asking.")] = False,
) -> None:
    """Delete documents from an index. Their own files stay."""
    if everything == bool(documents):
        raise typer.BadParameter("pass ids of documents, or --all", param_hint="ID")
    with options.open_index(db, name, local_files_only=local_files_only) as index:
        before = left = sum(index.count().values())
        if everything:
            if not yes:
                typer.confirm(
                    visible(f"Delete all {before:,} rows of {name} in {db}?"), abort=True, err=True
                )
            index.clear()
            left = 0
        missing = []
        for document in documents or []:
            rows = left
            index.delete_ref_doc(document)
            if (left := sum(index.count().values())) == rows:  # a node without a document, perhaps
                index.delete_nodes([document])
            if (left := sum(index.count().values())) == rows:
                missing.append(document)
    terminal.stdout.print(
        "1 row deleted" if before - left == 1 else f"{before - left:,} rows deleted"
    )
    if missing:
        terminal.fail(f"no such document: {', '.join(missing)}")
