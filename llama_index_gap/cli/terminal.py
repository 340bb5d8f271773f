"""What commands print: results on stdout; notes, warnings and errors on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from llama_index_gap.text import visible

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def say(kind: str, message: str) -> None:
    """Print a message on stderr as one line; only a terminal gets it broken between words.

    Args:
        kind: ``error``, ``warning`` or ``stopped``.
        message: in words for users.
    """
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    text = Text(f"{kind}: ", style="red" if kind == "error" else "yellow")
    text.append(visible(line), style="default")
    stderr.print(text, soft_wrap=not stderr.is_terminal)


def fail(message: str) -> NoReturn:
    """Print an error and exit."""
    say("error", message)
    raise SystemExit(1)


def note(message: str) -> None:
    """Tell whoever sits at a terminal what is going on."""
    if stderr.is_terminal:
        stderr.print(Text(visible(message), style="dim"))


def print_json(value: Any) -> None:
    """Print what scripts read."""
    typer.echo(json.dumps(value, indent=2))


def write_page(path: Path, page: str) -> None:
    """Write a page, and tell where."""
    path.write_text(page, encoding="utf-8")
    note(f"Written to {path}")


@contextmanager
def resumable(how: str = "") -> Iterator[None]:
    """Answer Ctrl-C with a line that says how to complete what was begun."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped", f"what was written stays; run the same command again{how} to complete it")
        raise typer.Exit(INTERRUPTED) from None
