from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llama_index_gap.index import backgrounds
from llama_index_gap.index.backgrounds import LARGE, Backgrounds
from llama_index_gap.store.connection import StoreError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Collection:
    """A server's collection: drawing from it takes a second."""

    def __init__(self, clock: Clock, size: int) -> None:
        self.clock, self.size, self.writes, self.draws = clock, size, 0, 0
        self.slow = False

    def state(self) -> tuple[int, int]:
        return self.writes, self.size

    def draw(self, n: int) -> tuple[list[str], Any, int]:
        self.draws += 1
        self.clock.now += 1.0
        if self.slow:
            raise StoreError("no answer in time")
        return [str(i) for i in range(40)], np.eye(40, dtype=np.float32), self.size


class NoSample:
    def queries(self, *_: str) -> None:
        return None

    def forget(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backgrounds, "monotonic", clock)
    return clock


def made(store: Collection) -> Backgrounds:
    stores: Any = {"text": store}
    models: Any = {"text": None}
    sample: Any = NoSample()
    return Backgrounds(stores, models, sample)


def test_a_large_collection_is_drawn_for_a_twentieth_of_the_time_while_it_is_written_to(
    clock: Clock,
) -> None:
    store = Collection(clock, LARGE)
    drawn = made(store)
    first = drawn.of("text", "text")
    store.writes += 1
    later = drawn.of("text", "text")  # the same sample, but not the same facts about nodes
    assert (store.draws, later is first, later.sample is first.sample) == (1, False, True)

    while clock.now < 19.5:
        store.writes += 1
        drawn.of("text", "text")
        clock.now += 0.5
    assert store.draws == 1
    clock.now = 20.0  # without another write
    assert drawn.of("text", "text").sample is not first.sample
    assert store.draws == 2
    clock.now = 1_000.0
    drawn.of("text", "text")
    assert store.draws == 2


@pytest.mark.parametrize(("before", "after"), [(LARGE, LARGE * 2), (LARGE, 0), (LARGE - 1,) * 2])
def test_a_small_collection_and_one_that_has_changed_are_drawn_at_once(
    before: int, after: int, clock: Clock
) -> None:
    store = Collection(clock, before)
    drawn = made(store)
    drawn.of("text", "text")
    store.writes, store.size = 1, after
    drawn.of("text", "text")
    assert store.draws == 2


def test_a_large_collection_is_drawn_at_once_for_learnt_queries(clock: Clock) -> None:
    store = Collection(clock, LARGE)
    drawn = made(store)
    drawn.of("text", "text")
    drawn.forget()
    drawn.of("text", "text")
    assert store.draws == 2


def test_a_sample_that_cannot_be_drawn_in_time_gives_way_to_the_last_one(clock: Clock) -> None:
    store = Collection(clock, 100)
    drawn = made(store)
    first = drawn.of("text", "text")
    store.slow = True

    while clock.now < 20.5:  # searches during constant inserts; one draws in vain
        store.writes += 1
        assert drawn.of("text", "text").sample is first.sample
        clock.now += 0.5
    assert store.draws == 2
    store.slow = False
    clock.now = 21.5
    assert drawn.of("text", "text").sample is not first.sample
    assert store.draws == 3


def test_without_a_last_one_the_error_is_told(clock: Clock) -> None:
    store = Collection(clock, 100)
    store.slow = True
    drawn = made(store)
    for _ in range(2):
        with pytest.raises(StoreError, match="no answer in time"):
            drawn.of("text", "text")

    store.slow = False
    drawn.of("text", "text")
    drawn.forget()
    store.slow = True
    with pytest.raises(StoreError, match="no answer in time"):
        drawn.of("text", "text")
