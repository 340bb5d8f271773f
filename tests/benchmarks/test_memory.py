"""The benchmark runs with every way of asking."""

from __future__ import annotations

import runpy
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "memory.py"


@pytest.mark.slow
def test_short_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick"])

    runpy.run_path(str(SCRIPT), run_name="__main__")

    _, *rows = capsys.readouterr().out.splitlines()
    assert [row[:20].strip() for row in rows] == [
        "texts",
        "texts, 8 threads",
        "images",
        "an event loop each",
        "an agent's tool",
        "reranked",
    ]
