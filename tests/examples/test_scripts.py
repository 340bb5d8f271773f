"""Every example runs, stays short, and finds what it asks for."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import mcp  # noqa: F401  a server's stderr is sys.stderr as it is when this is imported: a file
import pytest
from paths import ROOT

EXAMPLES = ROOT / "examples"
# A part of each output, mostly the article that the query was made from.
SAID = {
    "agent.py": r"(?s)Pensioners dance all day in Orleth in January.*I see 2 images",
    "answers.py": r"Ward staff checkmate the champion in Ambleforth this Monday.*\n<an image",
    "existing_index.py": r"ours\n.*Ward staff checkmate the champion in Ambleforth this Monday",
    "gap_report.py": "One index for each modality, fused by intent",
    "mcp_client.py": r"Pensioners dance all day in Orleth(?s:.*)Read by its link: \(96, 96\)",
    "milvus_server.py": "teachers elect a new chair in Birchester",
    "one_mixed_index.py": r"not aligned +50%\naligned +58%",
    "own_folder.py": "60 texts and 60 images written",
    "image_query.py": "A year from now, lawyers march against rents in Rushmere",
    "quickstart.py": "Keldon: barristers win in court on Friday",
    "simple_directory_reader.py": r"second run: 0 texts and 0 images written, 80 unchanged",
    "rerank.py": r"headline\n.*checkmate the champion in Ambleforth this Monday",
    "two_models.py": "Ward staff checkmate the champion in Ambleforth this Monday",
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example like a command; returns its output."""

    def run(example: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [example, *arguments])
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples(example: str, run: Callable[..., str]) -> None:
    said = run(example)

    assert said.strip()
    assert re.search(SAID.get(example, ""), said)
    assert len((EXAMPLES / example).read_text(encoding="utf-8").splitlines()) < 40


def test_the_page_on_agents_shows_what_mcp_client_prints(run: Callable[..., str]) -> None:
    page = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    page = page.partition("### A coding agent and a chat program")[2]
    shown = re.findall(r"^```(?:text|json)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    said = run("mcp_client.py")

    # Scores differ a little from machine to machine.
    number = re.compile(r"-?\d+\.\d+(?:e-\d+)?")
    assert len(shown) == 3
    for block in shown:
        assert number.sub("#", block) in number.sub("#", said)


def test_own_folder_takes_a_folder_and_only_what_is_new(
    run: Callable[..., str], noise_files: list[str]
) -> None:
    folder = Path("mine")
    folder.mkdir()
    for file in noise_files[:3]:
        shutil.copy(file, folder)

    assert "0 texts and 3 images written" in run("own_folder.py", "mine")
    assert "3 unchanged" in run("own_folder.py", "mine", "--query", "noise")
    assert not Path("gap-demo").exists()


@pytest.mark.server
def test_milvus_server(run: Callable[..., str], milvus_url: str) -> None:
    said = run("milvus_server.py", milvus_url)

    assert "200 texts and 200 images written" in said
    assert SAID["milvus_server.py"] in said
