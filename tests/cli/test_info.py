from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import gap, rows

from llama_index_gap.cli.info import licence


def test_info_loads_no_model(demo: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_gap.index.models.DualEncoderEmbedding", None)

    shown = gap(
        "info", "--db", f"{demo / 'gap.db'}/", "--name", "gap"
    )  # as a shell completes the name of a folder
    facts = json.loads(gap("info", "--db", demo / "gap.db", "--name", "gap", "--json").out)

    assert shown.code == 0
    assert "23 rows of 16 dimensions in gap_text" in shown.out
    assert "11 rows of 16 dimensions in gap_image" in shown.out
    assert facts["database"] == str(demo / "gap.db")
    assert facts["collections"]["image"] == {"name": "gap_image", "rows": 11, "dimension": 16}
    assert [(role, model["name"]) for role, model in facts["models"].items()] == [
        ("text", str(tiny_clip))
    ]
    assert facts["images"] == "their own files"


def test_licences_are_known_without_loading(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")

    assert licence(str(tmp_path)) == "cc0-1.0"
    assert licence("jinaai/jina-clip-v2") == licence("jina") == "CC BY-NC 4.0"
    assert licence("no/such") is None


def test_delete_by_id(own_db: Path) -> None:
    shown = gap("delete", "ferry", "nope", "--db", own_db)

    assert (shown.code, shown.out) == (1, "3 rows deleted\n")
    assert shown.err == "error: no such document: nope\n"
    assert rows(own_db) == {"text": 21, "image": 10}


def test_delete_all_asks(own_db: Path) -> None:
    refused = gap("delete", "--all", "--db", own_db, answer="n\n")
    assert refused.code == 1
    assert "Delete all 34 rows of gap" in refused.err
    assert rows(own_db) == {"text": 23, "image": 11}

    assert gap("delete", "--all", "--db", own_db, "--yes").out == "34 rows deleted\n"
    assert rows(own_db) == {"text": 0, "image": 0}
    assert "Nothing was found" in gap("search", "ship", "--db", own_db).out
