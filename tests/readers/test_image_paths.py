from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import pytest
from small_corpora import write_image

from llama_index_gap.readers.image_paths import ImagePaths


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("img/a.png", "img\\a.png"),
        ("img/a.png", ".\\img\\a.png"),
        ("a b.png", "a%20b.png"),
        ("a%20b.png", "a%20b.png"),
        ("a b.png", " a b.png "),
        ("a.png", "a.png?v=1"),
        ("a.png", "/a.png"),
        (normalize("NFD", "é.png"), normalize("NFC", "é.png")),
        (normalize("NFC", "é.png"), normalize("NFD", "é.png")),
    ],
)
def test_paths_as_other_systems_write_them(file: str, path: str, tmp_path: Path) -> None:
    write_image(tmp_path / file)

    assert ImagePaths(tmp_path, tmp_path).find(path) == tmp_path / file


@pytest.mark.parametrize("root", ["media", "."])
@pytest.mark.parametrize("media", ["media", "media/catalog/product"])
def test_a_path_with_a_slash_counts_from_the_root_that_is_named(
    media: str, root: str, tmp_path: Path
) -> None:
    image = write_image(tmp_path / media / "m" / "c.png")
    (tmp_path / "export").mkdir()

    assert ImagePaths(tmp_path / "export", tmp_path / root).find("/m/c.png") == image


def test_without_a_named_root_the_hint_says_how_to_name_it(tmp_path: Path) -> None:
    write_image(tmp_path / "media" / "m" / "c.png")
    paths = ImagePaths(tmp_path, tmp_path)

    assert not paths.find("/m/c.png").is_file()
    assert f"it lies below media: pass root={tmp_path}/media (--root" in paths.hint("/m/c.png")
    assert "if such paths start at a shop's folder" in paths.hint("/x.png")
    assert paths.hint("x.png") == ""


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "a/../../secret.png", "\x00"])
def test_no_path_leads_out_of_the_root(path: str, tmp_path: Path) -> None:
    write_image(tmp_path / "secret.png")
    folder = tmp_path / "corpus"
    folder.mkdir()
    paths = ImagePaths(folder, folder)

    assert paths.find(path) == folder / path  # unchanged: opening it is refused
    assert "pass root=" not in paths.hint(path)


@pytest.mark.parametrize("path", ["/x.png", "x.png"])
def test_what_is_not_there_is_missed_below_a_named_root(path: str, tmp_path: Path) -> None:
    media = tmp_path / "media"

    assert ImagePaths(tmp_path, media).find(path) == media / "x.png"
    assert ImagePaths(tmp_path, media).hint(path) == ""
