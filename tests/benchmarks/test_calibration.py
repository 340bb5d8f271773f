from __future__ import annotations

import re
import runpy
import sys
from collections import defaultdict

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "calibration.py"


@pytest.mark.usefixtures("gap_shared")
def test_few_resamples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """For the real pairs, one curve per pair has a lower error than one for all."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--resamples", "5"])

    runpy.run_path(str(SCRIPT), run_name="__main__")

    shown = capsys.readouterr().out
    errors = defaultdict(list)
    for way, error in re.findall(r"(raw cosine|pooled \w+|per pair, \w+) +(\.\d+) \[", shown):
        errors[way].append(float(error))
    assert {len(of_way) for of_way in errors.values()} == {3}
    for pair in (0, 1):  # text_to_image, image_to_text
        for method in ("logistic", "isotonic"):
            assert errors[f"per pair, {method}"][pair] < errors[f"pooled {method}"][pair] / 2
            assert errors[f"pooled {method}"][pair] < errors["raw cosine"][pair] / 2
    assert re.search(r"per pair, isotonic ≥ 0.5 +text_to_image", shown)
