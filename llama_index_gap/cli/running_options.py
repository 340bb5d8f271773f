"""Options that say where models run, and in how many processes; of the commands that embed much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from llama_index_gap.cli.option_groups import with_group


@dataclass(frozen=True)
class Running:
    """Where the models of a command run.

    Attributes:
        settings: of ``DualEncoderEmbedding``, as far as they are given.
    """

    settings: dict[str, Any]


def _options(
    *,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Where models run; several (cuda:0,cuda:1) are used at once, each by a process.",
            show_default="a GPU if there is one",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Embed in so many processes, each with its own model.",
            show_default="in this one",
        ),
    ] = None,
) -> Running:
    devices = [each.strip() for each in (device or "").split(",")]
    if device is not None and "," in device:
        if not all(devices):
            raise typer.BadParameter(
                f"{device!r}: name devices with a comma between them, such as cuda:0,cuda:1",
                param_hint="--device",
            )
        if workers is not None:
            raise typer.BadParameter(
                f"{device} has a process for each device; leave --workers out, or name one device",
                param_hint="--workers",
            )
        return Running({"devices": devices})
    given = {"device": device, "workers": workers}
    return Running({name: value for name, value in given.items() if value is not None})


with_running = with_group("running", _options)
"""Gives a command these options, in place of its parameter ``running``."""
