"""Options that say how a corpus is read; the same in every command that reads one."""

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
        help="Cut texts into chunks of so many tokens.",
        show_default="512, or fewer that the model reads",
    ),
]


@dataclass(frozen=True)
class Reading:
    """How a corpus is read, as the command line says.

    Attributes:
        settings: of ``read_corpus``.
    """

    settings: dict[str, Any]

    @property
    def max_pixels(self) -> int:
        """Larger images are skipped."""
        return int(self.settings["max_pixels"])

    def corpus(self, path: Path, chunk_size: int | None = None) -> Corpus:
        """Read a corpus; shows its progress on a terminal.

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
        typer.Option(help="Folder that images must lie in.", show_default="the corpus'"),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A table's column of texts; repeatable."),
    ] = None,
    image_field: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A table's column of images; repeatable."),
    ] = None,
    id_field: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A table's column of ids; repeatable."),
    ] = None,
    pages: Annotated[
        bool, typer.Option("--pages", help="Make every page of a PDF file an image, too.")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Skip larger images.", show_default="89 megapixels"),
    ] = None,
    drafts: Annotated[bool, typer.Option("--drafts", help="Read unpublished pages, too.")] = False,
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
"""Gives a command the options about reading a corpus, in place of its parameter ``reading``."""
