from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from small_corpora import write_image

from llama_index_gap.readers.corpus import read_corpus
from llama_index_gap.readers.records import CorpusError, Skipped


def test_markdown_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "posts" / "ship.png")
    write_image(tmp_path / "img" / "map.png")
    write_image(tmp_path / "img" / "unused.png")
    (tmp_path / "posts" / "a.md").write_text(
        "---\ntitle: Out at sea\nauthor: Ann\n---\nA day.\n\n"
        "![a ship](ship.png)\n![map](/img/map.png)\n"
    )
    (tmp_path / "b.md").write_text("# Heading\n\nAnother day.\n")

    corpus = read_corpus(tmp_path)
    by_id = {node.node_id: node for node in corpus.nodes}

    assert corpus.document_ids == ["b.md", "posts/a.md"]
    assert list(by_id) == [
        "b.md#text-0",
        "posts/a.md#text-0",
        "posts/a.md#image-posts/ship.png",
        "posts/a.md#image-img/map.png",
    ]
    assert by_id["posts/a.md#text-0"].metadata == {"title": "Out at sea", "author": "Ann"}
    assert by_id["b.md#text-0"].metadata == {"title": "Heading"}
    assert [node.text for node in corpus.image_nodes] == ["a ship", "map"]
    assert [skip.source for skip in corpus.skipped] == ["img/unused.png"]
    assert corpus.skipped[0].reason.startswith("no page shows this image")


def test_images_of_front_matter(tmp_path: Path) -> None:
    for name in ("img/top.png", "posts/side.png"):
        write_image(tmp_path / name)
    (tmp_path / "posts" / "a.md").write_text(
        "---\ntitle: 2024\nimages: [/img/top.png, {path: side.png, alt: a side}]\n---\nText.\n"
    )

    corpus = read_corpus(tmp_path)

    assert corpus.nodes[0].metadata == {"title": "2024"}
    assert [(node.node_id, node.text) for node in corpus.image_nodes] == [
        ("posts/a.md#image-img/top.png", ""),
        ("posts/a.md#image-posts/side.png", "a side"),
    ]
    assert corpus.skipped == []


def test_what_a_page_leaves_out_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ntext: other\n---\nText ![x](my pic.png) ![y](//c/a.png)")
    (tmp_path / "notes.dat").write_text("x")

    reasons = [skip.reason for skip in read_corpus(tmp_path).skipped]

    assert reasons == [
        "is a URL; readers fetch nothing, download it first",
        "looks like an image, but is no Markdown; ![x](my pic.png)",
        "its front matter says text; the page's own is taken",
        "is neither a page nor an image by its suffix",
    ]


def test_links_are_followed_and_broken_ones_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "a.png")
    corpus_folder = tmp_path / "corpus"
    write_image(corpus_folder / "b.png")
    (corpus_folder / "linked").symlink_to(tmp_path / "elsewhere")
    (corpus_folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (corpus_folder / "round").symlink_to(corpus_folder)

    corpus = read_corpus(corpus_folder, root=tmp_path)

    assert corpus.document_ids == ["b.png", "linked/a.png"]
    assert corpus.skipped == [Skipped("gone.png", "no such file")]
    outside = read_corpus(corpus_folder).skipped
    assert f"lies outside root={corpus_folder}" in outside[1].reason


def test_image_folder(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.JPG", "c.png", "d.png"):
        write_image(tmp_path / name)
    (tmp_path / "a.txt").write_text("a red square\n")
    (tmp_path / "c.png.txt").write_text("another")
    (tmp_path / "lonely.txt").write_text("no image")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    (tmp_path / "notes.dat").write_bytes(b"x")
    (tmp_path / ".hidden.png").write_bytes(b"x")

    corpus = read_corpus(tmp_path)

    assert [(node.node_id, node.text) for node in corpus.image_nodes] == [
        ("a.png#image-a.png", "a red square"),
        ("c.png#image-c.png", "another"),
        ("d.png#image-d.png", ""),
        ("sub/b.JPG#image-sub/b.JPG", ""),
    ]
    assert corpus.skipped == [
        Skipped("IMG_1.HEIC", "is HEIC, which is not read; convert it to JPEG or PNG"),
        Skipped("notes.dat", "is not an image by its suffix"),
        Skipped("lonely.txt", "no image has this name"),
    ]


def test_bad_markdown_pages_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\nx: [\n---\ntext")
    (tmp_path / "b.md").write_bytes(b"caf\xe9")
    (tmp_path / "c.md").write_text("fine")
    (tmp_path / "d.md").write_text("---\ntitle: [1]\n---\nx")

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["c.md"]
    assert [skip.source for skip in corpus.skipped] == ["a.md", "b.md", "d.md"]


def test_a_caption_file_that_is_not_utf8_leaves_the_image_without_a_caption(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")

    corpus = read_corpus(tmp_path)

    assert corpus.image_nodes[0].text == ""
    assert corpus.skipped[0].source == "a.txt"


def test_an_unreadable_page_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "b.md").write_text("y")
    opened = Path.open

    def forbidden(path: Path, *mode: str) -> Any:
        if path.name == "a.md":
            raise PermissionError(13, "Permission denied")
        return opened(path, *mode)

    monkeypatch.setattr(Path, "open", forbidden)

    assert read_corpus(tmp_path).skipped == [Skipped("a.md", "cannot be read (Permission denied)")]


# --- files that a corpus may not hold -----------------------------------------------------------


@pytest.mark.parametrize("name", ["pipe.md", "a.txt", "a.png.txt"])
def test_a_fifo_is_skipped_and_hangs_nothing(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    if name.endswith(".md"):
        (tmp_path / "b.md").write_text("A page.\n\n![](a.png)")
    os.mkfifo(tmp_path / name)

    corpus = read_corpus(tmp_path)

    assert len(corpus.image_nodes) == 1
    assert corpus.skipped == [Skipped(name, "is no regular file")]


@pytest.mark.parametrize("name", ["page.md", "a.txt"])
def test_a_text_outside_is_skipped_and_one_inside_is_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a password")
    folder = tmp_path / "corpus"
    write_image(folder / "a.png")
    if name.endswith(".md"):
        (folder / "b.md").write_text("A page.\n\n![](a.png)")
    (folder / name).symlink_to(tmp_path / "secret")

    corpus = read_corpus(folder)

    assert corpus.skipped == [
        Skipped(name, f"lies outside root={folder}; only files below it are opened, links followed")
    ]
    assert not any("password" in node.get_content() for node in corpus.nodes)
    within = read_corpus(folder, root=tmp_path)
    assert within.skipped == []
    assert any("password" in node.get_content() for node in within.nodes)


def test_a_folder_outside_is_not_walked(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.md").write_text("A page.")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CorpusError, match=r"no images; linked lies outside root="):
        read_corpus(folder)
    (folder / "b.md").write_text("Another page.")
    assert [skip.source for skip in read_corpus(folder).skipped] == ["linked"]
    assert read_corpus(folder, root=tmp_path).document_ids == ["b.md", "linked/deep/a.md"]


def test_a_text_that_is_too_large_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_gap.files.MAX_BYTES", 100)
    (tmp_path / "a.md").write_text("x" * 101)
    (tmp_path / "b.md").write_text("x" * 100)

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["b.md"]
    assert corpus.skipped == [Skipped("a.md", "is larger than 100 bytes")]


@pytest.mark.parametrize(
    "front_matter",
    [
        "x: " + "[" * 60 + "]" * 60,
        "x: " + "[" * 300 + "]" * 300,
        "x: " + "{a: " * 5000 + "1" + "}" * 5000,
        "\n".join(" " * depth + "a:" for depth in range(300)),
    ],
)
def test_front_matter_that_is_nested_deeply_costs_its_page_only(
    front_matter: str, tmp_path: Path
) -> None:
    (tmp_path / "a.md").write_text(f"---\n{front_matter}\n---\nA page.")
    (tmp_path / "b.md").write_text("Another page.")

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["b.md"]
    assert [skip.source for skip in corpus.skipped] == ["a.md"]
    assert re.search("nested too deeply|recursion", corpus.skipped[0].reason)


def test_paths_that_nothing_can_resolve_cost_no_other_page(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("![x](a%00.png)")
    (tmp_path / "b.md").write_text("A page. ![x](loop.png)")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["b.md"]
    assert [skip.source for skip in corpus.skipped] == [
        "a.md, image a\0.png",
        "b.md, image loop.png",
    ]
