"""llama-gap: the command line of the package."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import ValidationError

import llama_index_gap
from llama_index_gap.cli import (
    check,
    copy,
    corpora,
    evaluate,
    info,
    learn,
    measure,
    models,
    reembed,
    search,
    serve,
)
from llama_index_gap.cli.sync import sync
from llama_index_gap.cli.terminal import fail, only_visible, print_traceback, say, stderr, stdout
from llama_index_gap.errors import EXPECTED_ERRORS, GapError
from llama_index_gap.progress import in_lines

_OBJECTS_BETWEEN_COLLECTIONS = 50_000

# gRPC, which reaches Milvus Lite, would write its own lines amid results on a busy machine.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

app = typer.Typer(
    name="llama-gap",
    help="Multimodal retrieval for LlamaIndex, with the modality gap closed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line. An error becomes one line and exit code 1; --debug shows its origin."""
    # The libraries' imports create a million permanent objects. Python's default, a collection
    # after every 700 new objects, would take an eighth of the time to the first answer.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    with only_visible(), in_lines(not stderr.is_terminal):
        _run()


def _run() -> None:
    # Pillow warns about images with too many pixels; the report already lists them as skipped.
    warnings.filterwarnings("ignore", message="Image size .* decompression bomb")
    given: dict[str, Any] = {}
    try:
        app(obj=given)
    except Exception as error:
        if given.get("debug"):
            print_traceback(error)
            raise SystemExit(1) from error
        if isinstance(error, OSError) and error.filename and error.strerror:
            fail(f"{error.filename}: {error.strerror}")
        if isinstance(error, EXPECTED_ERRORS):
            fail(_message_of(error))
        fail(
            f"{type(error).__name__}: {error} (a bug in llama-gap: please report it with the "
            "output of 'llama-gap --debug …')"
        )


def _message_of(error: Exception) -> str:
    """The message of an error; of a GapError, without the text that pydantic adds around it."""
    if isinstance(error, ValidationError):
        own = [each.get("ctx", {}).get("error") for each in error.errors()]
        if own and all(isinstance(each, GapError) for each in own):
            return "; ".join(map(str, own))
    return str(error)


class _Warnings(logging.Handler):
    """Prints the package's logged warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        say("warning", record.getMessage())


def _version(wanted: bool) -> None:
    if wanted:
        stdout.print(llama_index_gap.__version__)
        raise typer.Exit


class _Downloads(logging.Handler):
    """Prints how much is about to be downloaded."""

    def emit(self, record: logging.LogRecord) -> None:
        say("note", record.getMessage())


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and the log.")
    ] = False,
) -> None:
    context.ensure_object(dict)["debug"] = debug
    logger = logging.getLogger("llama_index_gap")
    if debug:
        logging.basicConfig(level=logging.INFO)
    elif not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))
    downloads = logging.getLogger("llama_index_gap.models.checkpoints.hub")
    if not debug and not downloads.handlers:
        downloads.addHandler(_Downloads(logging.INFO))
        downloads.setLevel(logging.INFO)


_COMMANDS: tuple[Callable[..., None], ...] = (
    *(corpora.read, corpora.index, sync, search.search, learn.learn, measure.measure),
    *(info.info, info.delete, copy.copy, reembed.reembed, copy.drop),
    *(evaluate.evaluate, evaluate.demo, serve.serve, serve.mcp, models.models, check.check),
)
for _command in _COMMANDS:
    app.command()(_command)
