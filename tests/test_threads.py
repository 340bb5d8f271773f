from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_index_gap.threads import in_thread, read_ahead, stop_if_given_up


def test_work_in_a_thread_stops_when_nobody_waits_any_more() -> None:
    stopped, steps = threading.Event(), []

    def work(step: float) -> None:
        try:
            for _ in range(100):
                steps.append(step)
                time.sleep(step)
                stop_if_given_up()
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def impatient() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(in_thread(work, step=0.01), 0.05)

    asyncio.run(impatient())
    assert stopped.wait(1)
    assert len(steps) < 50


def test_what_runs_in_a_thread_gives_its_result_or_its_error() -> None:
    stop_if_given_up()  # nobody gave up

    assert asyncio.run(in_thread(int, "12", base=8)) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(in_thread(int, "x"))


def test_read_ahead_keeps_the_order_and_the_limit() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.001 * (item % 3))
        return item * item

    with ThreadPoolExecutor(4) as pool:
        results = read_ahead(pool, work, range(20), ahead=5)
        first = next(results)
        time.sleep(0.05)
        assert (first, len(begun)) == (0, 5)
        assert list(results) == [i * i for i in range(1, 20)]


def test_read_ahead_raises_in_place_and_drops_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise KeyError(item)
        time.sleep(0.02)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = read_ahead(pool, work, range(100), ahead=50)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError):
            next(results)
    assert len(begun) < 10
