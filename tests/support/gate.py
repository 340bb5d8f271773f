"""Lets work wait for the test, so that no test waits for the clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from typing import TypeVar

import pytest

PATIENCE_S = 30.0
"""The longest wait for an event that should come at once, on the slowest machine."""

_Result = TypeVar("_Result")


class Gate:
    """Lets the first passes through, and holds the later ones until the test opens it.

    Args:
        at: the first pass to hold, counted from 1.

    Attributes:
        passes: the number of passes so far.
        threads: the threads that they came from.
        reached: set when the gate holds a pass.
        opened: set it to open the gate.
    """

    def __init__(self, at: int = 1) -> None:
        self._at = at
        self._lock = threading.Lock()
        self.passes = 0
        self.threads: set[int] = set()
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        """Called by the work."""
        with self._lock:
            self.passes += 1
            kept = self.passes >= self._at
        self.threads.add(threading.get_ident())
        if kept:
            self.reached.set()
            assert self.opened.wait(PATIENCE_S), "nobody opened the gate"

    async def cancel(self, work: Awaitable[object]) -> None:
        """Start work, cancel it at the gate, and only then open the gate."""
        task = asyncio.ensure_future(work)
        try:
            assert await asyncio.to_thread(self.reached.wait, PATIENCE_S), "it never came"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            self.opened.set()

    async def beside(self, work: Awaitable[_Result]) -> _Result:
        """Run work that continues only if the event loop runs meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            assert await asyncio.to_thread(self.reached.wait, PATIENCE_S), "it never came"
        finally:
            self.opened.set()
        return await task
