"""The total time that a search waits for its server, over all its calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Patience:
    """How long one search has waited for its server, over all its threads.

    Time during which several calls are running counts once. The time of models does not count, nor
    does a wait for a free thread, unless the server is lost.

    Attributes:
        began: when the search was requested.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._calls, self._since, self._waited = 0, 0.0, 0.0

    def left(self, timeout: float, *, lost: bool) -> float:
        """The seconds that the next call may take; below 0 if no time is left.

        Args:
            timeout: seconds for the whole search.
            lost: whether the server did not answer the last call of this process. If so, time
                counts from the request of the search, so that searches that wait for a thread or
                for each other do not each wait for the whole timeout.
        """
        now = time.monotonic()
        with self._lock:
            waited = self._waited + (now - self._since if self._calls else 0.0)
        left = timeout - waited
        return min(left, self.began + timeout - now) if lost else left

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of this block, in which a call is running."""
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
    """The waiting time of the current search; None outside of a search."""
    return _patience.get()


@contextmanager
def one_search() -> Iterator[None]:
    """Treat all calls to a server in this block as one search: ``timeout`` limits their total.

    Inside another such block, they are part of that block's search.
    """
    if _patience.get() is not None:
        yield
        return
    token = _patience.set(Patience())
    try:
        yield
    finally:
        _patience.reset(token)
