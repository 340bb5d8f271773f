"""The benchmark of PDF files runs, and reads its own files correctly."""

import os
import re
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured only on Linux")
def test_each_kind_is_read_right():
    shown = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "pdf.py", "--pages", "10"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert shown.returncode == 0, shown.stdout + shown.stderr
    counts = re.findall(r"(\d+) of (\d+)", shown.stdout)
    assert len(counts) > 15
    assert all(found == made for found, made in counts), counts
    assert "read_corpus, pages=True" in shown.stdout
