from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_index_gap.threads import read_ahead


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
