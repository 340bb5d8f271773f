"""PDF files that are small but take gigabytes or minutes, that crash the reader, or that lie."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_pdfs as hostile
import pdf_files as files
import pytest

from llama_index_gap import Corpus, CorpusError, read_corpus
from llama_index_gap.readers.pdf import engine, process, reader, reading


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(process, "MEMORY", 256 * 2**20)  # sooner than 2 GiB


def read_beside_a_good_one(folder: Path, data: bytes, **settings: Any) -> Corpus:
    """Read a file and then a good one, whose reading the first must not spoil."""
    (folder / "bad.pdf").write_bytes(data)
    (folder / "good.pdf").write_bytes(hostile.one_page(hostile.stream(hostile.TEXT)))
    corpus = read_corpus(folder, **settings)
    assert "good.pdf" in corpus.document_ids
    return corpus


def reasons(corpus: Corpus) -> str:
    return "\n".join(f"{skip.source}: {skip.reason}" for skip in corpus.skipped)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hostile.endless_content, "stops pdfium, or takes more than"),
        (hostile.nested_forms, "stops pdfium, or takes more than"),
        pytest.param(
            *(hostile.many_objects, "too many characters or objects"), marks=pytest.mark.slow
        ),
        pytest.param(
            *(hostile.many_characters, "too many characters or objects"), marks=pytest.mark.slow
        ),
        (hostile.large_image, "holds an image of more than max_pixels=89,478,485"),
        (hostile.tree_in_itself, "is damaged or not a PDF file"),
        (lambda: hostile.odd_image(b"JBIG2Decode", b"\x97JB2" * 99), "an image is damaged"),
        (lambda: hostile.odd_image(b"JPXDecode", b"\xff\x4f\xff\x51" * 99), "an image is damaged"),
        (lambda: hostile.odd_image(b"DCTDecode", b"\xff\xd8\xff\xc0" * 99), "an image is damaged"),
        (lambda: b"", "is damaged or not a PDF file"),
        (lambda: b"%PDF-1.7\n" + b"<<" * 100_000, "is damaged or not a PDF file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_costs_too_much_is_bounded_and_reported(
    tmp_path: Path, make: Any, reason: str
) -> None:
    corpus = read_beside_a_good_one(tmp_path, make())

    assert reason in reasons(corpus)


@pytest.mark.parametrize("make", [hostile.huge_box, hostile.form_in_itself, hostile.deep_arrays])
def test_what_only_looks_bad_is_read(tmp_path: Path, make: Any) -> None:
    corpus = read_beside_a_good_one(tmp_path, make(), pages=True)

    assert [node.text for node in corpus.text_nodes] == ["A good text"] * 2
    white = "is a completely white image" in reasons(corpus)  # as a text on a square mile is
    assert len(corpus.image_nodes) == 2 - white


def test_pages_beyond_the_most_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_PAGES", 50)

    corpus = read_beside_a_good_one(tmp_path, hostile.same_page(6_000))

    assert len(corpus.text_nodes) == 51
    assert reasons(corpus) == (
        "bad.pdf: has more than 50 pages; the rest of the file is not read; 6,000 pages"
    )


@pytest.mark.slow
def test_after_three_crashes_the_rest_of_a_file_is_not_read(tmp_path: Path) -> None:
    contents = hostile.bomb(b"q ", 200_000_000)

    corpus = read_beside_a_good_one(tmp_path, hostile.same_page(1_000, contents))

    assert len(corpus.text_nodes) == 1
    assert (
        "3 of its pages stop pdfium or take too long; the rest of the file is not read; from page 4"
    ) in reasons(corpus)


def test_a_file_has_as_much_time_as_it_has_pages_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_SECONDS", -1e6)

    with pytest.raises(CorpusError, match=r"takes more than .* seconds; the rest .*; from page 1"):
        read_corpus(hostile_file(tmp_path, hostile.same_page(3)))


def hostile_file(folder: Path, data: bytes) -> Path:
    (folder / "bad.pdf").write_bytes(data)
    return folder / "bad.pdf"


def test_a_page_that_takes_too_long_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SECONDS", 0.0)  # less than any page takes
    monkeypatch.setattr(process, "_BY_THE_CLOCK", float("inf"))
    with pytest.raises(CorpusError, match="takes more than 0 seconds"):
        read_corpus(hostile_file(tmp_path, hostile.many_objects()))


def test_no_damage_stops_the_reading(tmp_path: Path) -> None:
    """Bytes of a file are changed, left out and doubled at random positions."""
    chance = random.Random(0)
    for number, whole in enumerate([files.figures(), files.form(), files.encrypted("")] * 12):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 10, 100])):
            place = chance.randrange(len(data) - 50)
            match chance.randrange(3):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randrange(50)]
                case 2:
                    data[place:place] = data[place : place + chance.randrange(50)]
        (tmp_path / f"{number:02}.pdf").write_bytes(data)

    corpus = read_corpus(tmp_path, pages=True)

    assert len(list(tmp_path.iterdir())) == 36
    told = {*corpus.document_ids, *(skip.source for skip in corpus.skipped)}
    assert told == {file.name for file in tmp_path.iterdir()}


def test_links_and_folders_do_not_lead_out_of_the_corpus(tmp_path: Path) -> None:
    corpus_folder = tmp_path / "corpus"
    corpus_folder.mkdir()
    (tmp_path / "secret.pdf").write_bytes(files.figures())
    (corpus_folder / "link.pdf").symlink_to(tmp_path / "secret.pdf")
    os.mkfifo(corpus_folder / "pipe.pdf")

    corpus = read_beside_a_good_one(corpus_folder, b"%PDF")

    assert corpus.document_ids == ["good.pdf"]
    assert "link.pdf: lies outside root=" in reasons(corpus)
    assert "pipe.pdf: is not a regular file" in reasons(corpus)


def test_a_file_in_the_place_of_the_one_that_was_checked_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(files.figures())
    reader = process.PdfProcess()
    try:
        with pytest.raises(process.PdfError, match="was replaced while it was read"):
            reader.ask("open", path=str(tmp_path / "a.pdf"), identity=[0, 0], passwords=[])
    finally:
        reader.close()


def test_no_module_in_the_working_folder_is_run(tmp_path: Path) -> None:
    """The working folder may hold modules that somebody else wrote."""
    (tmp_path / "a.pdf").write_bytes(files.figures())
    for module in ("pypdfium2", "PIL", "json", "llama_index_gap"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit(9)")
    package = str(Path(engine.__file__).parents[3])
    code = (
        f"import sys; sys.path.insert(0, {package!r}); import llama_index_gap as gap; import json, "
        "PIL.Image; gap.read_corpus; sys.path.insert(0, ''); "
        "print(len(gap.read_corpus('.').image_nodes))"
    )

    shown = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.stdout.strip() == "3", shown.stderr


def test_no_process_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = process.PdfProcess._start
    monkeypatch.setattr(
        process.PdfProcess, "_start", lambda self: started.append(start(self)) or started[-1]
    )

    read_beside_a_good_one(tmp_path, hostile.nested_forms())

    assert len(started) == 2
    assert [each.poll() is None for each in started] == [False, False]
