"""Options that several commands share, and the indexes and models that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llama_index_gap
from llama_index_gap.cli.model_options import Models
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.store.addresses import TIMEOUT_SECONDS, is_server

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.index.versions import IndexAddress


def token() -> str | None:
    """The credentials for a server: ``user:password`` or an API key."""
    return os.environ.get("MILVUS_TOKEN")


def timeout() -> float:
    """Seconds that a server may take to answer a call."""
    given = os.environ.get("MILVUS_TIMEOUT")
    if not given:
        return TIMEOUT_SECONDS
    try:
        return float(given)
    except ValueError as error:
        raise InvalidValueError(f"MILVUS_TIMEOUT={given!r}: must be a number of seconds") from error


def checked_database(uri: str | None) -> str | None:
    """Check the name of a database, and expand ``~`` in the name of a file."""
    if uri is None:
        return None
    if is_server(uri):
        if re.search(r"//[^/?#]*@", uri):
            raise typer.BadParameter("contains a password; remove it and set MILVUS_TOKEN=user:…")
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
        help="A Milvus Lite file, or the URL of a server (set its token in MILVUS_TOKEN).",
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
    typer.Option(help="The name of the corpus, for 'sync'.", show_default="its path"),
]
Tenant = Annotated[
    str | None,
    typer.Option(help="The tenant, if the index has tenants.", show_default="no tenants"),
]
AllSkipped = Annotated[bool, typer.Option("--all", help="List everything that is skipped.")]
ImageRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--image-root",
        metavar="FOLDER",
        help="Open images of the index only in this folder; repeatable.",
        show_default="the folders that were indexed here",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Page = Annotated[
    Path | None, typer.Option(callback=_page, help="Also write the result as an HTML page.")
]


def address(database: str, name: str, token: str | None, tenant: str | None = None) -> IndexAddress:
    """The address of an index that keeps its images in the default folder.

    Args:
        database: a file or a server.
        name: the name of the index.
        token: the credentials for a server.
        tenant: the tenant, if the index has tenants.
    """
    from llama_index_gap.index.image_storage import storage_folder
    from llama_index_gap.index.tenants import scope_of
    from llama_index_gap.index.versions import IndexAddress

    scope = scope_of(name, tenant)
    storage = storage_folder(database, scope, None)
    return IndexAddress(database, scope, token, storage, timeout(), tenant)


def check_is_there(database: str) -> None:
    """Reject a missing database, which Milvus Lite would otherwise create."""
    if not _is_there(database):
        raise FileNotFoundError(
            f"{database}: no such database; create it with: llama-gap index PATH --db {database} "
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
    **settings: Any,
) -> DualIndex:
    """Open an existing index, with the models that are named, or else with its own.

    Args:
        database: a file or a server.
        name: the name of the index.
        image_root: folders to open images in; by default those that were indexed here.
        tenant: the tenant, if the index has tenants.
        models: the model options of the command line.
        **settings: settings of the embedding models.
    """
    check_is_there(database)
    for_texts, for_images, for_image_queries = _load(database, name, tenant, models, settings)
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
    """Reject a new index without a model, before anything is loaded."""
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
    """Open an index, or create it if it is missing.

    Args:
        database: a file or a server.
        name: the name of the index.
        models: the model options of the command line.
        tenant: the tenant, if the index has tenants.
        overwrite: first delete everything that the index, or the tenant, holds.
        image_root: the folder that must contain the images.
        **settings: settings of the embedding models.
    """
    exists = _is_there(database) and not overwrite
    for_texts, for_images, for_image_queries = (
        _load(database, name, tenant, models, settings) if exists else models.load(**settings)
    )
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


def own_models(
    address: IndexAddress, settings: dict[str, Any], roles: Sequence[str]
) -> list[BaseEmbedding | None]:
    """The models that an index was made with.

    Args:
        address: the address of the index.
        settings: settings that override the stored ones.
        roles: which of ``text``, ``image`` and ``image_query``.
    """
    from llama_index_gap.index.versions import stored_models

    stored = stored_models(address)
    if not stored:
        raise typer.BadParameter(f"{address} does not name its model", param_hint="--model")

    def built(identity: dict[str, Any] | None) -> BaseEmbedding | None:
        if identity is None:
            return None
        if identity["class_name"] != llama_index_gap.DualEncoderEmbedding.class_name():
            raise typer.BadParameter(
                f"{identity['model_name']} cannot be built from its name alone; name a model",
                param_hint="--model",
            )
        return llama_index_gap.DualEncoderEmbedding.from_dict(identity | settings)

    return [built(stored.get(role)) for role in roles]


def _load(
    database: str, name: str, tenant: str | None, models: Models, settings: dict[str, Any]
) -> list[BaseEmbedding | None]:
    """The models that are named; if only settings are given, the index's own models with these."""
    from llama_index_gap.index.versions import stored_models

    where = address(database, name, token(), tenant)
    if models.names[0] is None and settings:
        roles = ["text", "image", *(["image_query"] if models.names[2] is None else [])]
        own = own_models(where, models.places | settings, roles)
        return [*own, *models.load(**settings)[len(own) :]]
    stored = None
    if models.by_class:
        with suppress(InvalidValueError):  # a new index
            stored = stored_models(where)
    return models.load(stored, **settings)
