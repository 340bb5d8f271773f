"""llama-gap check, with the demo's dual encoder and with random weights."""

from __future__ import annotations

import json

from command_line import gap
from paths import PARITY

from llama_index_gap.demo.newsroom import CHECKPOINT


def test_a_trained_model_passes() -> None:
    shown = gap("check", CHECKPOINT)

    assert shown.code == 0
    assert "All passed of 5." in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_random_weights_fail_with_an_exit_code_of_their_own() -> None:
    shown = gap("check", PARITY / "jina_clip_tiny", "--json")

    found = json.loads(shown.out)
    assert (shown.code, found["passed"], found["kind"]) == (3, False, "encoder")
    assert [each["passed"] for each in found["findings"]].count(False) == 1


def test_a_reranker_is_known_by_its_files() -> None:
    shown = gap("check", PARITY / "jina_m0_tiny", "--json")

    assert json.loads(shown.out)["kind"] == "reranker"


def test_what_cannot_be_loaded_is_an_error() -> None:
    assert gap("check", "./nosuch").code == 1
