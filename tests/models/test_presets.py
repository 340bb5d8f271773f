"""The presets, and the command that lists them."""

import dataclasses
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llama_index_gap.cli import app as cli
from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS

runner = CliRunner()


def test_names():
    assert list(PRESETS) == ["jina", "nomic", "siglip2", "siglip", "clip", "dinov2"]
    assert PRESETS["clip"].checkpoints == ("openai/clip-vit-base-patch32",)
    assert PRESETS["nomic"].checkpoints == (
        "nomic-ai/nomic-embed-text-v1.5",
        "nomic-ai/nomic-embed-vision-v1.5",
    )
    assert PRESETS["dinov2"].checkpoints == ("facebook/dinov2-base",)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_what_they_state_fits_together(preset):
    assert preset.commercial == ("NC" not in preset.licence)
    assert list(preset.matryoshka) == sorted(preset.matryoshka)
    assert not preset.matryoshka or preset.matryoshka[-1] == preset.dimension


def test_scorers():
    assert SCORER_PRESETS["jina-m0"].checkpoint == "jinaai/jina-reranker-m0"
    assert not SCORER_PRESETS.keys() & PRESETS.keys()
    for preset in SCORER_PRESETS.values():
        assert preset.commercial == ("NC" not in preset.licence)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(cli, "_output", Console(highlight=False, width=80))


@pytest.mark.usefixtures("narrow")
def test_the_list_fits_into_80_columns():
    result = runner.invoke(cli.app, ["models"])

    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    words = result.output.split()
    for scorer in SCORER_PRESETS.values():
        assert {scorer.name, scorer.checkpoint, "reranker:", scorer.languages} <= set(words)
    for preset in PRESETS.values():
        # Nothing is broken off, in the middle of a name or otherwise.
        assert {preset.name, *preset.checkpoints, str(preset.dimension)} <= set(words)
        assert preset.suits in result.output
        assert preset.licence in result.output
    lines = [line.strip() for line in result.output.splitlines()]
    assert "Matryoshka 64 128 256 512" in lines
    assert len(lines) < 30


def test_the_same_as_json():
    result = runner.invoke(cli.app, ["models", "--json"])

    listed = json.loads(result.output)
    assert [preset["name"] for preset in listed] == [*PRESETS, *SCORER_PRESETS]
    jina = dataclasses.asdict(PRESETS["jina"])
    assert listed[0] == {"kind": "encoder", **jina, "matryoshka": list(jina["matryoshka"])}
    assert listed[-1] == {"kind": "reranker", **dataclasses.asdict(SCORER_PRESETS["jina-m0"])}
