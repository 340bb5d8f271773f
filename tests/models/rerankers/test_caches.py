"""Caches in memory and on disk."""

import logging
import os
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from llama_index_gap.models.rerankers.caches import ByteCache, TensorFolder, digest

TENSORS = {"a": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), "b": torch.tensor([3, 4])}


def cache_of(max_bytes):
    return ByteCache[str](max_bytes, size=len)


def test_the_least_recently_used_goes_first():
    cache = cache_of(6)
    cache.put("one", "11")
    cache.put("two", "22")
    cache.put("three", "33")
    assert cache.get("one") == "11"
    cache.put("four", "4")
    assert [key in cache for key in ("one", "two", "three", "four")] == [True, False, True, True]
    assert (len(cache), cache.nbytes) == (3, 5)


def test_a_look_whether_it_is_there_is_no_use():
    cache = cache_of(4)
    cache.put("one", "11")
    cache.put("two", "22")
    assert "one" in cache
    cache.put("three", "33")
    assert cache.get("one") is None


def test_a_new_value_takes_the_place_of_the_old():
    cache = cache_of(4)
    cache.put("one", "1")
    cache.put("one", "111")
    assert (cache.get("one"), cache.nbytes) == ("111", 3)


def test_what_is_too_large_drives_nothing_out():
    cache = cache_of(4)
    cache.put("one", "11")
    cache.put("two", "22222")
    assert (cache.get("one"), cache.get("two")) == ("11", None)


def test_switched_off():
    cache = cache_of(0)
    cache.put("one", "1")
    assert (cache.get("one"), len(cache), cache.nbytes) == (None, 0, 0)


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.text("x", max_size=8))),
)
def test_like_a_plain_list_of_what_was_used(max_bytes, steps):
    cache = cache_of(max_bytes)
    expected: OrderedDict[str, str] = OrderedDict()
    for key, value in steps:
        if value is None:
            assert cache.get(key) == expected.get(key)
            if key in expected:
                expected.move_to_end(key)
        else:
            cache.put(key, value)
            if len(value) <= max_bytes:
                expected.pop(key, None)
                expected[key] = value
                while sum(map(len, expected.values())) > max_bytes:
                    expected.popitem(last=False)
        assert cache.nbytes == sum(map(len, expected.values())) <= max_bytes


@pytest.fixture
def restless():
    """Threads switch as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_many_threads_keep_the_count():
    cache = cache_of(50)

    def use(number):
        for step in range(2000):
            cache.put(str((number * step) % 20), "x" * (step % 9))
            cache.get(str(step % 20))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    held = [cache.get(str(number)) for number in range(20)]
    assert cache.nbytes == sum(len(value) for value in held if value is not None) <= 50


def test_a_folder_gives_back_what_it_was_given(tmp_path):
    folder = TensorFolder(tmp_path / "deep" / "down")
    assert folder.get("a/b: ü") is None
    folder.put("a/b: ü", TENSORS)
    assert "a/b: ü" in folder
    for again in (folder, TensorFolder(tmp_path / "deep" / "down")):
        found = again.get("a/b: ü")
        assert found.keys() == TENSORS.keys()
        for name, tensor in found.items():
            assert tensor.dtype == TENSORS[name].dtype
            assert torch.equal(tensor, TENSORS[name])


def test_a_slice_is_stored_alone(tmp_path):
    whole = torch.arange(100_000)
    TensorFolder(tmp_path).put("key", {"part": whole[5:7]})
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 1000
    assert TensorFolder(tmp_path).get("key")["part"].tolist() == [5, 6]


def cut_off(data):
    return data[:-3]


def flip_a_bit(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, lambda _: b"", lambda _: b"no tensors"])
def test_a_damaged_file_is_as_good_as_none(tmp_path, caplog, damage):
    caplog.set_level(logging.WARNING, "llama_index_gap")
    folder = TensorFolder(tmp_path)
    folder.put("key", TENSORS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))

    assert folder.get("key") is None
    (record,) = caplog.records
    assert str(file) in record.getMessage()
    assert "computed again" in record.getMessage()
    folder.put("key", TENSORS)
    assert folder.get("key") is not None


def test_a_file_that_cannot_be_written_is_logged(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "llama_index_gap")
    folder = TensorFolder(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    folder.put("key", TENSORS)

    assert folder.get("key") is None
    assert "cannot be written" in caplog.text


def test_writers_at_once_leave_one_whole_file(tmp_path):
    folder = TensorFolder(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: folder.put("key", TENSORS), range(40)))
    assert len(list(tmp_path.iterdir())) == 1
    assert folder.get("key") is not None


def test_a_folder_keeps_to_its_limit_and_to_its_own_files(tmp_path):
    """The least recently used go first, over all subfolders."""
    size = len(save({"a": torch.zeros(1000)}, metadata={"digest": "0" * 64}))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "mine.safetensors").write_bytes(b"x" * 10 * size)
    first, second = (TensorFolder(tmp_path, each, max_bytes=3 * size) for each in ("first", "b"))
    for number, (folder, key) in enumerate([(first, "1"), (second, "2"), (first, "3")]):
        folder.put(key, {"a": torch.full((1000,), float(number))})
        os.utime(folder._path(key), (number, number))
    assert first.get("1") is not None  # used just now

    second.put("4", {"a": torch.zeros(1000)})
    first.put("large", {"a": torch.zeros(4000)})

    assert ["1" in first, "2" in second, "3" in first, "4" in second] == [True, False, True, True]
    assert "large" not in first
    assert (tmp_path / "first" / "mine.safetensors").is_file()
    assert TensorFolder(tmp_path, "b", max_bytes=size // 2).get("4") is None  # over its limit


def test_a_digest_tells_tensors_apart():
    same = digest({"b": TENSORS["b"].clone(), "a": TENSORS["a"].clone()})
    assert digest(TENSORS) == same
    others = [
        {**TENSORS, "b": torch.tensor([3, 5])},
        {**TENSORS, "b": torch.tensor([[3, 4]])},
        {**TENSORS, "b": torch.tensor([3, 4], dtype=torch.int32)},
        {"a": TENSORS["b"], "b": TENSORS["a"]},
        {"a": TENSORS["a"]},
    ]
    assert len({same, *map(digest, others)}) == 1 + len(others)
