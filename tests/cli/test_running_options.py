from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import gap

from llama_index_gap.embedding import dual_encoder
from llama_index_gap.embedding.encoders import Encoders
from llama_index_gap.models.worker import EncoderSettings


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, Sequence[str | None]]]:
    """The devices of this process and of others, for each model; starts no process."""
    found: list[tuple[str | None, Sequence[str | None]]] = []

    def recorded(settings: EncoderSettings, devices: Sequence[str | None]) -> Encoders:
        found.append((settings.loading.device, devices))
        return Encoders(settings)

    monkeypatch.setattr(dual_encoder, "Encoders", recorded)
    return found


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("index --workers 2", (None, [None, None])),
        ("index --device cpu", ("cpu", [])),
        ("sync --device cpu,cpu", ("cpu", ["cpu", "cpu"])),
        ("reembed --dimensions 8 --device cpu --workers 1", ("cpu", ["cpu"])),
    ],
)
def test_they_hold_for_the_models_that_an_index_names_itself(
    own_db: Path, demo: Path, asked: list[Any], command: str, expected: Any
) -> None:
    name, *options = command.split()
    corpus = ["--image-root", demo / "corpus"] if name == "reembed" else [demo / "corpus"]

    shown = gap(name, *corpus, "--db", own_db, *options)

    assert shown.code == 0, shown.err
    assert asked == [expected]


def test_they_hold_for_each_model_that_is_named(
    demo: Path, tiny_clip: Path, other_clip: Path, here: Path, asked: list[Any]
) -> None:
    models = ["--model", tiny_clip, "--image-model", other_clip, "--image-query-model", tiny_clip]

    shown = gap("index", demo / "corpus", "--db", "gap.db", *models, "--workers", "2")

    assert shown.code == 0, shown.err
    assert asked == [(None, [None, None])] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu,cpu", "--workers", "2"], "leave --workers out"),
        (["--device", "cpu,"], "separate devices by commas"),
        (["--workers", "0"], "greater than or equal to 1"),
        (
            ["--workers", "2", "--model", "EmbeddingService"],
            "EmbeddingService decides that itself",
        ),
        (
            ["--device", "cpu,cpu", "--model", "EmbeddingService"],
            "EmbeddingService decides that itself",
        ),
    ],
)
def test_what_does_not_go_together(demo: Path, options: list[str], message: str) -> None:
    shown = gap("index", demo / "corpus", "--db", "new.db", *options)

    assert shown.code == 2
    assert message in " ".join(shown.err.replace("│", " ").split())
