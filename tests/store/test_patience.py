"""The total time that one search waits for its server, on a simulated clock."""

from __future__ import annotations

import asyncio

import pytest

from llama_index_gap.store import patience as room
from llama_index_gap.store.patience import Patience, one_search, patience
from llama_index_gap.threads import in_thread


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(room, "time", clock)
    return clock


def test_only_waiting_counts_and_calls_side_by_side_count_once(clock: Clock) -> None:
    search = Patience()
    clock.now += 50  # a model
    assert search.left(10, lost=False) == 10
    with search.waiting():
        clock.now += 2
        with search.waiting():  # another leg
            clock.now += 3
            assert search.left(10, lost=False) == 5
        clock.now += 1
    clock.now += 50
    assert search.left(10, lost=False) == 4
    with search.waiting():
        clock.now += 5
    assert search.left(10, lost=False) == -1


def test_on_a_lost_server_it_counts_from_the_call(clock: Clock) -> None:
    search = Patience()
    clock.now += 7
    assert search.left(10, lost=True) == 3
    assert search.left(10, lost=False) == 10


def test_a_search_within_a_search_is_part_of_it_and_threads_know_it() -> None:
    async def search() -> Patience | None:
        with one_search():
            return await in_thread(patience)

    assert patience() is None
    with one_search():
        outer = patience()
        assert outer is not None
        with one_search():
            assert patience() is outer
        assert asyncio.run(search()) is outer
    assert patience() is None
    assert asyncio.run(search()) is not None
