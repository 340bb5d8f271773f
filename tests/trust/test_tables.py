"""No table makes a reader hang or use much memory: its time is linear, or it is refused."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_index_gap.readers.cells import caption_list, image_list, without_html
from llama_index_gap.readers.column_types import ColumnType
from llama_index_gap.readers.columns import plain_name
from llama_index_gap.readers.corpus import read_corpus
from llama_index_gap.readers.records import CorpusError
from tests.trust.test_texts import seconds

REFUSED: dict[str, tuple[str, str]] = {
    "a million columns": ("text," + ",".join(map(str, range(1_000_000))) + "\na\n", "at most 10,0"),
    "a quote that is never closed": ('id,text\n1,"a\n' + "2,b\n" * 10_000, "unexpected end"),
    "a giant cell": ("text\n" + "x" * 101_000, "field larger than field limit"),
    "a giant row": (
        "a,text\n" + ('"' + "x\n" * 49_000 + '",') * 3 + "\n",
        "a row is longer than 2",
    ),
    "a line without an end": ("text\n" + "x," * 150_000, "a row is longer than 200,000"),
    "NULs alone": ("\0" * 10_000, "names no column|not CSV|UTF-16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_table_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, reason = REFUSED[case]
    if case != "a million columns":
        monkeypatch.setattr("llama_index_gap.readers.tables.MAX_BYTES", 100_000)
    (tmp_path / "a.csv").write_text(content)

    with pytest.raises(CorpusError) as caught:
        read_corpus(tmp_path / "a.csv")

    assert re.search(reason, str(caught.value))
    assert len(str(caught.value)) < 2_000


def test_a_cell_with_a_nul_costs_its_row_only(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,a\0b\n2,fine\n")

    corpus = read_corpus(tmp_path / "a.csv")

    assert corpus.document_ids == ["2"]
    assert "holds a NUL character" in corpus.skipped[0].reason


def test_a_long_table_is_looked_through_in_little_memory(tmp_path: Path) -> None:
    """All cells decide a column's type, but they are not kept in memory."""
    row = ("x" * 10_000 + ",2005\n") * 1_000
    (tmp_path / "a.csv").write_text("notes,year\n" + row)
    tracemalloc.start()
    with pytest.raises(CorpusError, match="it has notes, year"):
        read_corpus(tmp_path / "a.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 8 * 2**20  # of 10 MB


@pytest.mark.parametrize("quote", ["[", "['", '["a",', "['\\", "{", "a,", "a|", "a.png,", "a;"])
@pytest.mark.parametrize("read", [image_list, lambda cell: caption_list(cell, 2)])
def test_a_cell_takes_time_as_its_length(quote: str, read: Callable[[str], object]) -> None:
    short, long = ("[" + quote * (length // len(quote)) + "]" for length in (4_000, 16_000))

    assert seconds(lambda: read(long)) < 9 * seconds(lambda: read(short)) + 0.2


@pytest.mark.parametrize("part", ["<p>", "</p", "<br ", "<img ", "<", "</p>", "<br>", "&", "\n"])
def test_html_in_a_cell_takes_time_as_its_length(part: str) -> None:
    short, long = ("<br>" + part * (length // len(part)) for length in (4_000, 16_000))

    took = seconds(lambda: without_html(short))

    assert seconds(lambda: without_html(long)) < 9 * took + 0.2


@pytest.mark.parametrize("name", ["(" * 50_000, "a" * 50_000, "A" * 50_000, "aA" * 50_000])
def test_names_of_columns_are_read_in_part(name: str) -> None:
    assert len(plain_name(name)) <= 400


@pytest.mark.parametrize(
    "cell", ["1," * 50_000, "9" * 50_000, "1" + " " * 50_000 + "1", "$" * 50_000]
)
def test_long_cells_are_neither_numbers_nor_dates(cell: str) -> None:
    column = ColumnType(comma_separates=True)
    column.see(cell, 1)

    assert column.found()[0] is None


def test_images_that_are_nowhere_are_looked_for_a_hundred_times(tmp_path: Path) -> None:
    """Each search for an image looks into each folder beside the table."""
    for number in range(150):
        (tmp_path / str(number)).mkdir()
    (tmp_path / "a.csv").write_text("text,image\n" + "t,/x.png\n" * 500)

    corpus = read_corpus(tmp_path / "a.csv")

    assert len(corpus.skipped) == 500
