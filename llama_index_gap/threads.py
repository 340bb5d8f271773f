"""Work in threads: beside an event loop, and ahead of a model."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

DECODING_THREADS = min(8, os.cpu_count() or 1)
"""How many images are decoded at a time."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_given_up: ContextVar[threading.Event | None] = ContextVar("_given_up", default=None)


async def in_thread(function: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
    """Run in a thread; when the waiting task is cancelled, ``stop_if_given_up`` stops the work."""
    given_up = threading.Event()
    token = _given_up.set(given_up)
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except asyncio.CancelledError:
        given_up.set()
        raise
    finally:
        _given_up.reset(token)


def stop_if_given_up() -> None:
    """Raise where nobody waits for the result any more; to be called before each batch."""
    given_up = _given_up.get()
    if given_up is not None and given_up.is_set():
        raise asyncio.CancelledError


def read_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    ahead: int,
) -> Generator[_Result, None, None]:
    """Map a function over items in threads, in order, at most ``ahead`` results in memory.

    An exception is raised in its item's place; closing the iterator drops what has not begun.
    """
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
