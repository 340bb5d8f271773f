from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import gap
from paths import PARITY
from PIL import Image

from llama_index_gap.search.retriever import DualIndexRetriever


@pytest.fixture(scope="module")
def edis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty headlines, each with a one-colour image, and two queries, in EDIS format."""
    folder = tmp_path_factory.mktemp("evaluate") / "edis"
    folder.mkdir()
    pool = []
    for number in range(60):
        Image.new("RGB", (32, 32), (4 * number, 0, 90)).save(folder / f"{number}.png")
        headline = f"headline number {number}"
        pool.append({"id": f"d{number}", "image": f"{number}.png", "headline": headline})
    (folder / "EDIS_candidates_1m.json").write_text(json.dumps(pool))
    candidates = [{"candidate_id": each["id"], "score": 3} for each in pool[:20]]
    queries = [{"query": query, "candidates": candidates} for query in ("number 7", "a colour")]
    (folder / "EDIS_test.json").write_text(json.dumps(queries))
    return folder


@pytest.mark.usefixtures("ctrl_c")
def test_evaluate_prints_the_table_and_goes_on_where_it_stopped(
    edis: Path, tiny_clip: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, asked = DualIndexRetriever.search_legs, []

    def interrupted(self: DualIndexRetriever, query: Any, **settings: Any) -> Any:
        asked.append(query.query_str)
        if len(asked) == 2:
            signal.raise_signal(signal.SIGINT)
        return search(self, query, **settings)

    monkeypatch.setattr(DualIndexRetriever, "search_legs", interrupted)
    stopped = gap("evaluate", edis, "--model", tiny_clip)
    files = {"--html": here / "out.html", "--runs": here / "runs"}
    shown = gap("evaluate", edis, *(part for pair in files.items() for part in pair))

    assert stopped.code == 130
    assert "run the same command again to complete it" in stopped.err
    assert shown.code == 0, shown.err
    assert asked == ["number 7", "a colour", "a colour"]
    assert max(map(len, shown.out.splitlines())) <= 80
    words = " ".join(shown.out.split())
    assert words.startswith("edis: 60 documents, 2 queries DualEncoderEmbedding('")
    assert "are texts, and 50% of all rows." in words
    assert "<h1>What each method finds: <bdi>edis</bdi></h1>" in files["--html"].read_text("utf-8")
    assert len(list(files["--runs"].iterdir())) == 1 + 6
    (results,) = here.glob("edis-*.jsonl")
    assert len(results.read_text().splitlines()) == 1 + 2


def test_evaluate_gives_json_and_asks_so_many(edis: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = ("evaluate", edis, "--db", tmp_path / "e.db", "--model", tiny_clip, "--limit", 1)

    found = json.loads(gap(*command, "--json").out)

    assert found["queries"] == 1
    assert "1 of 2 queries, spread evenly" in found["notes"]
    assert [method["name"] for method in found["methods"]][-1] == "16+16, default"
    assert 0 <= found["methods"][-1]["metrics"]["ndcg@10"]["value"] <= 1
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".db", ".jsonl"]


def test_evaluate_reranks(edis: Path, tiny_clip: Path, tmp_path: Path) -> None:
    """A jina-reranker-m0 with random weights reads texts and images."""
    reranker = PARITY / "jina_m0_tiny"
    command = ("evaluate", edis, "--db", tmp_path / "e.db", "--model", tiny_clip, "--limit", 1)

    shown = gap(*command, "--reranker", reranker)

    assert shown.code == 0, shown.err
    assert f"('{tiny_clip.name}'), reranked by jina_m0_tiny\n" in shown.out
    assert shown.out.index("16+16, default") < shown.out.index("16+16, mean of both")


def test_evaluate_adds_the_first_stage(edis: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = ("evaluate", edis, "--db", tmp_path / "e.db", "--model", tiny_clip)
    reranker = ("--reranker", PARITY / "jina_m0_tiny")

    shown = gap(*command, *reranker, "--first-stage", 0.5)
    learnt = gap(*command, *reranker, "--learn-first-stage")
    alone = [gap(*command, *option) for option in (("--first-stage", 1), ("--learn-first-stage",))]

    assert shown.code == 0, shown.err
    words = " ".join(shown.out.split())
    assert words.index("16+16, mean of both") < words.index("16+16, both stages")
    assert "Both stages: the first stage's log odds, weighted, are added to the" in words
    assert "2 queries with a relevant document; a weight for the first stage needs" in learnt.err
    for each in alone:
        assert each.code == 2
        assert "name one with --reranker" in " ".join(each.err.replace("│", " ").split())


def test_the_demo_measures_and_shows(tmp_path: Path) -> None:
    command = ("demo", "--folder", tmp_path, "--articles", 100, "--queries", 4)

    shown, again = gap(*command), gap(*command)

    assert (shown.code, again.code) == (0, 0), shown.err + again.err
    words = " ".join(shown.out.split())
    assert "trained only on such newsrooms" in words
    assert "100 texts and 100 images written" in words
    assert "learn from 300 unlabelled queries to another newsroom" in words
    assert "the index has learnt from 300 text queries" in words
    assert "newsroom: 100 documents, 12 queries" in words
    assert "✓ right" in words
    assert max(map(len, shown.out.splitlines()[:-1])) <= 80
    assert "data:image/jpeg;base64," in (tmp_path / "newsroom.html").read_text("utf-8")
    assert "0 texts and 0 images written, 200 unchanged" in " ".join(again.out.split())
    smaller = gap("demo", "--folder", tmp_path, "--articles", 101)
    assert "belongs to another corpus; choose another folder" in smaller.err
