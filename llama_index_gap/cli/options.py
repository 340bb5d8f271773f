"""Options that several commands share, and the indexes and models that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llama_index_gap
from llama_index_gap.cli.terminal import note
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.store.addresses import TIMEOUT_SECONDS, is_server

if TYPE_CHECKING:
    from llama_index_gap.embedding import DualEncoderEmbedding
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.index.versions import IndexAddress
    from llama_index_gap.models import PairScorer
    from llama_index_gap.search.rerank import MultiModalRerank


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


_BY_NAME = "a name that 'llama-gap models' lists, a hub name, or a folder."
Database = Annotated[str, database_option()]
Name = Annotated[str, typer.Option(help="The name of the index in the database.")]
Model = Annotated[
    str | None, typer.Option(help=f"The model: {_BY_NAME}", show_default="the index's own")
]
ImageModel = Annotated[
    str | None, typer.Option(help="Another model, for images.", show_default="the same")
]
ImageQueryModel = Annotated[
    str | None,
    typer.Option(help="A third model, for image queries.", show_default="the index's own, or none"),
]
Reranker = Annotated[
    str | None, typer.Option(metavar="MODEL", help=f"Rerank by this model: {_BY_NAME}")
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
LocalFilesOnly = Annotated[
    bool,
    typer.Option(
        "--local-files-only", help="Ask no hub for models: take folders or the download cache."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Page = Annotated[Path | None, typer.Option(callback=_page, help="Write the result as a page, too.")]


def address(database: str, name: str, token: str | None) -> IndexAddress:
    """Where an index is, with its images in their default place.

    Args:
        database: a file or a server.
        name: of the index.
        token: for a server.
    """
    from llama_index_gap.index.image_storage import storage_folder
    from llama_index_gap.index.versions import IndexAddress

    return IndexAddress(database, name, token, storage_folder(database, name, None), timeout())


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
    local_files_only: bool = False,
) -> DualIndex:
    """Open an index that must be there, with the models that it names.

    Args:
        database: a file or a server.
        name: of the index.
        image_root: folders that images are opened in; by default those that were indexed here.
        local_files_only: ask no hub for models.
    """
    check_is_there(database)
    return llama_index_gap.DualIndex(
        database,
        name,
        token=token(),
        timeout=timeout(),
        image_root=image_root or None,
        local_files_only=local_files_only,
    )


def check_models(
    database: str, model: str | None, image_model: str | None, *, overwrite: bool = False
) -> None:
    """Reject models that cannot make an index, before any of them is loaded."""
    if image_model is not None and model is None:
        raise typer.BadParameter("needs --model too, for texts", param_hint="--image-model")
    if model is None and (overwrite or not _is_there(database)):
        raise typer.BadParameter(
            f"a new index in {database} needs a model; 'llama-gap models' lists some",
            param_hint="--model",
        )


def open_or_make_index(
    database: str,
    name: str,
    *models: str | None,
    overwrite: bool = False,
    image_root: Path | None = None,
    local_files_only: bool = False,
    **settings: Any,
) -> DualIndex:
    """Open an index, or make it where it is missing.

    Args:
        database: a file or a server.
        name: of the index.
        *models: names of the models for texts, for images and for image queries.
        overwrite: drop what the index holds.
        image_root: folder that images must lie in.
        local_files_only: ask no hub for models.
        **settings: of the embedding models.
    """

    def load(model: str | None) -> DualEncoderEmbedding | None:
        if model is None:
            return None
        note(f"Loading {model} …")
        return llama_index_gap.DualEncoderEmbedding(
            model_name=model, local_files_only=local_files_only, **settings
        )

    for_texts, for_images, for_image_queries = map(load, models)
    return llama_index_gap.DualIndex(
        database,
        name,
        for_texts,
        for_images,
        image_query_embed_model=for_image_queries,
        token=token(),
        timeout=timeout(),
        local_files_only=local_files_only,
        overwrite=overwrite,
        image_root=image_root,
    )


def load_scorer(name: str | None, local_files_only: bool = False) -> PairScorer | None:
    """Load a reranker's model, if one is named."""
    from llama_index_gap import models

    if name is None:
        return None
    note(f"Loading {name} …")
    return models.load_scorer(name, models.LoadingSettings(local_files_only=local_files_only))


def load_reranker(name: str | None, local_files_only: bool = False) -> MultiModalRerank | None:
    """Load a reranker that keeps all candidates, if one is named."""
    scorer = load_scorer(name, local_files_only)
    return None if scorer is None else llama_index_gap.MultiModalRerank(model=scorer, top_n=None)
