from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import gap, rows, write_texts
from moved_rows import stored

from llama_index_gap import list_tenants
from llama_index_gap.store.milvus import MilvusStore


def test_copy_and_drop(own_db: Path) -> None:
    to = own_db.with_name("copy.db")

    shown = gap("copy", "--db", own_db, "--to", to)

    assert shown.code == 0, shown.err
    assert "34 rows and 0 images copied, 0 unchanged, 0 skipped" in shown.out
    assert stored(str(to)) == stored(str(own_db))
    again = json.loads(gap("copy", "--db", own_db, "--to", to, "--json").out)
    assert (again["rows"], again["unchanged"]) == ({"text": 0, "image": 0}, 34)
    assert gap("copy", "--db", own_db, "--to-name", "other").code == 0

    refused = gap("drop", "gap", "--db", own_db, answer="n\n")
    assert refused.code == 1
    assert "Remove the index gap from" in refused.err
    assert rows(own_db) == {"text": 23, "image": 11}
    shown = gap("drop", "gap", "--db", own_db, answer="y\n")
    assert shown.out.strip() == "gap removed: gap_image, gap_text"
    gone = gap("drop", "gap", "--db", own_db, "--yes")
    assert (gone.code, gone.out) == (1, "")
    assert "holds no index 'gap'; its indexes are: other" in gone.err


def test_copy_refuses_another_index_unless_told(own_db: Path) -> None:
    to = own_db.with_name("copy.db")
    gap("copy", "--db", own_db, "--to", to)
    gap("delete", "ferry", "--db", own_db)

    shown = gap("copy", "--db", own_db, "--to", to)
    assert shown.code == 1
    assert "already exists and differs from" in shown.err
    assert "--overwrite" in shown.err
    assert rows(to) == {"text": 23, "image": 11}
    assert gap("copy", "--db", own_db, "--to", to, "--overwrite").code == 0
    assert rows(to) == rows(own_db) == {"text": 21, "image": 10}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "say where to put the copy"),
        (["--to", "x.txt"], 2, "ends in .db"),
        (["--to-name", "gap"], 1, "is the index to copy"),
        (["--to-name", "a b"], 1, "letters, digits and _"),
        (["--to-name", "other", "--name", "nope"], 1, "its indexes are: gap"),
        (["--to", "http://me:secret@localhost:1"], 2, "contains a password"),
    ],
)
def test_what_cannot_be_copied(demo: Path, options: list[str], code: int, message: str) -> None:
    shown = gap("copy", "--db", demo / "gap.db", *options)

    assert shown.code == code
    assert message in " ".join(shown.err.replace("│", " ").split())


def test_a_token_is_never_sent_to_another_server(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token for --db is not used for --to."""
    seen = []
    monkeypatch.setenv("MILVUS_TOKEN", "of-db")
    monkeypatch.setattr("llama_index_gap.cli.options.check_is_there", lambda _: None)
    monkeypatch.setattr("llama_index_gap.index.tenants.list_tenants", lambda *_, **__: [])
    monkeypatch.setattr(
        "llama_index_gap.index.copying.copy_index",
        lambda source, target, **_: seen.append((source.token, target.token)) or 1 / 0,
    )
    servers = ["--db", "http://a:1", "--to", "http://b:1"]
    gap("copy", *servers)
    gap("copy", "--db", demo / "gap.db", "--to", "http://b:1")
    gap("copy", "--db", "http://a:1", "--to-name", "other")
    monkeypatch.setenv("MILVUS_TO_TOKEN", "of-to")
    gap("copy", *servers)

    assert seen == [("of-db", None), ("of-db", "of-db"), ("of-db", "of-db"), ("of-db", "of-to")]


# --- info ----------------------------------------------------------------------------------------


def test_info_lists_indexes_and_what_is_unfinished(
    own_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gap("copy", "--db", own_db, "--to-name", "other")
    with monkeypatch.context() as patch:
        patch.setattr(MilvusStore, "finish", lambda *_, **__: 1 / 0)
        gap("copy", "--db", own_db, "--to-name", "half")

    shown = gap("info", "--db", own_db)
    facts = json.loads(gap("info", "--db", own_db, "--json").out)

    lines = shown.out.splitlines()
    rows = [line.split() for line in lines]  # the name of a model may wrap
    listed = [row[:3] for row in rows if row[:1] in (["gap"], ["half"], ["other"]) and row[3:]]
    assert listed == [
        ["gap", "23", "11"],
        ["half", "*", "–"],
        ["other", "23", "11"],
    ]
    told = f"half is unfinished: a copy of {own_db}: gap"
    assert told.replace(" ", "") in "".join(lines).replace(" ", "")  # wherever a line wraps
    assert max(map(len, lines)) <= 80
    assert [each["name"] for each in facts["indexes"]] == ["gap", "half", "other"]
    assert facts["indexes"][1]["unfinished"] == [f"a copy of {own_db.resolve()}: gap"]
    assert facts["indexes"][0]["bytes_on_disk"] > 1000
    searched = gap("search", "ship", "--db", own_db, "--name", "half")
    assert searched.code == 1
    assert "unfinished" in searched.err
    assert gap("drop", "half", "--db", own_db, "--yes").code == 0


def test_info_lists_documents(big: Path, demo: Path) -> None:
    shown = gap("info", "--db", demo / "gap.db", "--documents")
    assert "document  title                        passages  images" in shown.out
    assert "ferry     A ferry for the old harbour         1       1" in shown.out
    assert "budget    Council passes the budget           1       0" in shown.out

    first = gap("info", "--db", big, "--documents")
    assert len(first.out.splitlines()) == 1 + 20 + 1
    assert first.out.splitlines()[-1] == "… and 40 more: --all lists them"
    assert "\x1b[31mred" not in first.out
    told = json.loads(gap("info", "--db", big, "--documents", "--all", "--json").out)
    assert (told["total"], len(told["documents"])) == (60, 60)
    assert told["documents"][0] == {
        "key": "doc-0",
        "title": "\x1b[31mred [bold]\u202e 0",
        "passages": 1,
        "images": 0,
    }


def test_info_says_where_images_are_and_are_not(
    demo: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a move of the corpus, of the database, and of both."""
    shutil.copytree(demo / "corpus", tmp_path / "corpus")
    db = tmp_path / "gap.db"
    gap("index", tmp_path / "corpus", "--db", db, "--model", tiny_clip)

    def images(of: Path) -> dict[str, str]:
        return json.loads(gap("info", "--db", of, "--name", "gap", "--json").out)["image_folders"]

    folder = str((tmp_path / "corpus").resolve())
    assert images(db) == {folder: "opened"}
    assert gap("search", "ferry", "--db", db).err == ""
    (tmp_path / "new").mkdir()
    shutil.copytree(db, tmp_path / "new" / "gap.db")
    assert images(tmp_path / "new" / "gap.db") == {folder: "not opened here"}
    shown = gap("search", "ferry", "--db", tmp_path / "new" / "gap.db")
    assert "cannot be opened" in shown.err
    assert "--image-root" in shown.err

    (tmp_path / "corpus").rename(tmp_path / "new" / "corpus")
    for moved in (db, tmp_path / "new" / "gap.db"):
        assert images(moved) == {folder: "gone"}
        shown = gap("search", "ferry", "--db", moved)
        assert "cannot be opened" in shown.err
        assert "--image-root" in shown.err
        found = gap("search", "ferry", "--db", moved, "--image-root", tmp_path / "new" / "corpus")
        assert found.err == ""
    shown = gap("info", "--db", db, "--name", "gap")
    assert "no longer there: name its new place" in " ".join(shown.out.split())


def test_all_tenants_are_copied_unless_one_is_named(tmp_path: Path, tiny_clip: Path) -> None:
    write_texts(tmp_path / "docs.jsonl", 2)
    db = tmp_path / "tenants.db"
    for tenant in ("acme", "globex"):
        gap("index", tmp_path, "--db", db, "--model", tiny_clip, "--tenant", tenant)

    one = gap("copy", "--db", db, "--to", tmp_path / "one.db", "--tenant", "acme")
    both = gap("copy", "--db", db, "--to", tmp_path / "both.db")

    assert one.code == both.code == 0, both.err
    assert list_tenants(str(tmp_path / "one.db")) == ["acme"]
    assert list_tenants(str(tmp_path / "both.db")) == ["acme", "globex"]
    assert "4 rows and 0 images copied" in both.out
    listed = gap("info", "--db", tmp_path / "both.db").out
    assert "gap, tenant 'acme'" in " ".join(listed.split())
