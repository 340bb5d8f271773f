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
        "is a URL; readers fetch nothing: download it first",
        "looks like an image but is not valid Markdown; ![x](my pic.png)",
        "its front matter has a field text; the page's own text is used",
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


# --- files that a corpus must not show ----------------------------------------------------------


@pytest.mark.parametrize("name", ["pipe.md", "a.txt", "a.png.txt"])
def test_a_fifo_is_skipped_and_hangs_nothing(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    if name.endswith(".md"):
        (tmp_path / "b.md").write_text("A page.\n\n![](a.png)")
    os.mkfifo(tmp_path / name)

    corpus = read_corpus(tmp_path)

    assert len(corpus.image_nodes) == 1
    assert corpus.skipped == [Skipped(name, "is not a regular file")]


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
        Skipped(
            name,
            f"lies outside root={folder} once links are followed; only files below it are opened",
        )
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


def test_a_folder_that_cannot_be_listed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.md").write_text("A day.")
    listed = os.scandir

    def closed(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)

    assert read_corpus(tmp_path).skipped == [
        Skipped("closed", "cannot be listed (Permission denied)")
    ]


# --- pages and images side by side ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "about.md", "notes.html"])
def test_photos_with_a_page_beside_them_stay_documents(name: str, tmp_path: Path) -> None:
    for photo in ("a.png", "b.png"):
        write_image(tmp_path / photo)
    (tmp_path / name).write_text("Holidays.")

    corpus = read_corpus(tmp_path)

    assert sorted(corpus.document_ids) == sorted([name, "a.png", "b.png"])
    assert corpus.skipped == []


def test_photos_beside_a_readme_keep_their_captions(tmp_path: Path) -> None:
    for photo in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / photo)
    (tmp_path / "b.txt").write_text("a caption")
    (tmp_path / "README.md").write_text("![one of them](a.png)")

    corpus = read_corpus(tmp_path)

    assert [(n.ref_doc_id, n.text) for n in corpus.image_nodes] == [
        ("README.md", "one of them"),
        ("b.png", "a caption"),
        ("c.png", ""),
    ]
    assert corpus.skipped == []


def test_judged_queries_beside_pages_are_no_part_of_the_corpus(tmp_path: Path) -> None:
    """They were reported as tables that are not read."""
    (tmp_path / "a.md").write_text("A ferry.")
    (tmp_path / "deep").mkdir()
    for name in ("queries.jsonl", "queries-spoken.jsonl", "deep/queries.jsonl", "sales.jsonl"):
        (tmp_path / name).write_text("{}")

    corpus = read_corpus(tmp_path)
    assert [skip.source for skip in corpus.skipped] == ["deep/queries.jsonl", "sales.jsonl"]


def test_texts_alone_are_pages(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "robots.txt").write_text("User-agent: *")

    assert read_corpus(tmp_path).document_ids == ["a.txt"]


@pytest.mark.parametrize("name", ["a.md", "a.html", "a.txt", "a.mdx"])
def test_one_page_is_a_corpus(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "b.png")
    (tmp_path / name).write_text('<p>Text</p><img src="b.png" alt="B">')
    (tmp_path / "c.md").write_text("Another.")

    corpus = read_corpus(tmp_path / name)

    assert corpus.document_ids == [name]
    assert len(corpus.image_nodes) == (0 if name == "a.txt" else 1)
    assert corpus.skipped == []


def test_drafts_are_read_when_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "_drafts").mkdir()
    (tmp_path / "_drafts" / "a.md").write_text("A draft.")
    (tmp_path / "b.md").write_text("---\ndraft: true\n---\nAnother. ![](a.png)")
    (tmp_path / "c.md").write_text("A page.")

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["c.md"]
    reasons = {skip.source: skip.reason for skip in corpus.skipped}
    assert "is a draft; it lies in _drafts" in reasons["_drafts/a.md"]
    assert "is a draft; draft: true" in reasons["b.md"]
    assert reasons["a.png"].startswith("only a draft shows this image")
    assert "2 × is a draft" in corpus.summary()
    whole = read_corpus(tmp_path, drafts=True)
    assert whole.document_ids == ["_drafts/a.md", "b.md", "c.md"]
    assert whole.skipped == []


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("a.docx", "convert it to PDF or HTML"),
        ("a.pptx", "convert it to PDF or HTML"),
        ("a.xlsx", "save it as CSV"),
        ("a.rst", "pandoc"),
        ("a.svg", "convert it to PNG"),
        ("a.csv", "pass it on its own"),
        ("a.zip", "unpack it"),
        ("a.js", "holds no page"),
        ("a.xyz", "neither a page nor an image"),
    ],
)
def test_a_file_that_is_not_read_is_told_with_the_way_out(
    name: str, way_out: str, tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text("A page.")
    (tmp_path / name).write_bytes(b"x")

    (skip,) = read_corpus(tmp_path).skipped

    assert skip.source == name
    assert way_out in skip.reason


def test_names_differ_in_case_and_form_of_unicode_only(tmp_path: Path) -> None:
    for name in ("img/Cafe\u0301.PNG", "img/b.png"):
        write_image(tmp_path / name)
    (tmp_path / "a.md").write_text("![a](img/caf\u00e9.png) ![b](IMG/B.png) ![c](img/c.png)")

    corpus = read_corpus(tmp_path)

    assert [node.text for node in corpus.image_nodes] == ["a", "b"]
    assert [skip.source for skip in corpus.skipped] == ["a.md, image img/c.png"]


def test_a_name_that_fits_exactly_comes_first(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        write_image(tmp_path / name)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell cases apart")
    (tmp_path / "a.md").write_text("![x](A.png)")

    (image,) = read_corpus(tmp_path).image_nodes

    assert Path(str(image.image_path)).name == "A.png"


def test_the_cases(gap_shared: Path) -> None:
    cases = gap_shared / "cases"
    for folder in ("hugo-site", "hugo-site/content"):
        assert [n.text for n in read_corpus(cases / folder).image_nodes] == ["Pie", "A pie"]
    dialects = read_corpus(cases / "dialects")
    assert {(n.ref_doc_id, Path(str(n.image_path)).name, n.text) for n in dialects.image_nodes} >= {
        ("01-figure.md", "a.png", "A caption of the figure"),
        ("03-linked.md", "d.png", "thumb"),
        ("10-obsidian.md", "obs.png", "a sunset"),
    }
    assert "17-draft.md" not in dialects.document_ids
    assert "17-draft.md" in read_corpus(cases / "dialects", drafts=True).document_ids
    herbs = read_corpus(cases / "tab-front-matter")
    assert herbs.nodes[0].metadata["tags"] == ["spice", "dried"]
    photos = read_corpus(cases / "readme-in-photos")
    assert (len(photos.image_nodes), len(photos.document_ids)) == (2, 3)
