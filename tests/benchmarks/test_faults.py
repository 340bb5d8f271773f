"""The benchmark of killed builds runs, and two kills of each kind leave no fault."""

import os
import runpy
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_was_killed_is_whole_when_run_again():
    command = [sys.executable, ROOT / "benchmarks" / "faults.py", "--kills", "2"]

    shown = subprocess.run(
        [*command, "--documents", "20"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert shown.returncode == 0, shown.stdout + shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [row[0] for row in rows[1:-1]] == [
        *("index", "index", "delete", "delete", "sync", "sync")
    ]
    assert rows[-1][:2] == ["0", "differences,"]


def test_it_sees_what_differs():
    compared = runpy.run_path(str(ROOT / "benchmarks" / "faults.py"))["compared"]
    right = {
        "nodes": {"a": "1", "b": "2", "c": "3"},
        "vectors": {"a": "1", "b": "2", "c": "3"},
        "images": {"x.png": "1", "y.png": "2"},
        "records": {"nodes": "2"},
    }
    found = {
        "nodes": {"a": "1", "b": "other", "d": "4"},
        "vectors": {"a": "other", "b": "2", "d": "4"},
        "images": {"y.png": "2", "z.png": "3"},
        "records": {"nodes": "2", "pending": "1"},
    }

    assert list(compared(found, right).values()) == [1, 1, 1, 1, 1, 2]
    assert not any(compared(right, right).values())
