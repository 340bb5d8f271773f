"""Runs the command for tests, in a separate process or in this one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llama_index_gap.cli.app import main
from llama_index_gap.cli.terminal import stderr, stdout
from llama_index_gap.index.dual_index import DualIndex


def llama_gap(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the installed command like a user, in a terminal of 80 columns."""
    command = Path(sys.executable).with_name("llama-gap")
    return subprocess.run(
        [command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb"},
        check=False,
        **options,
    )


class Shown(NamedTuple):
    code: int
    out: str
    err: str


def gap(*arguments: object, answer: str = "") -> Shown:
    """Run the command in this process: the same output in less time."""
    out, err = StringIO(), StringIO()
    code: Any = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "argv", ["llama-gap", *map(str, arguments)])
        patch.setattr(sys, "stdin", StringIO(answer))
        patch.setattr(stdout, "width", 80)
        patch.setattr(stderr, "width", 80)
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            logging.getLogger("llama_index_gap").handlers.clear()
    return Shown(int(code or 0), out.getvalue(), err.getvalue())


def write_texts(file: Path, count: int, title: str = "a title") -> None:
    documents = (
        {"id": f"doc-{i}", "title": f"{title} {i}", "text": f"text number {i}"}
        for i in range(count)
    )
    file.write_text("\n".join(map(json.dumps, documents)))


def rows(db: Path) -> dict[str, int]:
    with DualIndex(str(db)) as index:
        return dict(index.count())
