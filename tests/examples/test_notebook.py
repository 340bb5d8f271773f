"""The notebook runs, and its saved outputs are its current outputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nbformat import NotebookNode
from run_notebook import NOTEBOOK, read, run

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def printed(notebook: NotebookNode) -> str:
    """The text of all outputs, with one space where there are several."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return " ".join(" ".join(output.get("text", "") for output in outputs).split())


def drawn(notebook: NotebookNode) -> list[int]:
    """The number of images that each cell draws."""
    return [
        sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        for cell in notebook.cells
    ]


def test_it_is_kept_as_run_and_small() -> None:
    code = [cell for cell in read().cells if cell.cell_type == "code"]

    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {(o.output_type, o.get("name")) for cell in code for o in cell.outputs}
    # No warning, no error.
    assert kinds == {("stream", "stdout"), ("display_data", None), ("execute_result", None)}
    assert NOTEBOOK.stat().st_size < 1.5e6


@pytest.mark.slow
def test_it_runs_and_prints_what_it_is_kept_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside it
    before, now = read(), run()

    assert drawn(now) == drawn(before)
    assert any(drawn(now))
    again = "it prints something else: python tests/support/run_notebook.py, and read it again"
    assert _NUMBER.sub("#", printed(now)) == _NUMBER.sub("#", printed(before)), again
    figures = (list(map(float, _NUMBER.findall(printed(each)))) for each in (now, before))
    # Sums differ a little on other machines.
    assert next(figures) == pytest.approx(next(figures), rel=0.2, abs=0.05), again
