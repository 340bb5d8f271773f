"""The benchmark of killed moves runs, and two kills of each kind leave no fault."""

import os
import runpy
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_was_killed_is_whole_when_run_again():
    command = [sys.executable, ROOT / "benchmarks" / "faults_moving.py", "--kills", "2"]

    shown = subprocess.run(
        [*command, "--documents", "20"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert shown.returncode == 0, shown.stdout + shown.stderr
    rows = [line.split(",")[0] for line in shown.stdout.splitlines()]
    assert rows[1:-1] == ["copy", "copy", "reembed", "reembed"]
    assert rows[-1] == "0 differences"


def test_it_sees_what_differs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    compared = runpy.run_path(str(ROOT / "benchmarks" / "faults_moving.py"))["compared"]
    right = {
        "rows": {"t": {"a": "1", "b": "2"}, "i": {"a": "1"}},
        "properties": {"t": {"models": "x"}, "i": {}},
        "images": {"x.png": "1", "nodes": "2"},
    }
    found = {
        "rows": {"t": {"a": "1", "b": "other", "c": "3"}, "i": {}, "t_v1": {}},
        "properties": {"t": {"models": "y"}, "i": {}},
        "images": {"nodes": "1", "z.png": "3"},
    }

    assert list(compared(found, right).values()) == [1, 2, 1, 1, 3]
