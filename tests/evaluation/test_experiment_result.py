from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytrec_eval
from results import result


def test_figures_as_json() -> None:
    figures = json.loads(json.dumps(result().to_dict()))

    assert figures["methods"][0]["metrics"]["mrr@10"]["value"] == pytest.approx(0.3)
    assert figures["kinds"] == {"headline": 2, "image": 2}
    assert not {"runs", "qrels"} & set(figures)


def test_rankings_as_trec_files(tmp_path: Path) -> None:
    found = result()

    found.write_runs(tmp_path / "runs")

    files = {path.name: path for path in (tmp_path / "runs").iterdir()}
    names = ("32-by-text.run", "16-16-rrf.run", "16-16-default.run")
    assert files.keys() == {"qrels.txt", *names}
    with files["qrels.txt"].open() as file:
        assert pytrec_eval.parse_qrel(file) == found.qrels
    with files["16-16-default.run"].open() as file:
        run = pytrec_eval.parse_run(file)
    ranked = {query: sorted(of_it, key=of_it.get, reverse=True) for query, of_it in run.items()}
    assert ranked == found.runs["16+16, default"]
