"""The benchmark of reranking runs, and its ways agree on the scores."""

from __future__ import annotations

import runpy
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "rerank.py"


def test_short_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--rounds", "1", "--texts", "9", "--images", "3"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--dtype", "float32"])
    monkeypatch.setenv("COLUMNS", "80")

    runpy.run_path(str(SCRIPT), run_name="__main__")

    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if " × " in line]
    assert [row.split("  ")[0] for row in rows] == [
        "published",
        "cold",
        "vision kept",
        "prefixes kept",
    ]
    assert all("met" in row for row in rows[1:])
    assert max(float(row.split()[-1]) for row in rows) < 1e-5
    assert "9 texts and 3 images, tiny, float32" in shown
