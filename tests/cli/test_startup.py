"""What commands import. Counting modules is more reliable than measuring time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

RUN = """
import json, sys
from llama_index_gap.cli.app import main

try:
    main()
except SystemExit as end:
    code = end.code
else:
    code = 0
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""
SLOW = {"llama_index", "pandas", "pymilvus", "scipy", "torch", "transformers"}


def imported_by(*arguments: str | Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    *_, said = (line for line in done.stderr.splitlines() if line.startswith("["))
    code, names = json.loads(said)
    assert code == 0, done.stderr
    return set(names)


@pytest.mark.parametrize(
    "command", [["--help"], ["search", "--help"], ["models"], ["check", "--help"]]
)
def test_help_and_lists_import_no_large_library(command: list[str]) -> None:
    assert not imported_by(*command) & SLOW


def test_info_imports_no_model(demo: Path) -> None:
    names = imported_by("info", "--db", demo / "gap.db")

    assert not names & {"torch", "transformers", "sentence_transformers"}


def test_a_search_with_clip_imports_only_what_clip_needs(demo: Path) -> None:
    """Each of these modules takes longer to import than a search takes."""
    names = imported_by("search", "a ferry", "--db", demo / "gap.db")

    assert {"torch", "transformers"} <= names
    assert not names & {
        "scipy.optimize",
        "scipy.stats",
        "sentence_transformers",
        "sklearn",
        "sympy",
        "torch._dynamo",
        "transformers.modeling_utils",
        "transformers.models.auto",
    }
    assert len(names) < 4200
