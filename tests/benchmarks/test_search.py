from __future__ import annotations

import subprocess
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "search.py"


@pytest.mark.slow
def test_quick_run() -> None:
    """All ways find the same nodes, and the tables have their rows."""
    run = subprocess.run(
        [sys.executable, SCRIPT, "--quick"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert run.returncode == 0, run.stderr
    assert "Milvus Lite" in run.stdout
    assert "found different nodes" not in run.stdout
    for row in ("two raw searches", "ours, raw", "LlamaIndex' own", "bare encoding and inserts"):
        assert row in run.stdout
    assert run.stdout.count(" ×") == 12
