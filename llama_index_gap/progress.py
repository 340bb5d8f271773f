"""Shows the progress of long work: a bar, or a plain line now and then."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import StringIO
from typing import Any, ClassVar
from weakref import WeakSet

from tqdm import tqdm

from llama_index_gap.text import duration, visible

FIRST_SECONDS = 10.0
"""Shorter work writes no line."""
EVERY_SECONDS = 30.0
"""Least time between two lines, whichever bars they are about."""
_BAR_AFTER_SECONDS = 2.0  # a shorter step shows no bar
_REFRESH_SECONDS = 1.0

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("_listener", default=None)


class Progress(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that can write lines instead, where a bar would fill a log; see ``in_lines``.

    Args:
        *args: as for ``tqdm``.
        **kwargs: as for ``tqdm``; a line uses ``desc``, ``total`` and ``unit``.
    """

    lines: ClassVar[bool] = False
    watched: ClassVar[bool] = False  # whether steps show their time; see ``timed_step``
    _last_line_at: ClassVar[float] = -math.inf
    _as_lines: ClassVar[WeakSet[Progress]] = WeakSet()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._listener = _listener.get()
        if self._listener:
            each_update = {"delay": 0, "mininterval": 0, "miniters": 1}
            kwargs |= {**each_update, "disable": False, "leave": False, "file": StringIO()}
        if lines := Progress.lines and not self._listener:
            # Each update checks the clock; otherwise a bar with large steps would skip lines.
            kwargs |= {"delay": FIRST_SECONDS, "mininterval": 0, "miniters": 1, "leave": False}
        super().__init__(*args, **kwargs)
        if lines and not self.disable:
            with self.get_lock():  # type: ignore[no-untyped-call]
                Progress._as_lines.add(self)

    def close(self) -> None:
        """Finish: a bar stays visible, and no more lines are written."""
        super().close()
        if self in Progress._as_lines:
            with self.get_lock():  # type: ignore[no-untyped-call]
                Progress._as_lines.discard(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the bar, or write a line if the last one is long ago; tqdm calls this."""
        if self._listener:
            if msg is None:
                self._listener(self.done())
            return False
        if self not in Progress._as_lines:
            return super().display(msg, pos)
        now = self.start_t + self.format_dict["elapsed"]
        if msg is None and self._has_begun() and now - Progress._last_line_at >= EVERY_SECONDS:
            Progress._last_line_at = now
            bars = sorted(Progress._as_lines, key=lambda each: abs(each.pos))  # outermost first
            doing = ", ".join(each.done() for each in bars)
            took = duration(now - min(each.start_t for each in bars))
            self.fp.write(f"{visible(f'{doing} after {took}')}\n")
            self.fp.flush()
        return False

    def _has_begun(self) -> bool:
        return bool(self.n)

    def done(self) -> str:
        """How much is done, and of how much if that is known."""
        of = "" if self.total is None else f" of {self.total:,}"
        ending = ("y", "ies") if self.unit.endswith("y") else ("", "s")
        units = "" if self.unit == "it" else f" {self.unit.removesuffix(ending[0])}{ending[1]}"
        doing = (self.desc or "").removesuffix(": ") or "Working"
        return f"{doing}: {self.n:,}{of}{units}"


class _Step(Progress):
    """A step that cannot be counted: it only shows how long it takes."""

    def _has_begun(self) -> bool:
        return True

    def done(self) -> str:
        return str(self.desc)


@contextmanager
def in_lines(wanted: bool = True) -> Iterator[None]:
    """Write lines instead of bars, in all threads; the command line does so without a terminal.

    The first line comes after 10 seconds, and each further one at least 30 seconds after the last.
    A line covers all open bars.

    Args:
        wanted: whether to write lines; False shows bars.
    """
    before = Progress.lines, Progress.watched
    Progress.lines, Progress.watched = wanted, True
    try:
        yield
    finally:
        Progress.lines, Progress.watched = before


@contextmanager
def timed_step(doing: str) -> Iterator[None]:
    """Show the time that a step takes which cannot be counted, such as loading a model.

    It shows something only within ``in_lines``: a bar after 2 seconds, or lines as usual. Elsewhere
    it is silent.

    Args:
        doing: the step, such as ``"Loading clip"``.
    """
    if not Progress.watched:
        yield
        return
    over = threading.Event()

    def show(bar: _Step) -> None:
        wait = bar.delay
        while not over.wait(wait):
            bar.delay, wait = 0, _REFRESH_SECONDS  # without a delay, closing clears the bar
            bar.refresh()

    form = "{desc}: {elapsed}"
    with _Step(desc=visible(doing), delay=_BAR_AFTER_SECONDS, leave=False, bar_format=form) as bar:
        thread = threading.Thread(target=show, args=(bar,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


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
