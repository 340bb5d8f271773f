from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import gap, rows
from moved_rows import stored


@pytest.fixture
def root(demo: Path) -> tuple[str, Path]:
    """The image root of a moved index."""
    return "--image-root", demo / "corpus"


def test_another_model_and_other_dimensions(
    own_db: Path, other_clip: Path, root: tuple[str, Path]
) -> None:
    shown = gap("reembed", "--db", own_db, "--model", other_clip, *root)

    assert shown.code == 0, shown.err
    assert "23 texts and 11 images embedded, 0 unchanged, 0 skipped" in shown.out
    assert stored(str(own_db)).keys() == {"text_v1", "image_v1"}
    assert rows(own_db) == {"text": 23, "image": 11}, "opened with the stored model"
    facts = json.loads(gap("info", "--db", own_db, "--name", "gap", "--json").out)
    assert facts["models"]["text"]["name"] == str(other_clip)
    assert facts["collections"]["text"]["name"] == "gap_text_v1"

    again = json.loads(gap("reembed", "--db", own_db, "--model", other_clip, "--json").out)
    assert (again["rows"], again["unchanged"]) == ({}, 34)
    assert gap("reembed", "--db", own_db, "--dimensions", "8", *root).code == 0
    facts = json.loads(gap("info", "--db", own_db, "--name", "gap", "--json").out)
    assert facts["models"]["text"]["settings"]["dimensions"] == 8
    assert facts["collections"]["text"]["dimension"] == 8


def test_what_is_lost_is_told(
    own_db: Path, other_clip: Path, tmp_path: Path, root: tuple[str, Path]
) -> None:
    (tmp_path / "queries.txt").write_text("\n".join(f"query {n}" for n in range(40)))
    assert gap("learn", tmp_path / "queries.txt", "--db", own_db).code == 0

    shown = gap("reembed", "--db", own_db, "--model", other_clip, *root)

    assert "Lost: the learnt queries" in shown.out
    assert "'llama-gap learn'" in " ".join(shown.out.split())


def test_images_that_are_gone(demo: Path, tiny_clip: Path, other_clip: Path, here: Path) -> None:
    (here / "photos").mkdir()
    for name in ("ferry.png", "tram.png"):
        (here / "photos" / name).write_bytes((demo / "corpus" / "images" / name).read_bytes())
    gap("index", here / "photos", "--db", "gap.db", "--model", tiny_clip)
    (here / "photos" / "tram.png").unlink()

    shown = gap("reembed", "--db", "gap.db", "--model", other_clip)
    assert shown.code == 1
    assert "1 row cannot be embedded" in shown.err
    assert "--skip-unreadable" in shown.err
    assert rows(here / "gap.db")["image"] == 2

    shown = gap("reembed", "--db", "gap.db", "--model", other_clip, "--skip-unreadable")
    assert shown.code == 0
    assert "1 skipped" in shown.out
    assert "tram.png" in shown.out
    assert rows(here / "gap.db")["image"] == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "say what to change"),
        (["--image-model", "x"], 2, "needs --model too"),
        (["--dimensions", "0"], 2, "greater than or equal to 1"),
        (["--dimensions", "99"], 1, "has only 16"),
        (["--dimensions", "8", "--name", "nope"], 1, "its indexes are: gap"),
    ],
)
def test_what_cannot_be_embedded(demo: Path, options: list[str], code: int, message: str) -> None:
    shown = gap("reembed", "--db", demo / "gap.db", *options)

    assert shown.code == code
    assert message in " ".join(shown.err.replace("│", " ").split())
