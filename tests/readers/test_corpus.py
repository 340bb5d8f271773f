from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.node_parser import SentenceWindowNodeParser, TokenTextSplitter
from llama_index.core.schema import MetadataMode, NodeRelationship
from PIL import Image

from llama_index_gap.readers.corpus import Corpus, read_corpus
from llama_index_gap.readers.records import CorpusError, Skipped


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)
    return path


def jsonl(folder: Path, *documents: Any) -> Path:
    path = folder / "docs.jsonl"
    lines = (doc if isinstance(doc, str) else json.dumps(doc) for doc in documents)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


GOOD = {"id": "good", "text": "A good document."}


# --- what is read -------------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    write_image(tmp_path / "img" / "ship.png")
    path = jsonl(
        tmp_path,
        {
            "id": "a",
            "title": "Harbour",
            "text": "A ship left.",
            "images": [{"path": "img/ship.png", "alt": "a white ship", "size": [4, 3]}],
            "year": 2024,
        },
    )

    corpus = read_corpus(path)
    text, image = corpus.nodes

    assert (text.node_id, text.ref_doc_id, text.get_content()) == ("a#text-0", "a", "A ship left.")
    assert (image.node_id, image.ref_doc_id) == ("a#image-img/ship.png", "a")
    assert corpus.image_nodes[0].text == "a white ship"
    assert corpus.image_nodes[0].image_path == str(tmp_path / "img" / "ship.png")
    assert corpus.image_nodes[0].image_mimetype == "image/png"
    assert text.metadata == image.metadata == {"title": "Harbour", "year": 2024}
    assert corpus.skipped == []


def test_the_title_is_embedded_and_other_metadata_is_not(tmp_path: Path) -> None:
    corpus = read_corpus(jsonl(tmp_path, {"title": "Harbour", "text": "A ship.", "year": 2024}))
    node = corpus.nodes[0]

    assert node.get_content(MetadataMode.EMBED) == "title: Harbour\n\nA ship."
    assert "year: 2024" in node.get_content(MetadataMode.LLM)


def test_a_folder_with_docs_jsonl_is_read_as_that_file(tmp_path: Path) -> None:
    jsonl(tmp_path, GOOD)
    (tmp_path / "README.md").write_text("not a document")

    assert read_corpus(tmp_path).document_ids == ["good"]


@pytest.mark.parametrize(
    "images",
    [
        {"images": [{"path": "a.png", "caption": "red"}]},
        {"images": [{"path": "a.png", "alt": "red"}]},
        {"images": [{"path": "a.png", "caption": "", "alt": "red"}]},
        {"image": "a.png", "caption": "red"},
        {"image": "a.png", "alt": " red "},
        {"image": {"path": "a.png", "alt": "red"}},
        {"image": {"path": "a.png"}, "caption": "red"},
        {"image": "a.png", "caption": None, "alt": "red"},
        {"Image": "a.png", "Caption": "red"},
        {" IMAGES ": [{"path": "a.png", "alt": "red"}]},
    ],
)
def test_ways_to_name_an_image(images: dict[str, Any], tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")

    (node,) = read_corpus(jsonl(tmp_path, images)).image_nodes

    assert node.text == "red"
    assert node.metadata == {}


def test_an_image_without_a_caption_has_no_text(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")

    (node,) = read_corpus(jsonl(tmp_path, {"images": ["a.png"]})).image_nodes

    assert node.text == ""


def test_a_title_alone_is_a_text(tmp_path: Path) -> None:
    assert read_corpus(jsonl(tmp_path, {"title": "News"})).nodes[0].get_content() == "News"


def test_documents_without_an_id_are_named_after_their_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"text": "one"}, "", {"text": "two", "id": 7})

    assert read_corpus(path).document_ids == ["docs.jsonl:1", "7"]


def test_long_texts_are_cut_and_their_parts_know_each_other(tmp_path: Path) -> None:
    words = " ".join(f"word{i}." for i in range(600))

    corpus = read_corpus(jsonl(tmp_path, {"id": "a", "text": words, "excerpt": "x " * 2000}))
    first, second, *_ = corpus.nodes

    assert [node.node_id for node in corpus.nodes] == [
        f"a#text-{i}" for i in range(len(corpus.nodes))
    ]
    assert first.next_node is not None
    assert first.next_node.node_id == second.node_id
    assert second.relationships[NodeRelationship.SOURCE].node_id == "a"


def test_another_splitter_can_be_given(tmp_path: Path) -> None:
    splitter = TokenTextSplitter(chunk_size=5, chunk_overlap=0)
    path = jsonl(tmp_path, {"id": "a", "text": "one two three four five six seven eight"})

    nodes = read_corpus(path, splitter=splitter).nodes

    assert [node.node_id for node in nodes] == ["a#text-0", "a#text-1", "a#text-2"]
    assert nodes[0].get_content() == "one two three"


def test_one_image_used_by_two_documents_gives_two_nodes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = jsonl(
        tmp_path, {"id": "x", "images": ["a.png"]}, {"id": "y", "images": ["a.png", "a.png"]}
    )

    ids = [node.node_id for node in read_corpus(path).image_nodes]

    assert ids == ["x#image-a.png", "y#image-a.png", "y#image-a.png~2"]


def test_ids_do_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_image(tmp_path / name / "img" / "a.png")
        jsonl(tmp_path / name, {"id": "x", "text": "t", "images": ["img/a.png"]})

    first, second = (read_corpus(tmp_path / name) for name in ("one", "two"))

    assert [node.node_id for node in first.nodes] == [node.node_id for node in second.nodes]


def test_the_source_s_hash_changes_with_the_document(tmp_path: Path) -> None:
    def source_hash(**fields: Any) -> str | None:
        (node,) = read_corpus(jsonl(tmp_path, {"id": "a", "text": "t", **fields})).nodes
        return node.source_node.hash if node.source_node else None

    assert source_hash() == source_hash()
    assert len({source_hash(), source_hash(title="T"), source_hash(year=1)}) == 3


def test_csv(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    path = tmp_path / "catalogue.csv"
    path.write_text(
        "id,title,text,images,captions,price\n"
        '1,Lamp,"A lamp,\nwith a shade.",a.png | b.png,front|back,9.50\n'
        "2,Chair,,,,\n",
        encoding="utf-8-sig",
    )

    corpus = read_corpus(path)

    assert corpus.document_ids == ["1", "2"]
    assert [node.text for node in corpus.image_nodes] == ["front", "back"]
    assert corpus.nodes[0].get_content() == "A lamp,\nwith a shade."
    assert corpus.nodes[0].metadata == {"title": "Lamp", "price": "9.50"}


def test_csv_with_one_image_column(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "docs.csv").write_text("image,caption\na.png,red\n")

    assert [node.text for node in read_corpus(tmp_path).image_nodes] == ["red"]


def test_csv_leaves_the_module_s_limit_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    before = csv.field_size_limit()

    read_corpus(tmp_path / "a.csv")

    assert csv.field_size_limit() == before


def test_csv_columns_without_a_name_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,,\none,,\ntwo,,3\n")

    corpus = read_corpus(tmp_path / "a.csv")

    assert len(corpus.nodes) == 1
    assert corpus.skipped == [Skipped("a.csv:3", "has '3' in a column without a name")]


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\nx\thello, world\n")

    assert read_corpus(tmp_path / "a.tsv").nodes[0].get_content() == "hello, world"


def test_csv_with_long_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "word " * 50_000 + "\n")

    assert len(read_corpus(tmp_path / "a.csv").nodes) > 10


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
    (tmp_path / "notes.txt").write_text("x")

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


def test_a_folder_of_two_tables_is_ambiguous(tmp_path: Path) -> None:
    jsonl(tmp_path, GOOD)
    (tmp_path / "docs.csv").write_text("text\na\n")

    with pytest.raises(CorpusError, match=r"holds docs\.jsonl and docs\.csv; pass the one"):
        read_corpus(tmp_path)


def test_a_splitter_s_own_metadata_is_kept(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"title": "T", "text": "One. Two. Three.", "year": 1})
    splitter = SentenceWindowNodeParser.from_defaults(window_size=1)

    node = read_corpus(path, splitter=splitter).nodes[0]

    assert node.metadata["window"] == "One.  Two. "
    assert node.get_content(MetadataMode.EMBED) == "title: T\n\nOne."


def test_image_folder(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.JPG", "c.png", "d.png"):
        write_image(tmp_path / name)
    (tmp_path / "a.txt").write_text("a red square\n")
    (tmp_path / "c.png.txt").write_text("another")
    (tmp_path / "lonely.txt").write_text("no image")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    (tmp_path / "notes.docx").write_bytes(b"x")
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
        Skipped("notes.docx", "is not an image by its suffix"),
        Skipped("lonely.txt", "no image has this name"),
    ]


def test_images_elsewhere_are_read_when_the_root_allows_it(tmp_path: Path) -> None:
    write_image(tmp_path / "shared" / "a.png")
    (tmp_path / "docs").mkdir()
    path = jsonl(tmp_path / "docs", {"id": "x", "text": "t", "images": ["../shared/a.png"]})

    assert read_corpus(path).image_nodes == []
    (node,) = read_corpus(path, root=tmp_path).image_nodes
    assert node.node_id == "x#image-shared/a.png"


def test_a_relative_path_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "c" / "a.png")
    jsonl(tmp_path / "c", {"id": "x", "images": ["a.png"]})
    monkeypatch.chdir(tmp_path)

    (node,) = read_corpus("c").image_nodes

    assert Path(str(node.image_path)).is_absolute()


def test_summary_counts_everything(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = jsonl(tmp_path, {"id": "x", "text": "t", "images": ["a.png", "no.png"]}, "nonsense")

    assert read_corpus(path).summary() == (
        "1 documents: 1 passages, 1 images (0 with a caption); 2 skipped\n"
        "  1 × no such file\n"
        "  1 × is not JSON"
    )


# --- what is skipped, and why -------------------------------------------------------------------

SKIPPED: dict[str, tuple[Any, str]] = {
    "not JSON": ("{broken", "is not JSON; Expecting property name"),
    "two objects on a line": ('{"text": "a"} {"text": "b"}', "is not JSON; Extra data"),
    "a list": ([1], "is a JSON list, not an object"),
    "a text": ('"hello"', "is a JSON str, not an object"),
    "null": ("null", "is a JSON NoneType"),
    "NaN": ('{"text": "a", "score": NaN}', "holds NaN, which is not a number"),
    "Infinity": ('{"text": "a", "score": -Infinity}', "holds -Infinity"),
    "deep nesting": ('{"text": ' + "[" * 100_000, "nested too deeply"),
    "nothing in it": ({"id": "x"}, "has neither a text nor an image"),
    "empty text": ({"id": "x", "text": "  \n"}, "has neither a text nor an image"),
    "the same id again": ({"id": "good", "text": "t"}, "the id 'good' is taken"),
    "an id that is a node's": ({"id": "good#text-0", "text": "t"}, "the id 'good#text-0' is taken"),
    "an empty id": ({"id": " ", "text": "t"}, "its id is ' ', not a text or a number"),
    "a list as id": ({"id": [1], "text": "t"}, r"its id is \[1\]"),
    "a fraction as id": ({"id": 1.5, "text": "t"}, r"its id is 1\.5"),
    "a truth as id": ({"id": True, "text": "t"}, "its id is True"),
    "a number as text": ({"text": 5}, "its text is 5, not a text"),
    "a list as title": ({"title": ["a"], "text": "t"}, r"its title is \['a'\], not a text"),
    "a text as images": ({"images": "a.png"}, "its images are 'a.png', not a list"),
    "a number as image": ({"images": [3]}, "an image of it is 3"),
    "an image without a path": ({"images": [{"alt": "x"}]}, "has the path None, not a text"),
    "an empty path": ({"images": [""]}, "has the path '', not a text"),
    "a number as caption": ({"images": [{"path": "a", "alt": 3}]}, "the caption of 'a' is 3"),
    "image and images": ({"image": "a", "images": ["b"]}, "has both image and images"),
    "a number beyond all": ('{"text": "a", "score": 1e999}', "holds 1e999, which is not a number"),
    "a field twice": ('{"text": "a", "text": "b"}', "says text twice"),
    "a field in two spellings": ({"text": "a", "Text ": "b"}, "says text twice, once as Text"),
    "half a character in a caption": (
        '{"text": "t", "images": [{"path": "a.png", "alt": "\\ud83d"}]}',
        "holds half a character",
    ),
    "half a character": ('{"text": "\\ud83d"}', "holds half a character"),
    "half a character in metadata": ('{"text": "a", "m": "\\ud83d"}', "holds half a character"),
    "NUL": ('{"text": "a\\u0000b"}', "holds a NUL character"),
    "image missing": ({"text": "t", "images": ["no.png"]}, "no such file"),
    "image is a URL": ({"images": ["https://e.com/a.png"]}, "is a URL; readers fetch nothing"),
    "image is a data URI": ({"images": ["data:image/png;base64,x"]}, "is a URL"),
    "image outside": ({"images": ["../../etc/passwd"]}, "lies outside"),
    "image at an absolute path": ({"images": ["/etc/passwd"]}, "lies outside"),
    "image is a text file": ({"images": ["docs.jsonl"]}, "not an image"),
    "image is a folder": ({"images": ["."]}, "is a folder"),
    "image with a NUL": ({"images": ["a\0b"]}, "not a path"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_skips_with_its_reason_and_goes_on(case: str, tmp_path: Path) -> None:
    document, reason = SKIPPED[case]
    last = {"id": "last", "text": "The last document."}
    path = jsonl(tmp_path, GOOD, document, last)

    corpus = read_corpus(path)

    assert {"good", "last"} <= set(corpus.document_ids)
    assert len(corpus.skipped) == 1
    assert corpus.skipped[0].source.startswith("docs.jsonl:2")
    assert re.search(reason, corpus.skipped[0].reason), corpus.skipped[0]
    with pytest.raises(CorpusError, match="strict=True"):
        read_corpus(path, strict=True)


def test_a_document_stays_when_one_of_its_images_goes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = jsonl(tmp_path, {"id": "x", "text": "t", "images": ["no.png", "a.png"]})

    corpus = read_corpus(path)

    assert [node.node_id for node in corpus.nodes] == ["x#text-0", "x#image-a.png"]
    assert corpus.skipped == [Skipped("docs.jsonl:1, image no.png", "no such file")]


def test_two_documents_whose_nodes_would_have_one_id(tmp_path: Path) -> None:
    write_image(tmp_path / "b.png").rename(tmp_path / "b#text-0")
    path = jsonl(
        tmp_path, {"id": "a", "images": ["b#text-0"]}, {"id": "a#image-b", "text": "the same id"}
    )

    corpus = read_corpus(path)

    assert [node.node_id for node in corpus.nodes] == ["a#image-b#text-0"]
    assert "'a#image-b#text-0' is taken" in corpus.skipped[0].reason


def test_images_over_the_pixel_limit_are_skipped(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")

    corpus = read_corpus(jsonl(tmp_path, GOOD, {"images": ["a.png"]}), max_pixels=11)

    assert "4×3 is 12 pixels" in corpus.skipped[0].reason


def test_a_line_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() + b'\n{"text": "caf\xe9"}\n{"id": "last", "text": "x"}')

    corpus = read_corpus(path)

    assert corpus.document_ids == ["good", "last"]
    assert corpus.skipped[0].reason == "is not UTF-8; byte 0xe9 at position 13"


def test_rows_of_another_length_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,one\n2,two,extra\n3\n4,four\n5,,\n")

    corpus = read_corpus(path)

    assert corpus.document_ids == ["1", "4"]
    assert [skip.reason for skip in corpus.skipped] == [
        "has 1 cells more than the first line has columns",
        "has 1 cells fewer than the first line has columns",
        "has 1 cells more than the first line has columns",
    ]


def test_captions_must_match_images_in_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,images,captions\nok,,\nt,a.png|b.png,one\n")

    assert read_corpus(tmp_path / "a.csv").skipped[0].reason == "has 2 images but 1 captions"


def test_bad_markdown_pages_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\nx: [\n---\ntext")
    (tmp_path / "b.md").write_bytes(b"caf\xe9")
    (tmp_path / "c.md").write_text("fine")
    (tmp_path / "d.md").write_text("---\ntitle: [1]\n---\nx")

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["c.md"]
    assert [skip.source for skip in corpus.skipped] == ["a.md", "b.md", "d.md"]


def test_a_sidecar_that_is_not_utf8_leaves_the_image_without_a_caption(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")

    corpus = read_corpus(tmp_path)

    assert corpus.image_nodes[0].text == ""
    assert corpus.skipped[0].source == "a.txt"


# --- what cannot be read at all -----------------------------------------------------------------


def a_file(name: str, content: bytes = b"") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def a_folder(folder: Path) -> Path:
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "no", "no such file or folder"),
    "unknown suffix": (a_file("a.pdf"), r"\.pdf is not read"),
    "no suffix": (a_file("corpus"), "a file without a suffix is not read"),
    "one image": (a_file("a.png"), r"\.png is not read"),
    "empty folder": (a_folder, "no Markdown files and no images"),
    "empty JSONL": (a_file("a.jsonl"), "no document could be read .it holds none"),
    "JSONL of blank lines": (a_file("a.jsonl", b"\n \n"), "no document could be read"),
    "JSONL of nonsense": (a_file("a.jsonl", b"x\ny\n"), r"\(a\.jsonl:1: is not JSON"),
    "empty CSV": (a_file("a.csv"), "names no column that is read .*it has nothing"),
    "CSV with semicolons": (a_file("a.csv", b"id;text\n1;2\n"), "it has id;text; separate the col"),
    "CSV in UTF-16": (
        a_file("a.csv", "text\na\n".encode("utf-16")),
        "not UTF-8; .* save it as UTF-8",
    ),
    "CSV without known columns": (a_file("a.csv", b"name,price\n1,2\n"), "it has name, price"),
    "CSV with a column twice": (a_file("a.csv", b"text,text\n1,2\n"), "'text' stands twice"),
    "CSV that is not UTF-8": (a_file("a.csv", b"text\ncaf\xe9\n"), "is not UTF-8; byte 0xe9"),
    "CSV with an open quote": (
        a_file("a.csv", b'text\n"abc\n'),
        "is not CSV after line 1; unexpected end",
    ),
    "CSV of a header": (a_file("a.csv", b"id,text\n"), "no document could be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_cannot_be_read(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]

    with pytest.raises(CorpusError, match=message):
        read_corpus(make(tmp_path))


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


# --- properties ---------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(["id", "title", "text", "image", "images", "caption", "alt", "year"]), JSON
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(FIELDS, max_size=4))
def test_whatever_stands_in_the_fields_is_read_or_reported(
    tmp_path: Path, documents: list[dict[str, Any]]
) -> None:
    write_image(tmp_path / "a.png")
    corpus = read_corpus(jsonl(tmp_path, GOOD, *documents))

    ids = [node.node_id for node in corpus.nodes]
    assert len(ids) == len(set(ids))
    read = len(corpus.document_ids)
    reported = {skip.source.split(",")[0] for skip in corpus.skipped}
    assert read + len(reported) >= 1 + len(documents)
    assert all(node.ref_doc_id for node in corpus.nodes)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "tsv", "md"]))
def test_whatever_stands_in_a_file_is_read_or_refused(
    tmp_path: Path, data: bytes, suffix: str
) -> None:
    path = tmp_path / suffix / f"a.{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        assert read_corpus(path.parent if suffix == "md" else path).nodes
    except CorpusError as error:
        assert str(path.parent) in str(error)


# --- a real corpus ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blog(gap_shared: Path) -> Corpus:
    return read_corpus(gap_shared / "data" / "18f_blog")


def test_the_whole_blog_is_read_twice_with_the_same_ids(blog: Corpus, gap_shared: Path) -> None:
    again = read_corpus(gap_shared / "data" / "18f_blog")

    assert len(blog.document_ids) == 508
    assert [node.node_id for node in blog.nodes] == [node.node_id for node in again.nodes]
    assert [node.hash for node in blog.nodes] == [node.hash for node in again.nodes]
    assert len({node.node_id for node in blog.nodes}) == len(blog.nodes)


def test_the_blog_s_images_have_their_captions(blog: Corpus) -> None:
    assert len(blog.image_nodes) == 390
    assert len({node.image_path for node in blog.image_nodes}) == 367
    assert sum(not node.text for node in blog.image_nodes) == 11
    assert blog.skipped == []


def test_a_damaged_copy_of_the_blog_reports_what_it_lost(
    blog: Corpus, gap_shared: Path, tmp_path: Path
) -> None:
    source = gap_shared / "data" / "18f_blog"
    files = sorted((source / "images").iterdir())
    gone = {file.name for file in random.Random(0).sample(files, 20)}
    (tmp_path / "images").mkdir()
    for file in files:
        if file.name not in gone:
            (tmp_path / "images" / file.name).symlink_to(file)
    lines = (source / "docs.jsonl").read_text(encoding="utf-8").splitlines()
    lines[5] = lines[5][:100]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines), encoding="utf-8")

    corpus = read_corpus(tmp_path, root="/")

    lost = [node for node in blog.image_nodes if Path(str(node.image_path)).name in gone]
    assert len(corpus.document_ids) == 507
    assert len(corpus.skipped) == len(lost) + 1
    assert len(corpus.image_nodes) == 390 - len(lost)
