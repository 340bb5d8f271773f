from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import ImageNode
from PIL import Image

from llama_index_gap.evaluation.datasets import DatasetError, read_dataset, read_queries


def image(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def write_lines(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def edis(tmp_path: Path) -> Path:
    """Three articles in EDIS format; one image is missing."""
    folder = tmp_path / "edis"
    image(folder / "images" / "bbc" / "1.png")
    image(folder / "usa" / "2.png", "blue")
    pool = [
        {"id": "d1", "image": "bbc/1.png", "headline": "Storm hits the coast"},
        {"id": "d2", "image": "usa/2.png", "headline": "Team wins the cup"},
        {"id": "d3", "image": "usa/3.png", "headline": "Team loses the cup"},
    ]
    (folder / "EDIS_candidates_1m.json").write_text(json.dumps(pool))
    candidates = [
        {"candidate_id": d["id"], "image": d["image"], "headline": d["headline"], "score": score}
        for d, score in zip(pool, [1, 3, 2], strict=True)
    ]
    queries = [{"query": "players lift a trophy", "candidates": candidates}]
    (folder / "EDIS_test.json").write_text(json.dumps(queries))
    return folder


def test_edis(edis: Path) -> None:
    dataset = read_dataset(edis)

    assert dataset.relevant_from == 3
    assert [query.text for query in dataset.queries] == ["players lift a trophy"]
    assert dataset.qrels == {dataset.queries[0].id: {"d1": 1, "d2": 3, "d3": 2}}
    assert dataset.corpus.document_ids == ["d1", "d2", "d3"]
    assert [node.ref_doc_id for node in dataset.corpus.image_nodes] == ["d1", "d2"]
    assert dataset.corpus.text_nodes[0].get_content() == "Storm hits the coast"
    assert "no such file" in dataset.corpus.skipped[0].reason
    assert dataset.notes == ("1 parts of the corpus were skipped",)


def test_edis_without_its_pool_searches_the_candidates_and_says_so(edis: Path) -> None:
    (edis / "EDIS_candidates_1m.json").unlink()

    dataset = read_dataset(edis)

    assert dataset.corpus.document_ids == ["d1", "d2", "d3"]
    assert "far easier than the published task" in dataset.notes[0]


def test_another_split_is_asked_for_by_name(edis: Path) -> None:
    with pytest.raises(DatasetError, match=r"EDIS_val\.json: no such file"):
        read_dataset(edis, split="val")


def test_mixbench(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    image(tmp_path / "images" / "q.png")
    write_lines(
        tmp_path / "mixed_corpus.jsonl",
        {"corpus_id": 1, "text": "a ferry", "image": ""},
        {"corpus_id": 2, "text": "", "image": "images/1.png"},
        {"corpus_id": 3, "text": "a tram", "image": "images/1.png"},
    )
    write_lines(tmp_path / "corpus.jsonl", {"corpus_id": 9, "text": "not this one"})
    write_lines(
        tmp_path / "queries.jsonl",
        {"query_id": "7", "text": "ship", "image": None},
        {"query_id": "8", "text": "what is this?", "image": "images/q.png"},
        {"query_id": "9", "text": "nobody judged this"},
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "qrels.tsv").write_text(
        "query_id\tcorpus_id\tscore\n7\t1\t1\n8\t3\t1\n8\t4\t1\n"
    )

    dataset = read_dataset(tmp_path)

    assert dataset.corpus.document_ids == ["1", "2", "3"]
    kinds = [type(node) is ImageNode for node in dataset.corpus.nodes]
    assert kinds == [False, True, False, True]
    assert [query.image_path for query in dataset.queries] == [
        None,
        str(tmp_path / "images" / "q.png"),
    ]
    assert dataset.qrels == {"7": {"1": 1}, "8": {"3": 1, "4": 1}}
    assert dataset.notes == (
        "1 of 3 relevant documents are missing from the corpus, and count as not found, "
        "such as '4'",
    )


def test_beir(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "corpus.jsonl",
        {"_id": "a", "title": "Ferry", "text": "It left at noon.", "metadata": {}},
        {"_id": "b", "title": "", "text": "Line 7 gets new trams."},
    )
    write_lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "boat"})
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t2\n")

    dataset = read_dataset(tmp_path, split="dev")

    assert dataset.qrels == {"q": {"a": 2}}
    assert dataset.corpus.nodes[0].metadata["title"] == "Ferry"
    with pytest.raises(DatasetError, match=r"neither qrels/qrels\.tsv nor qrels/test\.tsv"):
        read_dataset(tmp_path)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "docs.jsonl", {"id": "a", "text": "A ferry."}, {"id": "b", "text": "A tram."}
    )
    write_lines(
        tmp_path / "queries.jsonl",
        {"query": "boat", "kind": "text", "relevant": ["a"]},
        {"id": "second", "query": "rails", "relevant": {"a": 0, "b": 3}},
    )

    dataset = read_dataset(tmp_path)

    assert [(query.id, query.kind) for query in dataset.queries] == [
        ("q1", "text"),
        ("second", None),
    ]
    assert dataset.qrels == {"q1": {"a": 1}, "second": {"a": 0, "b": 3}}


def test_a_folder_of_ones_own_may_have_several_sets_of_queries(tmp_path: Path) -> None:
    """It asked the same set before, whatever the split."""
    write_lines(tmp_path / "docs.jsonl", {"id": "a", "text": "A ferry."})
    write_lines(tmp_path / "queries.jsonl", {"query": "boat", "relevant": ["a"]})
    write_lines(tmp_path / "queries-spoken.jsonl", {"query": "a, um, boat", "relevant": ["a"]})

    (query,) = read_dataset(tmp_path, split="spoken").queries
    assert query.text == "a, um, boat"
    with pytest.raises(DatasetError, match=r"queries-written\.jsonl: no such file"):
        read_dataset(tmp_path, split="written")


def test_judgements_that_name_no_document_are_no_data_set(tmp_path: Path) -> None:
    """They gave a table of zeros."""
    (tmp_path / "02-mounting.md").write_text("# Mounting\n\nTurn the screw.")
    write_lines(tmp_path / "queries.jsonl", {"query": "screw", "relevant": ["02-mounting"]})

    with pytest.raises(DatasetError, match=r"'02-mounting' \(did you mean '02-mounting\.md'\?\)"):
        read_dataset(tmp_path)


def test_a_note_names_the_first_missing_documents_once_each(tmp_path: Path) -> None:
    (tmp_path / "02-mounting.md").write_text("# Mounting\n\nTurn the screw.")
    write_lines(
        tmp_path / "queries.jsonl",
        {"query": "screw", "relevant": ["02-mounting.md", "02-mounting"]},
        {"query": "bolt", "relevant": ["02-mounting", "z1", "z2", "z3"]},
    )

    assert read_dataset(tmp_path).notes == (
        "5 of 6 relevant documents are missing from the corpus, and count as not found, such as "
        "'02-mounting' (did you mean '02-mounting.md'?), 'z1', 'z2'",
    )


def test_a_limit_takes_queries_from_all_over(tmp_path: Path) -> None:
    write_lines(tmp_path / "docs.jsonl", {"id": "a", "text": "A ferry."})
    rows = [{"query": f"query {index}", "relevant": ["a"]} for index in range(10)]
    write_lines(tmp_path / "queries.jsonl", *rows)
    dataset = read_dataset(tmp_path)

    limited = dataset.limited(3)

    assert [query.text for query in limited.queries] == ["query 0", "query 3", "query 6"]
    assert limited.notes == ("3 of 10 queries, spread evenly",)
    assert dataset.limited(None) is dataset
    with pytest.raises(ValueError, match="limit=0: must be at least 1"):
        dataset.limited(0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"queries\.jsonl:1: is not JSON"),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ('{"query": "boat"}', "relevant is None; give a list of the ids"),
        ('{"query": "boat", "relevant": []}', r"relevant is \[\]"),
        ('{"query": " ", "relevant": ["a"]}', "neither a text nor an image"),
        ('{"query": 7, "relevant": ["a"]}', "the query is 7, not a text"),
        ('{"query": "boat", "relevant": {"a": "much"}}', "the grade 'much' is not a whole number"),
        ('{"query": "boat", "relevant": {"a": 0.5}}', "the grade 0.5 is not a whole number"),
        ("", "has no query"),
    ],
)
def test_a_broken_query_says_where(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "queries.jsonl").write_text(line + "\n")

    with pytest.raises(DatasetError, match=message):
        read_queries(tmp_path / "queries.jsonl")


def test_two_queries_of_one_id(tmp_path: Path) -> None:
    row = {"id": "q", "query": "boat", "relevant": ["a"]}
    write_lines(tmp_path / "queries.jsonl", row, row)

    with pytest.raises(DatasetError, match=r"queries\.jsonl:2: the id 'q' is taken"):
        read_queries(tmp_path / "queries.jsonl")


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"neither EDIS_test\.json nor queries\.jsonl"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        read_dataset(tmp_path / "nowhere")


def test_an_image_to_ask_with_may_lie_anywhere(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "ask.png")
    absolute = str(tmp_path / "elsewhere" / "ask.png")
    row = {"image": absolute, "relevant": ["a"]}
    write_lines(tmp_path / "set" / "queries.jsonl", row)

    (query,), _ = read_queries(tmp_path / "set" / "queries.jsonl")

    assert query.image_path == absolute
