"""Texts split to fit the model: 77 tokens; the tiny CLIP makes each letter a token."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import (
    Document,
    ImageNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.index.fitting import Fitted, fit_nodes, parts_of

WORDS = [f"word{number:03}" for number in range(40)]
LONG = " ".join(WORDS)  # 280 letters, at most 77 in a part


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(model_name=tiny_clip, device="cpu", dtype="float32")


def contents(fitted: Fitted) -> list[str]:
    return [node.get_content("embed") for node in fitted.nodes]


def test_each_part_fits_and_together_they_hold_every_word(model: DualEncoderEmbedding) -> None:
    node = TextNode(id_="a", text=LONG, metadata={"title": "A title"})
    fitted = fit_nodes([node, TextNode(id_="b", text="short")], model)
    assert (fitted.cut, fitted.parts, fitted.too_long) == (1, len(fitted.nodes) - 1, 0)
    assert max(model.count_tokens(contents(fitted))) <= 77
    assert all("A title" in each for each in contents(fitted)[:-1])
    parts = fitted.nodes[:-1]
    assert list(dict.fromkeys(" ".join(part.get_content() for part in parts).split())) == WORDS
    assert [part.node_id for part in parts[:3]] == ["a", "a#part-2", "a#part-3"]
    assert {part.ref_doc_id for part in parts} == {"a"}
    assert (node.text, node.ref_doc_id) == (LONG, None)
    assert contents(fit_nodes(fitted.nodes, model)) == contents(fitted)


def test_parts_stay_in_their_document(model: DualEncoderEmbedding) -> None:
    node = TextNode(id_="a", text=LONG)
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="doc", hash="1")
    assert {part.ref_doc_id for part in fit_nodes([node], model).nodes} == {"doc"}


def test_a_word_without_end_is_cut_too(model: DualEncoderEmbedding) -> None:
    fitted = fit_nodes([TextNode(text="x" * 1000)], model)
    assert fitted.cut == 1
    assert max(model.count_tokens(contents(fitted))) <= 77


def test_what_cannot_be_cut_is_counted(model: DualEncoderEmbedding) -> None:
    caption = ImageNode(id_="image", text=LONG, image_path="a.png")
    titled = TextNode(id_="titled", text=LONG, metadata={"title": "t" * 80})
    fitted = fit_nodes([caption, titled], model)
    assert fitted.nodes == [caption, titled]
    assert (fitted.cut, fitted.too_long) == (0, 2)


def test_models_that_do_not_count_leave_texts_whole() -> None:
    node = TextNode(text=LONG)
    assert fit_nodes([node], MockEmbedding(embed_dim=8)).nodes == [node]


def test_parts_are_found_by_their_numbers() -> None:
    stored = {"a", *(f"a#part-{number}" for number in range(2, 30)), "b"}
    asked: list[int] = []

    def existing(ids: list[str]) -> set[str]:
        asked.append(len(ids))
        return stored.intersection(ids)

    assert parts_of(["a", "b", "c"], existing) == stored - {"a", "b"}
    assert asked[0] == 3


def test_an_index_holds_the_whole_text_and_forgets_it_whole(
    model: DualEncoderEmbedding, tmp_path: Path
) -> None:
    long, short = TextNode(id_="a", text=LONG), TextNode(id_="a", text="short")
    with DualIndex.from_documents([long], str(tmp_path / "gap.db"), embed_model=model) as index:
        parts = index.count()["text"]
        assert index.report.cut_texts == 1
        assert index.report.cut_into == parts > 4
        assert f"1 texts were split into {parts} that fit the model" in index.report.summary()
        assert index.refresh_ref_docs([long]).unchanged == parts
        assert index.insert_nodes([long]).unchanged == parts
        (found,) = index.search(WORDS[-1])
        assert found.key == "a"
        index.insert_nodes([short])
        assert index.count()["text"] == 1
        index.insert_nodes([long])
        index.delete_nodes(["a"])
        assert index.count()["text"] == 0
        index.insert_nodes([long])
        index.delete_ref_doc("a")
        assert index.count()["text"] == 0


def test_chunk_size(model: DualEncoderEmbedding, tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(f'{{"id": "a", "text": "{LONG}"}}')
    whole = read_corpus(tmp_path)
    assert [len(whole.nodes), len(read_corpus(tmp_path, chunk_size=20).nodes) > 4] == [1, True]
    for size in (0, -1):
        with pytest.raises(ValueError, match=rf"chunk_size={size}: must be at least 1"):
            read_corpus(tmp_path, chunk_size=size)
    uri = str(tmp_path / "gap.db")
    with pytest.raises(ValueError, match="this corpus is already split; pass them to read_corpus"):
        DualIndex.from_documents(whole, uri, embed_model=model, chunk_size=9)
    documents = [Document(id_="a", text=LONG)]
    with DualIndex.from_documents(documents, uri, embed_model=model, chunk_size=8) as index:
        assert index.count()["text"] > 8
        assert index.report.cut_texts == 0
