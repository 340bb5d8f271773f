"""Every command and snippet of the README runs."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from llama_index_gap import DualEncoderEmbedding, DualIndexRetriever
from llama_index_gap.cli import main
from llama_index_gap.demo.corpus import write_demo_corpus
from llama_index_gap.demo.tiny import make_tiny_clip, make_tiny_dinov2

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds what the README's examples name."""
    monkeypatch.chdir(tmp_path)
    write_demo_corpus("path/to/corpus")
    make_tiny_clip("tiny-clip")
    make_tiny_dinov2("tiny-dinov2")
    shutil.copytree(ROOT / "tests/fixtures/parity/jina_m0_tiny", "tiny-m0")
    return tmp_path


@pytest.mark.usefixtures("workplace")
def test_python_snippets(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), names)

    assert "12 documents" in capsys.readouterr().out
    assert len(names["texts"]) == 12
    assert len(names["images"]) == 11
    assert len({hit.node.ref_doc_id for hit in names["by_picture"]}) == 3
    assert len({hit.node.ref_doc_id for hit in names["by_both"]}) == 3
    assert len({hit.node.ref_doc_id for hit in names["best"]}) == 3
    assert names["image"].mode == "RGB"


@pytest.mark.usefixtures("workplace")
def test_shell_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of llama-gap run here; ``make`` and ``pip`` are what .ci/run itself does."""
    ci = (ROOT / ".ci" / "run").read_text()
    makefile = (ROOT / "Makefile").read_text()
    commands = [line for block in blocks("sh") for line in block.splitlines()]

    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        match program:
            case "llama-gap":
                # In this process: each of its own would spend most of its time importing torch.
                monkeypatch.setattr(sys, "argv", [program, *arguments])
                with pytest.raises(SystemExit) as stopped:
                    main()
                assert stopped.value.code == 0, command
            case "make":
                assert f"make {arguments[0]}" in ci
                assert all(f"{argument.split('=')[0]} ?=" in makefile for argument in arguments[1:])
            case "pip":
                assert arguments == ["install", "."]  # .ci/run installs it, editable
                assert "--editable ." in makefile
            case "python":
                assert (ROOT / arguments[0]).is_file()
            case _:
                pytest.fail(f"the README names a command that no test runs: {command}")


def test_inline_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile


def test_every_setting_is_listed() -> None:
    inherited = {"callback_manager", "num_workers", "embeddings_cache", "rate_limiter"}
    of_embedding = set(DualEncoderEmbedding.model_fields) - inherited
    of_retriever = set(inspect.signature(DualIndexRetriever.__init__).parameters) - {
        *("self", "index", "k", "callback_manager", "kwargs")
    }

    assert {name for name in of_embedding | of_retriever if f"`{name}`" not in README} == set()


def test_links_to_files_lead_somewhere() -> None:
    prose = re.sub(r"`[^`]*`", "", README)
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", prose):
        assert (ROOT / target).exists(), target
