"""The benchmark of all encoders still runs."""

import runpy
import sys

from paths import ROOT

BENCHMARK = ROOT / "benchmarks" / "encoders.py"


def test_it_runs_and_both_ways_agree(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), "--quick"])
    monkeypatch.setenv("COLUMNS", "100")

    runpy.run_path(str(BENCHMARK), run_name="__main__")

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in lines if {"float32", "bfloat16"} & set(row)]
    assert len(rows) == 4 * 2 * 2  # families, modalities, number formats
    compared = [row for row in rows if row[-1] != "none"]
    assert len(compared) == 12  # no library has Nomic's and jina-clip's images
    assert min(float(row[-1]) for row in compared) > 0.999
