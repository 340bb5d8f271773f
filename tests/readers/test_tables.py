from __future__ import annotations

import csv
from pathlib import Path

import pytest
from small_corpora import GOOD, jsonl, write_image

from llama_index_gap.readers.corpus import read_corpus
from llama_index_gap.readers.records import CorpusError, Skipped


def test_csv(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    path = tmp_path / "catalogue.csv"
    path.write_text(
        "id,title,text,images,captions,price\n"
        '1,Lamp,"A lamp,\nwith a shade.",a.png | b.png,front|back,9.50\n'
        "2,Chair,,,,\n",
        encoding="utf-8-sig",
    )

    corpus = read_corpus(path)

    assert corpus.document_ids == ["1", "2"]
    assert [node.text for node in corpus.image_nodes] == ["front", "back"]
    assert corpus.nodes[0].get_content() == "A lamp,\nwith a shade."
    assert corpus.nodes[0].metadata == {"title": "Lamp", "price": 9.5}


def test_csv_with_one_image_column(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "docs.csv").write_text("image,caption\na.png,red\n")

    assert [node.text for node in read_corpus(tmp_path).image_nodes] == ["red"]


def test_csv_leaves_the_module_s_limit_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    before = csv.field_size_limit()

    read_corpus(tmp_path / "a.csv")

    assert csv.field_size_limit() == before


def test_csv_columns_without_a_name_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,,\none,,\ntwo,,3\n")

    corpus = read_corpus(tmp_path / "a.csv")

    assert len(corpus.nodes) == 1
    assert corpus.skipped == [Skipped("a.csv:3", "has '3' in a column without a name")]


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\nx\thello, world\n")

    assert read_corpus(tmp_path / "a.tsv").nodes[0].get_content() == "hello, world"


def test_csv_with_long_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "word " * 50_000 + "\n")

    assert len(read_corpus(tmp_path / "a.csv").nodes) > 10


def test_a_line_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() + b'\n{"text": "caf\xe9"}\n{"id": "last", "text": "x"}')

    corpus = read_corpus(path)

    assert corpus.document_ids == ["good", "last"]
    assert corpus.skipped[0].reason == "is not UTF-8; byte 0xe9 at position 13"


def test_rows_of_another_length_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,one\n2,two,extra\n3\n4,four\n5,,\n")

    corpus = read_corpus(path)

    assert corpus.document_ids == ["1", "4"]
    assert [skip.reason for skip in corpus.skipped] == [
        "has 1 cells more than the first line has columns",
        "has 1 cells fewer than the first line has columns",
        "has 1 cells more than the first line has columns",
    ]


def test_captions_must_match_images_in_number(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    (tmp_path / "a.csv").write_text("text,images,captions\nok,,\nt,a.png|b.png,one\n")

    corpus = read_corpus(tmp_path / "a.csv")

    assert [node.text for node in corpus.image_nodes] == ["", ""]
    assert "has 2 images but 1 captions; the images are" in corpus.skipped[0].reason


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.csv", "docs.tsv"])
def test_a_table_that_links_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('text\n{"text": "a password"}\n')
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "secret")

    with pytest.raises(CorpusError, match=rf"{name}: lies outside root="):
        read_corpus(folder)
    assert read_corpus(folder, root=tmp_path).nodes
    assert read_corpus(folder / name).nodes  # named by the user, not by the corpus


def test_a_line_that_is_too_long_costs_that_document_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_gap.readers.tables.MAX_BYTES", 100)
    path = jsonl(tmp_path, GOOD, {"text": "x" * 250}, {"id": "last", "text": "x"})

    corpus = read_corpus(path)

    assert corpus.document_ids == ["good", "last"]
    assert corpus.skipped == [Skipped("docs.jsonl:2", "is longer than 100 bytes")]


def test_a_cell_that_is_too_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_gap.readers.tables.MAX_BYTES", 100)
    (tmp_path / "a.csv").write_text("text\n" + "x" * 101)

    with pytest.raises(CorpusError, match=r"after line 1; field larger than field limit \(100\)"):
        read_corpus(tmp_path / "a.csv")


def test_brackets_in_a_cell_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,extra\na," + "[" * 30_000)

    (node,) = read_corpus(tmp_path / "a.csv").nodes

    assert node.metadata["extra"] == "[" * 30_000
