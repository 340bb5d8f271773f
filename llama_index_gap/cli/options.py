"""Options that several commands share, and the indexes and models that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llama_index_gap
from llama_index_gap.cli.model_options import Models
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.store.addresses import TIMEOUT_SECONDS, is_server

if TYPE_CHECKING:
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.index.versions import IndexAddress


def token() -> str | None:
    """What opens a server: ``user:password`` or an API key."""
    return os.environ.get("MILVUS_TOKEN")


def timeout() -> float:
    """Seconds that a server may take to answer a call."""
    given = os.environ.get("MILVUS_TIMEOUT")
    if not given:
        return TIMEOUT_SECONDS
    try:
        return float(given)
    except ValueError as error:
        raise InvalidValueError(
            f"MILVUS_TIMEOUT={given!r}: must be seconds, as a number"
        ) from error


def checked_database(uri: str | None) -> str | None:
    """Check a database's name; a shell may complete the name of a file."""
    if uri is None:
        return None
    if is_server(uri):
        if re.search(r"//[^/?#]*@", uri):
            raise typer.BadParameter("holds a password; leave it out and set MILVUS_TOKEN=user:…")
        return uri
    path = Path(uri).expanduser()
    if path.suffix != ".db":
        raise typer.BadParameter(f"{uri!r} is neither a file that ends in .db, nor an http:// URL")
    return str(path)


def database_option(show_default: bool | str = True) -> Any:
    """The option that names a database."""
    return typer.Option(
        "--db",
        metavar="FILE|URL",
        callback=checked_database,
        help="A Milvus Lite file, or the URL of a server (its token in MILVUS_TOKEN).",
        show_default=show_default,
    )


def _page(path: Path | None) -> Path | None:
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; create it first")
    return path


Database = Annotated[str, database_option()]
Name = Annotated[str, typer.Option(help="The name of the index in the database.")]
Source = Annotated[
    str | None,
    typer.Option(help="A name of the corpus, for 'sync'.", show_default="its path"),
]
Tenant = Annotated[
    str | None,
    typer.Option(help="Whose part of the index, if it has tenants.", show_default="no tenants"),
]
AllSkipped = Annotated[bool, typer.Option("--all", help="List all that is skipped.")]
ImageRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--image-root",
        metavar="FOLDER",
        help="Open images of the index in this folder only; may be given several times.",
        show_default="the folders that were indexed here",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Where models run.", show_default="a GPU if there is one")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Page = Annotated[Path | None, typer.Option(callback=_page, help="Write the result as a page, too.")]


def address(database: str, name: str, token: str | None, tenant: str | None = None) -> IndexAddress:
    """Where an index is, with its images in their default place.

    Args:
        database: a file or a server.
        name: of the index.
        token: for a server.
        tenant: whose part of the index.
    """
    from llama_index_gap.index.image_storage import storage_folder
    from llama_index_gap.index.tenants import scope_of
    from llama_index_gap.index.versions import IndexAddress

    scope = scope_of(name, tenant)
    storage = storage_folder(database, scope, None)
    return IndexAddress(database, scope, token, storage, timeout(), tenant)


def check_is_there(database: str) -> None:
    """Keep Milvus Lite from making a database where somebody only wants to read one."""
    if not _is_there(database):
        raise FileNotFoundError(
            f"{database}: no such database; make one with: llama-gap index PATH --db {database} "
            "--model NAME"
        )


def _is_there(database: str) -> bool:
    return is_server(database) or Path(database).exists()


def open_index(
    database: str,
    name: str,
    image_root: Sequence[Path] | None = None,
    *,
    tenant: str | None = None,
    models: Models,
) -> DualIndex:
    """Open an index that must be there, with the models that are named, or those it names itself.

    Args:
        database: a file or a server.
        name: of the index.
        image_root: folders that images are opened in; by default those that were indexed here.
        tenant: whose part of the index.
        models: what the command line says of models.
    """
    check_is_there(database)
    stored = _stored(database, name, models, tenant)
    for_texts, for_images, for_image_queries = models.load(stored)
    return llama_index_gap.DualIndex(
        database,
        name,
        for_texts,
        for_images,
        image_query_embed_model=for_image_queries,
        tenant=tenant,
        token=token(),
        timeout=timeout(),
        image_root=image_root or None,
        **models.places,
    )


def check_models(database: str, models: Models, *, overwrite: bool = False) -> None:
    """Reject models that cannot make an index, before any of them is loaded."""
    if models.names[0] is None and (overwrite or not _is_there(database)):
        raise typer.BadParameter(
            f"a new index in {database} needs a model; 'llama-gap models' lists some",
            param_hint="--model",
        )


def open_or_make_index(
    database: str,
    name: str,
    models: Models,
    *,
    tenant: str | None = None,
    overwrite: bool = False,
    image_root: Path | None = None,
    **settings: Any,
) -> DualIndex:
    """Open an index, or make it where it is missing.

    Args:
        database: a file or a server.
        name: of the index.
        models: what the command line says of models.
        tenant: whose part of the index.
        overwrite: drop what the index, or the tenant, holds.
        image_root: folder that images must lie in.
        **settings: of the embedding models.
    """
    there = _is_there(database) and not overwrite
    stored = _stored(database, name, models, tenant) if there else None
    for_texts, for_images, for_image_queries = models.load(stored, **settings)
    return llama_index_gap.DualIndex(
        database,
        name,
        for_texts,
        for_images,
        image_query_embed_model=for_image_queries,
        tenant=tenant,
        token=token(),
        timeout=timeout(),
        overwrite=overwrite,
        image_root=image_root,
        **models.places,
    )


def _stored(database: str, name: str, models: Models, tenant: str | None) -> dict[str, Any] | None:
    """What an index says of its models, where one is named by its class alone."""
    if not models.by_class:
        return None
    from llama_index_gap.index.versions import stored_models

    try:
        return stored_models(address(database, name, token(), tenant))
    except InvalidValueError:  # a new index
        return None
