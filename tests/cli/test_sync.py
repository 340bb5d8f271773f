from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import gap, rows, write_texts

from llama_index_gap.demo.newsroom import CHECKPOINT


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """An index of five documents in ``docs.jsonl``."""
    table, made = tmp_path / "docs.jsonl", tmp_path / "gap.db"
    write_texts(table, 5)
    assert gap("index", table, "--db", made, "--model", CHECKPOINT).code == 0
    return made


def edit(table: Path) -> None:
    """Remove the first document, change the second, and add one."""
    lines = table.read_text().splitlines()[1:]
    lines[0] = json.dumps({"id": "doc-1", "text": "another text"})
    lines.append(json.dumps({"id": "doc-[5]", "text": "one more"}))
    table.write_text("\n".join(lines))


def test_a_plan_and_then_the_deed(db: Path, tmp_path: Path) -> None:
    table = tmp_path / "docs.jsonl"
    edit(table)

    plan = gap("sync", table, "--db", db, "--dry-run")
    assert "nothing written: 1 new, 1 changed, 1 vanished, 3 unchanged documents" in plan.out
    assert [line.split() for line in plan.out.splitlines()[2:]] == [
        ["new", "doc-[5]"],
        ["changed", "doc-1"],
        ["vanished", "doc-0"],
    ]
    assert rows(db) == {"text": 5, "image": 0}

    done = gap("sync", table, "--db", db)
    assert "2 texts and 0 images written, 1 deleted, 3 unchanged" in " ".join(done.out.split())
    assert rows(db) == {"text": 5, "image": 0}
    again = gap("sync", table, "--db", db)
    assert "0 new, 0 changed, 0 vanished, 5 unchanged" in " ".join(again.out.split())


def test_index_says_what_sync_would_remove(db: Path, tmp_path: Path) -> None:
    edit(tmp_path / "docs.jsonl")

    shown = gap("index", tmp_path / "docs.jsonl", "--db", db)

    words = " ".join(shown.out.split())
    assert "1 document is in the index but no longer in" in words
    assert "llama-gap sync" in words
    assert rows(db) == {"text": 6, "image": 0}


def test_long_lists_are_bounded(db: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "docs.jsonl", 50)

    some = gap("sync", tmp_path / "docs.jsonl", "--db", db, "--dry-run").out
    everything = gap("sync", tmp_path / "docs.jsonl", "--db", db, "--dry-run", "--all").out

    assert "… and 25 more: --all lists them" in some
    assert everything.count("new ") == 45


def test_what_another_corpus_put_in_stays(db: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "others.jsonl", 7)
    (tmp_path / "others.jsonl").write_text(
        (tmp_path / "others.jsonl").read_text().replace("doc-", "other-")
    )

    shown = gap("sync", tmp_path / "others.jsonl", "--db", db)

    assert "7 new, 0 changed, 0 vanished" in shown.out
    assert "5 other rows stay" in shown.out
    assert rows(db)["text"] == 12
    whole = gap("sync", tmp_path / "others.jsonl", "--db", db, "--whole-index")
    assert "5 vanished" in whole.out
    assert rows(db)["text"] == 7


def test_most_of_a_corpus_is_refused(db: Path, tmp_path: Path) -> None:
    table = tmp_path / "docs.jsonl"
    write_texts(table, 30)
    gap("sync", table, "--db", db)
    write_texts(table, 3)

    shown = gap("sync", table, "--db", db)
    assert shown.code == 1
    assert "27 of the 30 documents" in shown.err
    assert rows(db)["text"] == 30
    assert gap("sync", table, "--db", db, "--delete-most").code == 0
    assert rows(db)["text"] == 3


def test_a_corpus_or_an_index_that_is_not_there(db: Path, tmp_path: Path) -> None:
    gone = gap("sync", tmp_path / "no such folder", "--db", db)
    assert (gone.code, rows(db)["text"]) == (1, 5)
    assert "no such file or folder" in gone.err

    shown = gap("sync", tmp_path / "docs.jsonl", "--db", tmp_path / "none.db")
    assert "no such database; create it with: llama-gap index" in shown.err
    assert not (tmp_path / "none.db").exists()
