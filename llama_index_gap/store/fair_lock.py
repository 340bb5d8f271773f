"""A lock that threads get in the order in which they asked for it."""

from __future__ import annotations

import threading
from collections import deque

from llama_index_gap.threads import wait_for


class FairLock:
    """A reentrant lock that serves threads first come, first served.

    With Python's own locks, a thread that releases the lock and asks again at once mostly gets it:
    searches would wait while another thread writes batch after batch. This lock passes directly to
    the thread that has waited longest. A task that is cancelled while its thread waits leaves the
    queue.
    """

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._line: deque[tuple[int, threading.Event]] = deque()
        self._holder: int | None = None
        self._times = 0

    def __enter__(self) -> None:
        me, turn = threading.get_ident(), threading.Event()
        with self._changing:
            if self._holder in (None, me):
                self._holder = me
                self._times += 1
                return
            self._line.append((me, turn))
        try:
            wait_for(turn)
        except BaseException:
            with self._changing:
                waiting = (me, turn) in self._line
                if waiting:
                    self._line.remove((me, turn))
            if not waiting:  # it got the lock just before it was cancelled
                self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        with self._changing:
            self._times -= 1
            if self._times:
                return
            self._holder = None
            if self._line:
                self._holder, turn = self._line.popleft()
                self._times = 1
                turn.set()

    @property
    def waiting(self) -> int:
        """How many threads wait for the lock."""
        return len(self._line)
