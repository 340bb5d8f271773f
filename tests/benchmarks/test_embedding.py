"""The benchmark runs, and its ways agree on the vectors."""

from __future__ import annotations

import re
import runpy
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "embedding.py"


@pytest.mark.slow
def test_short_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--images", "8", "--rounds", "1"])

    runpy.run_path(str(SCRIPT), run_name="__main__")

    shown = capsys.readouterr().out
    cosines = [float(cosine) for cosine in re.findall(r"\d\.\d{5}", shown)]
    assert len(cosines) in {3, 6}  # bfloat16 only on processors that are fast at it
    assert min(cosines) > 0.999
    assert "one at a time" in shown
