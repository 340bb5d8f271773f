"""How far long work is: a bar, or a plain line now and then."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import StringIO
from typing import Any, ClassVar
from weakref import WeakSet

from tqdm import tqdm

from llama_index_gap.text import duration, visible

FIRST_SECONDS = 10.0
"""Work that takes less writes no line."""
EVERY_SECONDS = 30.0
"""Between two lines, of whatever bars."""

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("_listener", default=None)


class Progress(tqdm):  # type: ignore[type-arg]
    """A bar of tqdm's, which can write lines where a bar would fill a log file; see ``in_lines``.

    Args:
        *args: as for ``tqdm``.
        **kwargs: as for ``tqdm``; a line uses ``desc``, ``total`` and ``unit``.
    """

    lines: ClassVar[bool] = False
    _said_at: ClassVar[float] = -math.inf
    _written: ClassVar[WeakSet[Progress]] = WeakSet()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._listener = _listener.get()
        if self._listener:
            each_update = {"delay": 0, "mininterval": 0, "miniters": 1}
            kwargs |= {**each_update, "disable": False, "leave": False, "file": StringIO()}
        if lines := Progress.lines and not self._listener:
            # Each update looks at the clock: a bar that counts in leaps would skip lines otherwise.
            kwargs |= {"delay": FIRST_SECONDS, "mininterval": 0, "miniters": 1, "leave": False}
        super().__init__(*args, **kwargs)
        if lines and not self.disable:
            Progress._written.add(self)

    def close(self) -> None:
        """End it; a bar stays, and lines are not written any more."""
        super().close()
        Progress._written.discard(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the bar, or write a line where the last one is long ago; tqdm calls it."""
        if self._listener:
            if msg is None:
                self._listener(self.done())
            return False
        if self not in Progress._written:
            return super().display(msg, pos)
        now = self.start_t + self.format_dict["elapsed"]
        if msg is None and self.n and now - Progress._said_at >= EVERY_SECONDS:
            Progress._said_at = now
            bars = sorted(Progress._written, key=lambda each: abs(each.pos))  # outermost first
            doing = ", ".join(each.done() for each in bars)
            took = duration(now - min(each.start_t for each in bars))
            self.fp.write(f"{visible(f'{doing} after {took}')}\n")
            self.fp.flush()
        return False

    def done(self) -> str:
        """What is done, and of how many where that is known."""
        of = "" if self.total is None else f" of {self.total:,}"
        ending = ("y", "ies") if self.unit.endswith("y") else ("", "s")
        units = "" if self.unit == "it" else f" {self.unit.removesuffix(ending[0])}{ending[1]}"
        doing = (self.desc or "").removesuffix(": ") or "Working"
        return f"{doing}: {self.n:,}{of}{units}"


@contextmanager
def in_lines(wanted: bool = True) -> Iterator[None]:
    """Write lines in place of bars, in all threads; the command line does where it has no terminal.

    The first comes after 10 seconds, another after 30 seconds at the earliest. A line tells of all
    bars that are open.

    Args:
        wanted: False shows bars.
    """
    before, Progress.lines = Progress.lines, wanted
    try:
        yield
    finally:
        Progress.lines = before


@contextmanager
def told(listener: Callable[[str], None]) -> Iterator[None]:
    """Tell a function how far work is, in place of bars and lines, also where none are wanted.

    That holds for work in this thread or task, and in the threads that it starts with its context.

    Args:
        listener: gets words such as ``Reranking: 8 of 16 documents``; may be called in any thread.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
