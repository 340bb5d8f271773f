from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.node_parser import SentenceWindowNodeParser
from llama_index.core.schema import MetadataMode, NodeRelationship
from small_corpora import GOOD, jsonl, write_image

from llama_index_gap.readers.corpus import corpus_from_records, read_corpus
from llama_index_gap.readers.records import CorpusError, Skipped


def test_the_title_is_embedded_and_other_metadata_is_not(tmp_path: Path) -> None:
    corpus = read_corpus(jsonl(tmp_path, {"title": "Harbour", "text": "A ship.", "year": 2024}))
    node = corpus.nodes[0]

    assert node.get_content(MetadataMode.EMBED) == "title: Harbour\n\nA ship."
    assert "year: 2024" in node.get_content(MetadataMode.LLM)


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


def test_a_splitter_s_own_metadata_is_kept(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"title": "T", "text": "One. Two. Three.", "year": 1})
    splitter = SentenceWindowNodeParser.from_defaults(window_size=1)

    node = read_corpus(path, splitter=splitter).nodes[0]

    assert node.metadata["window"] == "One.  Two. "
    assert node.get_content(MetadataMode.EMBED) == "title: T\n\nOne."


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
    "the same id again": ({"id": "good", "text": "t"}, "the id 'good' is already taken"),
    "an id that is a node's": (
        {"id": "good#text-0", "text": "t"},
        "the id 'good#text-0' is already taken",
    ),
    "an empty id": ({"id": " ", "text": "t"}, "its id is ' ', not a text or a number"),
    "a list as id": ({"id": [1], "text": "t"}, r"its id is \[1\]"),
    "a fraction as id": ({"id": 1.5, "text": "t"}, r"its id is 1\.5"),
    "a truth as id": ({"id": True, "text": "t"}, "its id is True"),
    "a number as text": ({"text": 5}, "its text is 5, not a text"),
    "a list as title": ({"title": ["a"], "text": "t"}, r"its title is \['a'\], not a text"),
    "a text as images": ({"images": "a.png"}, "its images are 'a.png', not a list"),
    "a number as image": (
        {"images": [3]},
        "one of its images is 3, not a path or an object with one",
    ),
    "an image without a path": ({"images": [{"alt": "x"}]}, "has the path None, not a text"),
    "an empty path": ({"images": [""]}, "has the path '', not a text"),
    "a number as caption": ({"images": [{"path": "a", "alt": 3}]}, "the caption of 'a' is 3"),
    "image and images": ({"image": "a", "images": ["b"]}, "has both image and images"),
    "a number beyond all": ('{"text": "a", "score": 1e999}', "holds 1e999, which is not a number"),
    "a field twice": ('{"text": "a", "text": "b"}', "has text twice"),
    "a field in two spellings": ({"text": "a", "Text ": "b"}, "has text twice, once as Text"),
    "half a character in a caption": (
        '{"text": "t", "images": [{"path": "a.png", "alt": "\\ud83d"}]}',
        "holds half of a surrogate pair",
    ),
    "half a character": ('{"text": "\\ud83d"}', "holds half of a surrogate pair"),
    "half a character in metadata": (
        '{"text": "a", "m": "\\ud83d"}',
        "holds half of a surrogate pair",
    ),
    "NUL": ('{"text": "a\\u0000b"}', "holds a NUL character"),
    "image missing": ({"text": "t", "images": ["no.png"]}, "no such file"),
    "image is a URL": ({"images": ["https://e.com/a.png"]}, "is a URL; readers fetch nothing"),
    "image is a data URI": ({"images": ["data:image/png;base64,x"]}, "is a URL"),
    "image outside": ({"images": ["../../etc/passwd"]}, "lies outside"),
    "image at an absolute path": ({"images": ["/etc/passwd"]}, "lies outside"),
    "image is a text file": ({"images": ["docs.jsonl"]}, "not an image"),
    "image is a folder": ({"images": ["."]}, "is a folder"),
    "image with a NUL": ({"images": ["a\0b"]}, "is not a valid path"),
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
    assert "'a#image-b#text-0' is already taken" in corpus.skipped[0].reason


def test_images_over_the_pixel_limit_are_skipped(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")

    corpus = read_corpus(jsonl(tmp_path, GOOD, {"images": ["a.png"]}), max_pixels=11)

    assert "4×3 is 12 pixels" in corpus.skipped[0].reason


def nested(levels: int, *, around: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = "the inmost"
    for _ in range(levels):
        value = around(value)
    return value


@pytest.mark.parametrize("around", [lambda inner: [inner], lambda inner: {"a": inner}])
@pytest.mark.parametrize("levels", [51, 300, 100_000])
def test_metadata_nested_too_deeply_is_skipped(
    levels: int, around: Callable[[Any], Any], tmp_path: Path
) -> None:
    deep = {"text": "t", "tags": nested(levels, around=around)}
    fine = {"text": "t", "tags": nested(50, around=around)}

    corpus = corpus_from_records([GOOD, deep, fine], tmp_path)

    assert corpus.document_ids == ["good", "document 3"]
    assert corpus.skipped == [
        Skipped("document 2", "is nested too deeply; at most 50 levels are read")
    ]


def test_images_nested_too_deeply_are_skipped(tmp_path: Path) -> None:
    corpus = corpus_from_records([GOOD, {"text": "t", "images": nested(100_000)}], tmp_path)

    assert "is nested too deeply" in corpus.skipped[0].reason
