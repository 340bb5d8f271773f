"""Printing for commands: results on stdout; notes, warnings and errors on stderr."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
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

_MOST_REASONS = 10
_MOST_NAMES = 3  # of the items with one reason

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def say(kind: str, message: str) -> None:
    """Print a message on stderr as one line, which only a terminal wraps.

    Args:
        kind: ``error``, ``warning``, ``note`` or ``stopped``.
        message: the text for the user.
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
    """Print what the command is doing, if stderr is a terminal."""
    if stderr.is_terminal:
        stderr.print(Text(visible(message), style="dim"))


def print_json(value: Any) -> None:
    """Print JSON for scripts; all characters outside ASCII are escaped."""
    typer.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def print_report(report: Any) -> None:
    """Print a report as JSON: its counts, and each skipped item with the reason.

    Args:
        report: an object with an attribute ``skipped``.
    """
    skipped = [{"source": each.source, "reason": each.reason} for each in report.skipped]
    print_json({**vars(report), "skipped": skipped})


def print_traceback(error: BaseException) -> None:
    """Print the traceback of an error."""
    _write(type(error), error, error.__traceback__)


@contextmanager
def only_visible() -> Iterator[None]:
    """Escape control characters in what Python itself prints, so that they reach no terminal.

    This covers logs, warnings, and tracebacks of threads and of errors that nobody can catch.
    """

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _VisibleRecord(make_record(*args, **kwargs))

    def warning(*args: Any, **kwargs: Any) -> str:
        return visible(format_warning(*args, **kwargs))

    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning
    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook
    logging.setLogRecordFactory(record)
    warnings.formatwarning = warning
    threading.excepthook = lambda args: _write(*args[:3])
    sys.unraisablehook = lambda args: _write(args.exc_type, args.exc_value, args.exc_traceback)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning = format_warning
        threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook


class _VisibleRecord(logging.LogRecord):
    """A log record with control characters escaped in its message and traceback."""

    def __init__(self, record: logging.LogRecord) -> None:
        vars(self).update(vars(record))
        if self.exc_info and self.exc_info[0] is not None:
            # Every formatter prints this text, if it is set, as the traceback.
            self.exc_text = visible("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:  # noqa: N802, logging's own name
        return visible(super().getMessage())


def _write(*error: Any) -> None:
    if error[0] is not SystemExit:
        sys.stderr.write(visible("".join(traceback.format_exception(*error))))


def write_page(path: Path, page: str) -> None:
    """Write a page, and say where it is."""
    path.write_text(page, encoding="utf-8")
    note(f"Written to {path}")


def print_skipped(skipped: Sequence[Skipped], all_skipped: bool) -> None:
    """Print what was skipped and why: each reason once, with how many items and the first names.

    Args:
        skipped: everything that was skipped.
        all_skipped: whether to print every item in a row, not only the first ten reasons.
    """
    names = defaultdict[str, list[str]](list)
    for skip in skipped:
        names[skip.reason].append(skip.source)
    rows = (
        [(skip.source, skip.reason) for skip in skipped]
        if all_skipped
        else [(_first_of(each), reason) for reason, each in islice(names.items(), _MOST_REASONS)]
    )
    if rows:
        table = Table("skipped", "reason", box=None, padding=(0, 1), pad_edge=False)
        for cells in rows:
            table.add_row(*(Text(visible(words), overflow="fold") for words in cells))
        stdout.print(table)
    shown = sum(len(each[:_MOST_NAMES]) for each in islice(names.values(), _MOST_REASONS))
    if not all_skipped and shown < len(skipped):
        stdout.print(f"… and {len(skipped) - shown:,} more: --all lists them")


def _first_of(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    more = " …" if len(names) > _MOST_NAMES else ""
    return f"{len(names):,}: {'; '.join(names[:_MOST_NAMES])}{more}"


@contextmanager
def resumable(how: str = "") -> Iterator[None]:
    """On Ctrl-C, say how to complete the interrupted work."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped", f"what was written stays; run the same command again{how} to complete it")
        raise typer.Exit(INTERRUPTED) from None
