from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from llama_index_gap.images.folders import (
    ImageFolders,
    forget_old_images,
    is_made,
    made_images,
)

HASH = "0" * 64 + ".png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("new/cats/a.png", "new/b.png", f"kept/{HASH}", "kept/own.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(tmp_path / name)
    (tmp_path / "new" / "in.png").symlink_to(tmp_path / "new" / "b.png")
    (tmp_path / "new" / "out.png").symlink_to(tmp_path / "kept" / "own.png")
    return tmp_path


def test_files_below_the_folders_are_held_links_followed(folder: Path) -> None:
    folders = ImageFolders([folder / "new"], storage=folder / "kept")
    held = ["new/b.png", "new/in.png", f"kept/{HASH}", "new/nothing.png"]
    for name in [*held, "new/out.png", "kept/own.png", "new/../kept/own.png", f"kept/x/{HASH}"]:
        assert folders.hold(folder / name) == (name in held), name
    folders.allow([folder / "kept"])
    assert folders.hold(folder / "new" / "out.png")


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("/old/corpus/cats/a.png", "new/cats/a.png"),
        ("/old/corpus/a.png", None),  # the same name is not the same image
        ("/older/b.png", None),
        ("cats/a.png", "new/cats/a.png"),
        ("/old/corpus/../corpus/out.png", None),
        (f"/another machine/{HASH}", f"kept/{HASH}"),
        ("/another machine/own.png", None),
        ("/old/corpus/\0", None),
        ("/old/corpus/" + "x" * 5000, None),
    ],
)
def test_a_moved_image_is_found_at_its_place_below(
    stored: str, found: str | None, folder: Path
) -> None:
    folders = ImageFolders([folder / "new"], ["/old/corpus"], folder / "kept")
    assert folders.find(stored) == (stored if found is None else str(folder / found))
    assert folders.find(str(folder / "new" / "b.png")) == str(folder / "new" / "b.png")


def test_the_folders_in_words() -> None:
    assert str(ImageFolders([])) == "none"
    assert str(ImageFolders(["/a", "/b", "/c", "/d", "/e"])) == "/a, /b, /c, … and 2 more"


def test_images_that_readers_made_go_when_nobody_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = made_images()
    folder.mkdir(parents=True)
    old, new, other = folder / f"{'0' * 64}.png", folder / f"{'1' * 64}.png", folder / "mine.png"
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))

    forget_old_images()

    assert sorted(folder.iterdir()) == [new, other]
    assert is_made(new)
    assert not is_made(other)
    assert not is_made(tmp_path / new.name)


def test_a_folder_above_the_images_own_finds_them_too(tmp_path: Path) -> None:
    """Only /old/corpus/images was recorded, and the user names the corpus' new place."""
    (tmp_path / "corpus" / "images").mkdir(parents=True)
    image = tmp_path / "corpus" / "images" / "a.png"
    image.touch()
    for root in (tmp_path / "corpus" / "images", tmp_path / "corpus", tmp_path):
        folders = ImageFolders([root], ["/old/corpus/images"])
        assert folders.find("/old/corpus/images/a.png") == str(image)
    deep = "/" + "x/" * 2000
    assert ImageFolders([tmp_path], [deep]).find(f"{deep}a.png") == f"{deep}a.png"
