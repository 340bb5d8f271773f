from __future__ import annotations

from pathlib import Path

import pytest

from llama_index_gap.files import FileError, open_file, read_text


def test_reads_a_text_as_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffcafé\r\nlatte\rend".encode())

    assert read_text(tmp_path / "a.txt") == "café\nlatte\nend"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.txt", "no such file"),
        (".", "is a folder"),
        ("/dev/zero", "is not a regular file"),
        ("x" * 300, "cannot be read"),
        ("a\0", "is not a valid path"),
    ],
)
def test_refuses_what_is_no_file(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message):
        open_file(tmp_path / path)


def test_refuses_what_lies_outside_the_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")

    for path in ("root/link", "root/../secret"):
        with pytest.raises(FileError, match="lies outside root"):
            open_file(tmp_path / path, tmp_path / "root")
        with open_file(tmp_path / path, tmp_path) as file:
            assert file.read() == b"x"
