from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from gate import PATIENCE_S, Gate

from llama_index_gap.threads import beside, in_thread, read_ahead, stop_if_given_up


def test_work_in_a_thread_stops_when_nobody_waits_any_more() -> None:
    stopped, gate = threading.Event(), Gate(at=5)

    def work(steps: int) -> None:
        try:
            for _ in range(steps):
                gate.pass_through()
                stop_if_given_up()
        except asyncio.CancelledError:
            stopped.set()
            raise

    asyncio.run(gate.cancel(in_thread(work, steps=100)))
    assert stopped.wait(PATIENCE_S)
    assert gate.passes == 5


def test_what_runs_in_a_thread_gives_its_result_or_its_error() -> None:
    stop_if_given_up()  # nobody gave up

    assert asyncio.run(in_thread(int, "12", base=8)) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(in_thread(int, "x"))


def test_read_ahead_keeps_the_order_and_the_limit() -> None:
    asked = []
    done = [threading.Event() for _ in range(20)]

    def items() -> Iterator[int]:
        for item in range(20):
            asked.append(item)
            yield item

    def work(item: int) -> int:
        """Each even item is done only after the odd item that follows it."""
        assert item % 2 or done[item + 1].wait(PATIENCE_S)
        done[item].set()
        return item * item

    with ThreadPoolExecutor(4) as pool:
        results = read_ahead(pool, work, items(), ahead=5)
        assert (next(results), len(asked)) == (0, 5)
        assert list(results) == [i * i for i in range(1, 20)]


def test_read_ahead_raises_in_place_and_drops_what_has_not_begun() -> None:
    begun: list[int] = []
    dropped = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise KeyError(item)
        assert item < 2 or dropped.wait(PATIENCE_S)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = read_ahead(pool, work, range(100), ahead=50)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError):
            next(results)
        dropped.set()
    assert begun in ([0, 1, 2], [0, 1, 2, 3])


def test_work_beside_needs_no_free_thread() -> None:
    """If all threads are busy, the caller does the work itself, so there is no deadlock."""
    gate, own = Gate(), threading.get_ident()
    results = [beside(gate.pass_through) for _ in range(200)]
    try:
        assert gate.reached.wait(PATIENCE_S)
        assert [beside(threading.get_ident)() for _ in range(50)] == [own] * 50
    finally:
        gate.opened.set()
    for result in results:
        result()
    assert len(gate.threads - {own}) <= 32
    with pytest.raises(ZeroDivisionError):
        beside(lambda: 1 // 0)()
