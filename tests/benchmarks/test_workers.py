"""The benchmark runs, and separate processes give the same vectors."""

from __future__ import annotations

import re
import runpy
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "workers.py"


@pytest.mark.slow
def test_short_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick"])

    runpy.run_path(str(SCRIPT), run_name="__main__")

    shown = capsys.readouterr().out
    assert re.findall(r"\d\.\d{5}", shown) == ["1.00000"] * 2
    assert "decode ms" in shown
