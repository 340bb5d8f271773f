"""Parts as several processes would write them, here one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from index_nodes import as_base64, of_document
from index_rows import assert_same_rows, rows_of
from llama_index.core.schema import ImageNode, TextNode

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.parts import Begun, Part
from llama_index_gap.index.writing import IndexReport
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.readers.records import Skipped
from llama_index_gap.store.rows import PLACE_KEY, SOURCE_KEY


@pytest.fixture
def other(clip: DualEncoderEmbedding, tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "other.db"), embed_model=clip) as opened:
        yield opened


def unbothered(begun: Begun) -> Begun:
    return begun


def test_a_part_is_written_as_insert_nodes_and_a_corpus_writes_it(
    index: DualIndex, other: DualIndex, nodes: list[TextNode], tmp_path: Path
) -> None:
    corpus = Corpus(
        list(nodes), [], path=tmp_path, places={"a": "docs.jsonl:1", "b": "docs.jsonl:2"}
    )
    places = {"a": "docs.jsonl:1"}

    first = Part(nodes[:2], path=tmp_path, source=str(tmp_path), places=places, whole=True)
    report = index.write_part(first, unbothered)
    second = Part(nodes[2:], path=tmp_path, source=str(tmp_path), places={"b": "docs.jsonl:2"})
    assert report == IndexReport(text_rows=2, image_rows=1)
    assert index.write_part(second, unbothered) == IndexReport(image_rows=1)

    assert other.refresh_ref_docs(corpus) == IndexReport(text_rows=2, image_rows=2)
    assert_same_rows(index, other)
    (row, *_) = rows_of(index)["text"].values()
    assert (row[SOURCE_KEY], row[PLACE_KEY]) == (str(tmp_path), "docs.jsonl")


def test_what_a_killed_worker_wrote_counts_as_written(
    index: DualIndex, nodes: list[TextNode]
) -> None:
    gone = TextNode(id_="a9", text="an old text", relationships=of_document("a"))
    index.insert_nodes([gone, nodes[0]])
    part = Part([*nodes], whole=True)
    begun: list[Begun] = []

    whole = index.write_part(part, lambda now: begun.append(now) or now)
    again = index.write_part(part, lambda now: begun.append(now) or begun[0])

    assert begun == [Begun({"text": 1, "image": 0}, 1), Begun({"text": 2, "image": 2}, 0)]
    assert whole == again == IndexReport(text_rows=1, image_rows=2, unchanged=1, deleted=1)
    assert index.write_part(part, unbothered) == IndexReport(unchanged=4)


def test_a_scattered_document_keeps_what_other_parts_hold(
    index: DualIndex, nodes: list[TextNode]
) -> None:
    index.write_part(Part(nodes[:1], whole=True), unbothered)

    index.write_part(Part(nodes[1:2], whole=True, scattered=frozenset({"a"})), unbothered)
    assert index.count() == {"text": 2, "image": 1}
    assert index.write_part(Part(nodes[1:2], whole=True), unbothered).deleted == 1


def test_images_of_base64_need_the_folder_that_all_share(
    index: DualIndex, noise_files: list[str]
) -> None:
    part = Part([ImageNode(id_="i", image=as_base64(noise_files[0]))])
    index.note_images(part.nodes, None)

    with index.sign_in_storage() as sign:
        assert index.write_part(replace(part, sign=sign), unbothered).image_rows == 1
    with pytest.raises(ValueError, match=r"does not share this folder.* storage_dir="):
        index.write_part(replace(part, sign=sign), unbothered)


def test_documents_that_vanished_are_counted_and_unreadable_ones_are_not(
    index: DualIndex, nodes: list[TextNode], tmp_path: Path
) -> None:
    places = {"a": "docs.jsonl:1", "b": "b.md"}
    index.write_part(Part(nodes, source="blog", places=places, whole=True), unbothered)
    read = Corpus([], [], path=tmp_path, places={"a": "docs.jsonl:1"})

    assert index.end_parts(read, "blog", lambda document: document == "a") == 1
    assert index.end_parts(read, "blog", lambda document: True) == 0
    assert index.end_parts(read, "other", lambda document: False) == 0
    unreadable = replace(read, skipped=[Skipped("b.md", "is locked")])
    assert index.end_parts(unreadable, "blog", lambda document: document == "a") == 0


def test_another_process_opens_it_with_whole_paths(
    clip: DualEncoderEmbedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=clip, storage_dir="kept", image_root="photos") as index:
        opening = index.opening()

    assert opening["storage_dir"] == tmp_path.resolve() / "kept"
    assert opening["image_root"] == [tmp_path.resolve() / "photos"]
    assert (opening["embed_model"], opening["image_embed_model"]) == (clip, None)
    with DualIndex(**opening) as again:
        assert again.count() == {"text": 0, "image": 0}
