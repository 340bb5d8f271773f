"""Options for reading a corpus, shared by all commands that read one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import llama_index_gap
from llama_index_gap.cli.option_groups import with_group

if TYPE_CHECKING:
    from llama_index_gap.readers.corpus import Corpus

CorpusPath = Annotated[
    Path, typer.Argument(help="A .jsonl, .csv, .tsv or .pdf file, or a folder.", metavar="PATH")
]
ChunkSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Split texts into chunks of at most this many tokens.",
        show_default="512, or the model's limit if lower",
    ),
]


@dataclass(frozen=True)
class Reading:
    """How to read a corpus.

    Attributes:
        settings: arguments of ``read_corpus``.
    """

    settings: dict[str, Any]

    @property
    def max_pixels(self) -> int:
        """The number of pixels above which an image is skipped."""
        return int(self.settings["max_pixels"])

    def corpus(self, path: Path, chunk_size: int | None = None) -> Corpus:
        """Read a corpus, and show the progress.

        Args:
            path: a file or a folder.
            chunk_size: as for ``read_corpus``.
        """
        return llama_index_gap.read_corpus(
            path, chunk_size=chunk_size, show_progress=True, **self.settings
        )


def _options(
    *,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that must contain the images.", show_default="the corpus'"),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Table column with texts; repeatable."),
    ] = None,
    image_field: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Table column with images; repeatable."),
    ] = None,
    id_field: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Table column with ids; repeatable."),
    ] = None,
    pages: Annotated[
        bool, typer.Option("--pages", help="Also make an image of every page of a PDF file.")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Skip images with more pixels than this.", show_default="89 megapixels"
        ),
    ] = None,
    drafts: Annotated[bool, typer.Option("--drafts", help="Also read unpublished pages.")] = False,
) -> Reading:
    from llama_index_gap.images.limits import MAX_PIXELS

    return Reading(
        {
            "root": root,
            "text_field": text_field,
            "image_field": image_field,
            "id_field": id_field,
            "pages": pages,
            "max_pixels": max_pixels or MAX_PIXELS,
            "drafts": drafts,
        }
    )


with_reading = with_group("reading", _options)
"""Replaces the parameter ``reading`` of a command by these options."""
