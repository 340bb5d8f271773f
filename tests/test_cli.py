from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_index_gap.demo.corpus import write_demo_corpus


def llama_gap(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the installed command as a person does, in a terminal of 80 columns."""
    command = Path(sys.executable).with_name("llama-gap")
    return subprocess.run(
        [command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb"},
        check=False,
        **options,
    )


def test_demo_shows_the_gap_and_says_what_the_model_is() -> None:
    shown = llama_gap("demo")

    assert shown.returncode == 0, shown.stderr
    assert "12 documents: 12 passages, 11 pictures (11 with a caption); 1 skipped" in shown.stdout
    assert "random weights" in shown.stdout
    assert "100% texts" in shown.stdout
    assert shown.stderr == ""


def test_demo_keeps_its_files_where_it_is_told(tmp_path: Path) -> None:
    assert llama_gap("demo", "--folder", str(tmp_path)).returncode == 0

    assert (tmp_path / "corpus" / "docs.jsonl").is_file()
    assert (tmp_path / "tiny-clip" / "model.safetensors").is_file()


def test_read_reports_what_is_skipped(tmp_path: Path) -> None:
    shown = llama_gap("read", str(write_demo_corpus(tmp_path)))

    assert shown.returncode == 0
    assert "12 documents: 12 passages, 11 pictures (11 with a caption); 1 skipped" in shown.stdout
    assert "docs.jsonl:12" in shown.stdout
    assert "images/budget.png" in shown.stdout


def test_read_lists_ten_or_all(tmp_path: Path) -> None:
    lines = ['{"id": "good", "text": "t"}', *["[nonsense] with [bold]markup"] * 12]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    some = llama_gap("read", str(tmp_path / "a.jsonl")).stdout
    everything = llama_gap("read", str(tmp_path / "a.jsonl"), "--all").stdout

    assert "… and 2 more: --all lists them" in some
    assert "a.jsonl:13" not in some
    assert "a.jsonl:13" in everything


def test_what_steers_a_terminal_is_shown_and_not_sent(tmp_path: Path) -> None:
    document = {"text": "t", "images": ["\x1b[31mred\x1b]0;title\x07\u202e.png"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(document))

    shown = llama_gap("read", str(tmp_path / "a.jsonl"))
    failed = llama_gap("read", "x\x1b[31m")

    assert "\\x1b[31mred" in shown.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(shown.stdout + failed.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["read", "/no/such/corpus"], "error: /no/such/corpus: no such file or folder"),
        (["read", "{here}"], "holds no docs.jsonl"),
    ],
)
def test_expected_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    shown = llama_gap(*(argument.format(here=tmp_path) for argument in arguments))

    assert shown.returncode == 1
    assert message in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("command", [[], ["read"], ["demo"], ["models"]])
def test_help_fits_80_columns(command: list[str]) -> None:
    shown = llama_gap(*command, "--help")

    assert shown.returncode == 0
    assert "Usage" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_version() -> None:
    assert llama_gap("--version").stdout.strip() == "0.1.0"
