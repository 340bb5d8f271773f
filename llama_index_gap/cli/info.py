"""llama-gap info and delete: look into an index, and delete documents from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table
from rich.text import Text

from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.modality import PLURAL, CollectionName
from llama_index_gap.text import visible

if TYPE_CHECKING:
    from llama_index_gap.index.catalog import IndexFacts

COLLECTIONS: tuple[CollectionName, ...] = get_args(CollectionName)
_SHOWN, _FOLDERS = 20, 5
_STATES = {
    "opened": "opened",
    "gone": "no longer there: name its new place with --image-root",
    "not opened here": "not opened, since it was not indexed here; --image-root opens it",
}


def info(
    *,
    db: options.Database = "gap.db",
    name: Annotated[
        str | None, typer.Option(help="Show this index.", show_default="list all of them")
    ] = None,
    tenant: options.Tenant = None,
    documents: Annotated[
        bool, typer.Option("--documents", help="List the documents of the index.")
    ] = False,
    as_json: options.AsJson = False,
    all_documents: Annotated[
        bool, typer.Option("--all", help=f"List all documents, not only the first {_SHOWN}.")
    ] = False,
) -> None:
    """List the indexes of a database, show one index, or list its documents. Loads no model."""
    from llama_index_gap.index import catalog

    options.check_is_there(db)
    if tenant is not None:
        name = name or "gap"
    if documents:
        shown = None if all_documents else _SHOWN
        _show_documents(db, name, tenant, as_json=as_json, shown=shown)
    elif name is None:
        listed = catalog.list_indexes(db, options.token(), options.timeout())
        if as_json:
            terminal.print_json({"database": db, "indexes": [_as_dict(each) for each in listed]})
        else:
            _list(db, listed)
    else:
        facts = catalog.index_facts(options.address(db, name, options.token(), tenant))
        if as_json:
            terminal.print_json(_as_dict(facts))
        else:
            _show(facts)


def _show(facts: IndexFacts) -> None:
    from llama_index_gap.index.query_sample import QuerySample

    shown = _as_dict(facts)
    rows = [("database", shown["database"])]
    rows += [("tenant", shown["tenant"])] if "tenant" in shown else []
    rows += [("unfinished", begun) for begun in facts.unfinished]
    for role, held in facts.collections.items():
        about = f"{held['rows']:,} rows of {held['dimension']} dimensions in {held['name']}"
        rows.append((PLURAL[role], about))
    for role, model in shown["models"].items():
        for_both = role == "text" and "image" not in shown["models"]
        title = "model" if for_both else f"model of {PLURAL[role]}"
        rows.append((title, f"{model['name']} (licence: {model['licence'] or 'not stated'})"))
    learnt = facts.queries_learnt
    hint = "" if any(learnt.values()) else " (see 'llama-gap learn')"
    rows.append(("learnt from", f"{QuerySample(learnt['text'], learnt['image'])}{hint}"))
    if facts.bytes_on_disk is not None:
        rows.append(("on disk", _size(facts.bytes_on_disk)))
    if facts.images_kept:
        rows.append(("images in", f"{facts.address.storage} ({facts.images_kept:,} kept here)"))
    for folder, state in list(facts.image_folders.items())[:_FOLDERS]:
        rows.append(("images in", f"{folder} ({_STATES[state]})"))
    if len(facts.image_folders) > _FOLDERS:
        rows.append(("", f"and {len(facts.image_folders) - _FOLDERS:,} more folders (--json)"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for title, about in rows:
        table.add_row(title, Text(visible(about), overflow="fold"))
    terminal.stdout.print(table)


def _list(db: str, listed: list[IndexFacts]) -> None:
    if not listed:
        terminal.stdout.print(visible(f"{db} holds no index"), markup=False)
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("index", overflow="fold")
    for title in ("texts", "images", "kept", "on disk"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    for each in listed:
        rows = {part: f"{held['rows']:,}" for part, held in each.collections.items()}
        models = [model["name"] for model in _as_dict(each)["models"].values()]
        cells = [
            each.address.title + (" *" if each.unfinished or each.damage else ""),
            rows.get("text", "–"),
            rows.get("image", "–"),
            f"{each.images_kept:,}",
            "–" if each.bytes_on_disk is None else _size(each.bytes_on_disk),
            ", ".join(dict.fromkeys(models)),
        ]
        table.add_row(*(Text(visible(cell), overflow="fold") for cell in cells))
    terminal.stdout.print(table)
    for each in listed:
        for why in each.unfinished:
            line = f"* {each.address.title} is unfinished: {why}"
            terminal.stdout.print(visible(line), markup=False)
        if each.damage:
            line = f"* {each.address.title} is damaged: {each.damage}"
            terminal.stdout.print(visible(line), markup=False)


def _show_documents(
    db: str, name: str | None, tenant: str | None, *, as_json: bool, shown: int | None
) -> None:
    from llama_index_gap.index import catalog

    if name is None:
        names = [
            each.address.title
            for each in catalog.list_indexes(db, options.token(), options.timeout())
        ]
        if len(names) != 1:
            raise typer.BadParameter(
                f"{db} holds {', '.join(names) or 'no index'}; name one", param_hint="--name"
            )
        name = names[0]
    found = catalog.documents_of(options.address(db, name, options.token(), tenant))
    listed = found[:shown]
    if as_json:
        documents = [vars(each) for each in listed]
        facts = {"database": db, "name": name, "total": len(found), "documents": documents}
        terminal.print_json(facts)
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("document", overflow="fold")
    table.add_column("title", overflow="fold")
    for title in ("passages", "images"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in listed:
        cells = (each.key, each.title, f"{each.passages:,}", f"{each.images:,}")
        table.add_row(*(Text(visible(cell), overflow="fold") for cell in cells))
    terminal.stdout.print(table)
    if len(listed) < len(found):
        rest = len(found) - len(listed)
        terminal.stdout.print(f"… and {rest:,} more: --all lists them")


def _as_dict(facts: IndexFacts) -> dict[str, Any]:
    models = {}
    for role in COLLECTIONS:
        if identity := facts.models.get(role):
            model = str(identity["model_name"])
            models[role] = {"name": model, "licence": licence(model), "settings": identity}
    storage = facts.address.storage
    return {
        "database": facts.address.uri,
        "name": facts.address.index_name,
        **({} if facts.address.tenant is None else {"tenant": facts.address.tenant}),
        "collections": facts.collections,
        "models": models,
        "queries_learnt": facts.queries_learnt,
        "images": str(storage) if facts.images_kept else "their own files",
        "images_kept": facts.images_kept,
        "image_folders": facts.image_folders,
        "bytes_on_disk": facts.bytes_on_disk,
        "unfinished": facts.unfinished,
        "damage": facts.damage or None,
    }


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def licence(model: str) -> str | None:
    """The licence of a model, if it is known without loading or downloading the model."""
    from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
    from llama_index_gap.models.presets import PRESETS

    for preset in PRESETS.values():
        if model in (preset.name, *preset.checkpoints):
            return preset.licence
    return Checkpoint(model, Path(model)).licence if Path(model).is_dir() else None


@model_options.with_models
def delete(
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Document ids, from 'search --explain'."),
    ] = None,
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    models: model_options.Models,
    everything: Annotated[bool, typer.Option("--all", help="Delete all documents.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete all without asking.")] = False,
) -> None:
    """Delete documents from an index. Your own files stay."""
    if everything == bool(documents):
        raise typer.BadParameter("pass ids of documents, or --all", param_hint="ID")
    with options.open_index(db, name, tenant=tenant, models=models) as index:
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
            if (left := sum(index.count().values())) == rows:  # perhaps a node without a document
                index.delete_nodes([document])
            if (left := sum(index.count().values())) == rows:
                missing.append(document)
    terminal.stdout.print(
        "1 row deleted" if before - left == 1 else f"{before - left:,} rows deleted"
    )
    if missing:
        terminal.fail(f"no such document: {', '.join(missing)}")
