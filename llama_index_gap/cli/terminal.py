"""What commands print: results on stdout; notes, warnings and errors on stderr."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_index_gap.text import visible

if TYPE_CHECKING:
    from llama_index_gap.readers.records import Skipped

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
    """Print what scripts read; all but ASCII is escaped."""
    typer.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def print_report(report: Any) -> None:
    """Print a report of counts, and of what was skipped and why, for scripts.

    Args:
        report: has ``skipped`` among its attributes.
    """
    skipped = [{"source": each.source, "reason": each.reason} for each in report.skipped]
    print_json({**vars(report), "skipped": skipped})


def print_traceback(error: BaseException) -> None:
    """Print where an error comes from."""
    _write(type(error), error, error.__traceback__)


@contextmanager
def only_visible() -> Iterator[None]:
    """Keep what Python itself prints, for whatever library, from steering the terminal.

    These are logs, warnings, and tracebacks of threads and of what nobody can catch.
    """

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _VisibleRecord(made(*args, **kwargs))

    def warning(*args: Any, **kwargs: Any) -> str:
        return visible(formatted(*args, **kwargs))

    made, formatted = logging.getLogRecordFactory(), warnings.formatwarning
    of_threads, of_others = threading.excepthook, sys.unraisablehook
    logging.setLogRecordFactory(record)
    warnings.formatwarning = warning
    threading.excepthook = lambda args: _write(*args[:3])
    sys.unraisablehook = lambda args: _write(args.exc_type, args.exc_value, args.exc_traceback)
    try:
        yield
    finally:
        logging.setLogRecordFactory(made)
        warnings.formatwarning = formatted
        threading.excepthook, sys.unraisablehook = of_threads, of_others


class _VisibleRecord(logging.LogRecord):
    """A log record whose message and traceback do not steer the terminal."""

    def __init__(self, record: logging.LogRecord) -> None:
        vars(self).update(vars(record))
        if self.exc_info and self.exc_info[0] is not None:
            # Every handler's formatter takes this text, where it is there, for the traceback.
            self.exc_text = visible("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:  # noqa: N802, logging's own name
        return visible(super().getMessage())


def _write(*error: Any) -> None:
    if error[0] is not SystemExit:
        sys.stderr.write(visible("".join(traceback.format_exception(*error))))


def write_page(path: Path, page: str) -> None:
    """Write a page, and tell where."""
    path.write_text(page, encoding="utf-8")
    note(f"Written to {path}")


def print_skipped(skipped: Sequence[Skipped], all_skipped: bool) -> None:
    """Print what was skipped and why.

    Args:
        skipped: all of it.
        all_skipped: whether to print more than the first ten.
    """
    shown = skipped if all_skipped else skipped[:10]
    if shown:
        table = Table("skipped", "reason", box=None, padding=(0, 1), pad_edge=False)
        for skip in shown:
            cells = (skip.source, skip.reason)
            table.add_row(*(Text(visible(words), overflow="fold") for words in cells))
        stdout.print(table)
    if len(shown) < len(skipped):
        stdout.print(f"… and {len(skipped) - len(shown):,} more: --all lists them")


@contextmanager
def resumable(how: str = "") -> Iterator[None]:
    """Answer Ctrl-C with a line that says how to complete what was begun."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped", f"what was written stays; run the same command again{how} to complete it")
        raise typer.Exit(INTERRUPTED) from None
