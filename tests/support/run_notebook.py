"""Runs the notebook.

    python tests/support/run_notebook.py

runs it and keeps what it prints and draws.
"""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient
from paths import ROOT

NOTEBOOK = ROOT / "examples" / "newsroom.ipynb"


def read() -> nbformat.NotebookNode:
    """The notebook as it is kept."""
    return nbformat.read(NOTEBOOK, as_version=4)


def run() -> nbformat.NotebookNode:
    """The notebook with what it prints and draws now."""
    notebook = read()
    NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # else also which Python it was
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "text/html" in output.get("data", {}):
            output["data"].pop("text/plain", None)  # long, and with the paths of this run
    return notebook


if __name__ == "__main__":
    nbformat.write(run(), NOTEBOOK)
