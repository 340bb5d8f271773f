from __future__ import annotations

from pathlib import Path

import pytest

from llama_index_gap.evaluation.results_cache import ResultsCache, ResultsCacheError

HEADER = {"model": "clip", "depth": 32}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def write(file: Path, **records: object) -> None:
    with ResultsCache(file, HEADER) as cache:
        for key, value in records.items():
            cache.add(key, value)


def test_records_stay(file: Path) -> None:
    write(file, a=[1, 2], b={"ä": "\ud800 ü\n"})
    write(file, b="another", c=None)

    with ResultsCache(file, HEADER) as cache:
        assert [cache.get(key) for key in "abcd"] == [[1, 2], "another", None, None]
    assert len(file.read_text().splitlines()) == 5


def test_a_record_is_in_the_file_at_once(file: Path) -> None:
    with ResultsCache(file, HEADER) as cache:
        cache.add("a", 1)
        assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_an_unfinished_line_is_taken_away(file: Path, cut: int) -> None:
    """After a kill in the last record, the one before, or the header."""
    write(file, a=1, b=2)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])

    write(file, **{key: value for key, value in {"a": 1, "b": 2}.items() if key})

    with ResultsCache(file, HEADER) as cache:
        assert [cache.get(key) for key in "ab"] == [1, 2]
    assert b"}{" not in file.read_bytes()


def test_a_file_of_something_else_is_refused_as_it_is(file: Path) -> None:
    for content in (
        *(b"my notes", b"my notes\n", b"[1]\n", b'{"experiment"', b'{"a": 1}\n{"b'),
        *(b'{"experiment": 1}\n', b"[" * 100_000 + b"\n"),
    ):
        file.write_bytes(content)
        if content == b'{"experiment"':  # a header cut off by a kill
            write(file)
            continue
        with pytest.raises(ResultsCacheError, match="is not a results cache; name another file"):
            ResultsCache(file, HEADER)
        assert file.read_bytes() == content


def test_results_of_another_experiment_are_refused_as_they_are(file: Path) -> None:
    write(file, a=1)
    before = file.read_bytes()

    with pytest.raises(
        ResultsCacheError, match="of another experiment, which differs in model, seed; name another"
    ):
        ResultsCache(file, {"model": "siglip", "depth": 32, "seed": 0})
    assert file.read_bytes() == before


@pytest.mark.parametrize("damaged", ["nonsense", "[]", "[" * 100_000])
def test_a_damaged_line_is_named(file: Path, damaged: str) -> None:
    write(file, a=1, b=2)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], damaged, lines[2], ""]))

    with pytest.raises(ResultsCacheError, match=r"results\.jsonl:2: is damaged; delete the file"):
        ResultsCache(file, HEADER)
