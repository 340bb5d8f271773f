"""llama-gap info, and delete: looking after an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table
from rich.text import Text

import llama_index_gap
from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.modality import MODALITIES, PLURAL, CollectionName
from llama_index_gap.text import visible

if TYPE_CHECKING:
    from llama_index_gap.store.milvus import MilvusStore

COLLECTIONS: tuple[CollectionName, ...] = get_args(CollectionName)


def info(
    db: options.Database = "gap.db", name: options.Name = "gap", as_json: options.AsJson = False
) -> None:
    """Show what an index holds, and which models made it. Loads no model."""
    from llama_index_gap.index.query_sample import QuerySample

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
    learnt = facts["queries_learnt"]
    hint = "" if any(learnt.values()) else " (see 'llama-gap learn')"
    rows.append(("learnt from", f"{QuerySample(learnt['text'], learnt['image'])}{hint}"))
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
    from llama_index_gap.index.query_sample import LEARN_AGAIN, companion, kept_queries

    def opened(collection: str) -> MilvusStore:
        return llama_index_gap.MilvusStore(
            uri=db,
            collection_name=f"{name}_{collection}",
            token=options.token(),
            timeout=options.timeout(),
        )

    options.check_is_there(db)
    held: dict[str, Any] = {}
    companions: list[CollectionName] = []
    stored: dict[str, Any] = {}
    for role in COLLECTIONS:
        if role == "image_query" and role not in stored:
            continue
        with opened(role) as store:
            stored = stored_identities(store.properties(), f"{db}: {name}")
            if store.has_collection(f"{name}_{companion(role)}"):
                companions.append(role)
            held[role] = {
                "name": store.collection_name,
                "rows": store.count(),
                "dimension": store.dim,
            }
    learnt = dict.fromkeys(MODALITIES, 0)
    for role in companions:
        with opened(companion(role)) as store:
            try:
                kept = kept_queries(store)
            except llama_index_gap.StoreError as error:
                raise llama_index_gap.StoreError(
                    f"{db}: {store.collection_name} is damaged ({error}); {LEARN_AGAIN}"
                ) from error
        for modality in MODALITIES:
            if modality in kept:
                learnt[modality] = max(learnt[modality], len(kept[modality][0]))
    models = {}
    for role in COLLECTIONS:
        if identity := stored.get(role):
            model = str(identity["model_name"])
            models[role] = {"name": model, "licence": licence(model), "settings": identity}
    storage = default_storage(db, name)
    return {
        "database": db,
        "name": name,
        "collections": held,
        "models": models,
        "queries_learnt": learnt,
        "images": str(storage) if storage.is_dir() else "their own files",
    }


def licence(model: str) -> str | None:
    """A model's licence, as far as it is known here without loading or downloading the model."""
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
        typer.Argument(metavar="ID", help="Ids of documents, as 'search --explain' shows them."),
    ] = None,
    *,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    models: model_options.Models,
    everything: Annotated[bool, typer.Option("--all", help="Delete all documents.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete all without asking.")] = False,
) -> None:
    """Delete documents from an index. Their own files stay."""
    if everything == bool(documents):
        raise typer.BadParameter("pass ids of documents, or --all", param_hint="ID")
    with options.open_index(db, name, models=models) as index:
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
