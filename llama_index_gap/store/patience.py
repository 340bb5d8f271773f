"""How long a search waits for its server in all, however many calls it makes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Patience:
    """What one search has waited for its server, in all its threads.

    Time in which several of its calls are under way counts once. The time that models take does
    not count, nor does a wait for a free thread, unless the server is lost.

    Attributes:
        began: when the search was called for.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._calls, self._since, self._waited = 0, 0.0, 0.0

    def left(self, timeout: float, *, lost: bool) -> float:
        """The seconds that a next call may take; below 0 where none are left.

        Args:
            timeout: seconds for the whole search.
            lost: whether the server answered nobody's last call. Then it counts from when the
                search was called for: of many that wait for a thread or for each other, none
                begins to wait once more.
        """
        now = time.monotonic()
        with self._lock:
            waited = self._waited + (now - self._since if self._calls else 0.0)
        left = timeout - waited
        return min(left, self.began + timeout - now) if lost else left

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For as long as a call is under way."""
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    self._waited += time.monotonic() - self._since


_patience: ContextVar[Patience | None] = ContextVar("_patience", default=None)


def patience() -> Patience | None:
    """That of the search which runs here; None outside of one."""
    return _patience.get()


@contextmanager
def one_search() -> Iterator[None]:
    """What is asked of a server in this block is one search: ``timeout`` bounds all of it.

    Within another such block it is part of that search.
    """
    if _patience.get() is not None:
        yield
        return
    token = _patience.set(Patience())
    try:
        yield
    finally:
        _patience.reset(token)
