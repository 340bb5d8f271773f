"""llama-gap: the package from the command line."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import llama_index_gap
from llama_index_gap.images import MAX_PIXELS, ImageError
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.presets import PRESETS
from llama_index_gap.readers import CorpusError

app = typer.Typer(
    name="llama-gap",
    help="Multimodal retrieval for LlamaIndex, with the modality gap closed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_output = Console(highlight=False)
_errors = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the command line; expected errors become one line and exit code 1."""
    try:
        app()
    except (CorpusError, ImageError, ModelError, OSError) as error:
        _errors.print(Text("error: ", style="red").append(_visible(str(error)), style="default"))
        raise SystemExit(1) from None


def _visible(text: str) -> str:
    """Text of somebody else's, without the characters that steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        _output.print(llama_index_gap.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def read(
    path: Annotated[
        Path, typer.Argument(help="A .jsonl, .csv or .tsv file, or a folder.", metavar="PATH")
    ],
    root: Annotated[
        Path | None, typer.Option(help="Folder that pictures must lie in.  [default: the corpus']")
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Skip pictures with more pixels.")
    ] = MAX_PIXELS,
    all_skipped: Annotated[
        bool, typer.Option("--all", help="List everything that is skipped.")
    ] = False,
) -> None:
    """Check a corpus: what of it can be read, and what is skipped and why."""
    corpus = llama_index_gap.read_corpus(
        path, root=root, max_pixels=max_pixels, show_progress=_errors.is_terminal
    )
    _output.print(_visible(corpus.summary()), markup=False)
    shown = corpus.skipped if all_skipped else corpus.skipped[:10]
    if shown:
        table = Table("skipped", "reason", box=None, padding=(0, 1), pad_edge=False)
        for skip in shown:
            table.add_row(
                Text(_visible(skip.source), overflow="fold"),
                Text(_visible(skip.reason), overflow="fold"),
            )
        _output.print(table)
    if len(shown) < len(corpus.skipped):
        _output.print(f"… and {len(corpus.skipped) - len(shown):,} more: --all lists them")


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option(help="Keep the corpus and the model here.")] = None,
) -> None:
    """See the modality gap on a tiny model and a made-up corpus, offline."""
    from llama_index_gap.demo.run import run_demo

    if folder is not None:
        run_demo(folder, _output)
        return
    with tempfile.TemporaryDirectory() as scratch:
        run_demo(Path(scratch), _output)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the models that have a plain name: what to choose when."""
    if as_json:
        listed = [dataclasses.asdict(preset) for preset in PRESETS.values()]
        typer.echo(json.dumps(listed, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)
    table.add_column("name", style="bold")
    table.add_column("what it suits", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("languages")
    table.add_column("licence")
    for preset in PRESETS.values():
        about = Text(preset.suits)
        for checkpoint in preset.checkpoints:
            about.append(f"\n{checkpoint}", style="cyan")
        if smaller := [str(size) for size in preset.matryoshka if size < preset.dimension]:
            about.append(f"\nMatryoshka {' '.join(smaller)}", style="dim")
        table.add_row(
            preset.name,
            about,
            str(preset.dimension),
            f"{preset.max_text_tokens:,}",
            preset.languages,
            preset.licence,
        )
    _output.print(table)
    _output.print('\nLoad one by its name: DualEncoderEmbedding(model_name="jina")', markup=False)
