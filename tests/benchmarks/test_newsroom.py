from __future__ import annotations

import subprocess
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "newsroom.py"


@pytest.mark.slow
def test_it_shows_recall_and_gap() -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--articles", "120", "--queries", "10"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert run.returncode == 0, run.stderr
    for row in ("text", "image", "both", "separation", "relative modality gap"):
        assert f"│ {row} " in run.stdout
