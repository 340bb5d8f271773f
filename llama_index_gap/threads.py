"""Runs work in threads: beside an event loop, and ahead of a model."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

DECODING_THREADS = min(8, os.cpu_count() or 1)
"""How many images are decoded at the same time."""

_HELPERS = 32
_POLL_SECONDS = 0.1  # between two checks whether a task was cancelled

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")
# One event for each thread that waits for another thread's result, outermost first.
_given_up: ContextVar[tuple[threading.Event, ...]] = ContextVar("_given_up", default=())


async def in_thread(function: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
    """Run in a thread; if the waiting task is cancelled, ``stop_if_given_up`` stops the work."""
    given_up = threading.Event()
    token = _given_up.set((*_given_up.get(), given_up))
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except asyncio.CancelledError:
        given_up.set()
        raise
    finally:
        _given_up.reset(token)


def asynchronous(
    method: Callable[_Parameters, _Result],
) -> Callable[_Parameters, Coroutine[Any, Any, _Result]]:
    """Make the asynchronous form of a method, which runs the method in a thread.

    Any number of event loops can use it at once. If the waiting task is cancelled, the method stops
    at its next call of ``stop_if_given_up``.

    Args:
        method: the method; if a subclass overrides it, the override runs.
    """
    name = method.__name__

    @wraps(method)
    async def form(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        result: _Result = await in_thread(getattr(args[0], name), *args[1:], **kwargs)
        return result

    form.__name__ = f"a{name}"
    form.__doc__ = f"Like ``{name}``, without blocking the event loop."
    return form


def stop_if_given_up() -> None:
    """Raise ``CancelledError`` if nobody waits for the result any more; call before each batch."""
    if any(given_up.is_set() for given_up in _given_up.get()):
        raise asyncio.CancelledError


def wait_for(event: threading.Event) -> None:
    """Wait for an event, but raise soon after nobody waits for the result any more."""
    if not _given_up.get():
        event.wait()
        return
    while not event.wait(_POLL_SECONDS):
        stop_if_given_up()


@contextmanager
def to_its_end() -> Iterator[None]:
    """Protect steps that must all be done: inside, ``stop_if_given_up`` does nothing."""
    token = _given_up.set(())
    try:
        yield
    finally:
        _given_up.reset(token)


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_HELPERS, "gap")


def beside(work: Callable[[], _Result]) -> Callable[[], _Result]:
    """Start work in one of a few threads that the whole process shares.

    Args:
        work: must not itself wait for such work.

    Returns:
        A function that waits for the result. If no thread has started the work yet, the caller's
        thread does it, so that nobody waits for a free thread, however many callers there are.
    """
    try:
        future = _helpers().submit(work)
    except RuntimeError:  # the interpreter is shutting down
        return work
    return lambda: work() if future.cancel() else future.result()


def read_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    ahead: int,
) -> Generator[_Result, None, None]:
    """Map a function over items in threads, in order, with at most ``ahead`` results in memory.

    An exception is raised in place of its item's result; closing the iterator cancels work that has
    not started.
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
