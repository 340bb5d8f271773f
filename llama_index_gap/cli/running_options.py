"""Options for where models run and in how many processes, for commands that embed much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from llama_index_gap.cli.option_groups import with_group


@dataclass(frozen=True)
class Running:
    """Where the models of a command run.

    Attributes:
        settings: settings of ``DualEncoderEmbedding``, if given.
    """

    settings: dict[str, Any]


def _options(
    *,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Where models run. Each of several (cuda:0,cuda:1) gets a process.",
            show_default="a GPU if there is one",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Embed in this many processes, each with a copy of the model.",
            show_default="this process",
        ),
    ] = None,
) -> Running:
    devices = [each.strip() for each in (device or "").split(",")]
    if device is not None and "," in device:
        if not all(devices):
            raise typer.BadParameter(
                f"{device!r}: separate devices by commas, as in cuda:0,cuda:1",
                param_hint="--device",
            )
        if workers is not None:
            raise typer.BadParameter(
                f"{device} starts a process on each device; leave --workers out, or name one",
                param_hint="--workers",
            )
        return Running({"devices": devices})
    given = {"device": device, "workers": workers}
    return Running({name: value for name, value in given.items() if value is not None})


with_running = with_group("running", _options)
"""Replaces the parameter ``running`` of a command by these options."""
