from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import gap

from llama_index_gap import DualIndex, StoreError
from llama_index_gap.evaluation.datasets import read_unlabelled
from llama_index_gap.store.milvus import MilvusStore


def text_file(folder: Path, count: int = 40) -> Path:
    file = folder / "queries.txt"
    file.write_text("\n\n".join(f"a query, number {number}" for number in range(count)))
    return file


def test_learn_and_forget(own_db: Path, tmp_path: Path) -> None:
    before = json.loads(gap("info", "--name", "gap", "--db", own_db, "--json").out)
    shown = gap("learn", text_file(tmp_path), "--db", own_db)
    facts = json.loads(gap("info", "--name", "gap", "--db", own_db, "--json").out)

    assert shown.code == 0, shown.err
    assert "Learnt from 40 text queries and 0 image queries" in shown.out
    assert "Each search of gap now compares" in shown.out
    assert "those of 40 text queries, in every process" in " ".join(shown.out.split())
    assert before["queries_learnt"] == {"text": 0, "image": 0}
    assert facts["queries_learnt"] == {"text": 40, "image": 0}
    assert "40 text queries" in gap("info", "--name", "gap", "--db", own_db).out

    forgotten = gap("learn", "--forget", "--db", own_db)

    assert forgotten.out == "gap has forgotten its queries\n"
    assert "no queries (see 'llama-gap learn')" in gap("info", "--name", "gap", "--db", own_db).out


def test_objects_of_texts_and_images(demo: Path, own_db: Path, tmp_path: Path) -> None:
    images = sorted((demo / "corpus" / "images").glob("*.png"))
    lines: list[dict[str, Any]] = [{"text": f"query {number}"} for number in range(30)]
    lines += [{"query": "both", "image_path": str(images[0]), "kind": "photo"}]
    lines += [{"image": "none.png"}, {"text": "query 3"}]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))

    refused = gap("learn", file, "--db", own_db)
    lines[30:32] = [{"text": "both"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    shown = json.loads(gap("learn", file, "--db", own_db, "--json").out)

    assert refused.code == 1
    assert "1 image queries to learn from (1 duplicates and 1 skipped" in refused.err
    assert "none.png" in refused.err
    assert shown == {"texts": 31, "images": 0, "duplicates": 1, "left_out": 0, "skipped": []}


def test_images_lie_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "log.jsonl").write_text(
        '{"image_path": "a.png"}\n\n{"text": "b", "image": "c.png"}'
    )

    first, second = read_unlabelled(tmp_path / "log.jsonl")

    assert (first.query_str, first.image_path) == ("", str(tmp_path / "a.png"))
    assert (second.query_str, second.image_path) == ("b", str(tmp_path / "c.png"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt: no such file"),
        ("a.txt", b"", "a.txt: has no query"),
        ("a.txt", b"\xff\xfe", "a.txt: is not UTF-8"),
        ("a.txt", b"one\ntwo", "2 text queries to learn from"),
        ("a.json", b"[]", ".json files are not supported; write one text per line"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 7}', "a.jsonl:2: the query is 7, not a text"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"relevant": []}',
            "a.jsonl:2: the query has neither a text nor",
        ),
        ("a.jsonl", b"a query", "a.jsonl:1: is not JSON"),
        ("a.txt", b'{"text": "a"}\noops', "a.txt:2: is not JSON"),
    ],
)
def test_what_cannot_be_learnt_is_one_line(
    demo: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    shown = gap("learn", tmp_path / name, "--db", demo / "gap.db")

    assert (shown.code, shown.out) == (1, "")
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("a.txt", "--forget")])
def test_a_file_or_forget(demo: Path, arguments: tuple[str, ...]) -> None:
    shown = gap("learn", *arguments, "--db", demo / "gap.db")

    assert shown.code == 2
    assert "pass a file of queries, or --forget" in shown.err


def test_info_names_a_damaged_sample(own_db: Path, tmp_path: Path) -> None:
    gap("learn", text_file(tmp_path), "--db", own_db)
    with MilvusStore(uri=str(own_db), collection_name="gap_text_queries") as store:
        store.delete_nodes(["text-0000"])
        with DualIndex(str(own_db)) as index:
            assert index.query_sample().texts == 39
        (node,) = store.get_nodes(["text-0001"])
        node.metadata["kind"] = "\x1b[31mspy"
        node.embedding = [1.0] * 16
        store.add([node])

    shown = gap("info", "--name", "gap", "--db", own_db)

    assert shown.code == 1
    assert "gap_text_queries is damaged (row 'text-0001' is not a query" in shown.err
    assert "--forget" in shown.err
    assert "\x1b[31m" not in shown.err
    with DualIndex(str(own_db)) as index, pytest.raises(StoreError, match="gap_text_queries"):
        index.search("ship")
