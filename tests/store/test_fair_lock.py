"""A lock that serves threads first come, first served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from gate import PATIENCE_S, Gate

from llama_index_gap.store.fair_lock import FairLock
from llama_index_gap.threads import in_thread


def in_line(lock: FairLock, names: str, work: Callable[[str], None]) -> list[threading.Thread]:
    """Start threads that ask for the lock in this order."""
    threads = []
    for number, name in enumerate(names, start=lock.waiting + 1):
        thread = threading.Thread(target=lambda name=name: held(lock, name, work))
        thread.start()
        threads.append(thread)
        until(lambda number=number: lock.waiting == number)
    return threads


def held(lock: FairLock, name: str, work: Callable[[str], None]) -> None:
    with lock:
        work(name)


def until(true: Callable[[], bool]) -> None:
    """Let other threads run until it is true; no event tells when a thread has reached a lock."""
    waits, event = 0, threading.Event()
    while not true():
        event.wait(0.001)
        waits += 1
        assert waits < 1_000 * PATIENCE_S


def test_threads_get_it_in_their_order_however_often_one_lets_it_go() -> None:
    lock, order = FairLock(), []
    with lock:
        threads = in_line(lock, "abc", order.append)
    for _ in range(5):  # with an RLock, these come first
        with lock:
            order.append("writer")
    for thread in threads:
        thread.join()
    assert order[:3] == ["a", "b", "c"]
    assert order[3:] == ["writer"] * 5


def test_who_holds_it_may_take_it_again() -> None:
    lock, order = FairLock(), []
    with lock, lock:
        (waiting,) = in_line(lock, "a", order.append)
        with lock:
            order.append("holder")
        assert lock.waiting == 1
    waiting.join()
    assert order == ["holder", "a"]


def test_a_cancelled_task_leaves_the_line() -> None:
    lock, order = FairLock(), []

    async def cancelled() -> None:
        task = asyncio.ensure_future(in_thread(held, lock, "cancelled", order.append))
        await asyncio.to_thread(until, lambda: lock.waiting == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(until, lambda: lock.waiting == 0)

    with lock:
        asyncio.run(cancelled())
        (after,) = in_line(lock, "b", order.append)
    after.join()
    assert order == ["b"]


def test_an_error_lets_it_go() -> None:
    lock, gate = FairLock(), Gate()

    def fails() -> None:
        try:
            with lock:
                gate.pass_through()
                raise KeyError
        except KeyError:
            pass

    thread = threading.Thread(target=fails)
    thread.start()
    assert gate.reached.wait(PATIENCE_S)
    (waiting,) = in_line(lock, "a", lambda _: None)
    gate.opened.set()
    for each in (thread, waiting):
        each.join(PATIENCE_S)
        assert not each.is_alive()
