from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "scale.py"
PAGE = "# Scale\n\n<!-- written by benchmarks/scale.py -->old<!-- up to here -->\n\nThe end.\n"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    small = ["--rows", "--lite-rows", "200", "--queries", "20", "--seconds", "0.2"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--data", folder, *small, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_small_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    shown = run(tmp_path).stdout
    path = tmp_path / "record.json"
    values = json.loads(path.read_text())
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    path.write_text(json.dumps({key: values[key] for key in values if "recall" not in key}))
    again = run(tmp_path, "--write-docs", str(page))

    assert "200 of 200 rows" not in again.stderr
    assert "search/lite/200" not in again.stderr
    assert "recall/lite/200" in again.stderr
    assert json.loads(path.read_text()).keys() == values.keys()
    assert values["search/lite/200"]["threads"]["1"]["searches"] > 0
    assert values["recall/lite/200"]["text"]["256"]["recall"] > 0.95
    assert "Recall@16" in shown
    written = page.read_text()
    assert written.startswith("# Scale\n\n<!-- written")
    assert written.endswith("<!-- up to here -->\n\nThe end.\n")
    assert "| 200, Lite | 1 |" in written
    assert "old" not in written
    assert (tmp_path / "assets" / "scale.svg").read_text().count("<svg") == 1
