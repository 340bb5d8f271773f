from __future__ import annotations

import json
from dataclasses import asdict

from command_line import gap

from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS


def test_the_list_fits_into_80_columns() -> None:
    shown = gap("models")

    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    words = shown.out.split()
    for scorer in SCORER_PRESETS.values():
        assert {scorer.name, scorer.checkpoint, "reranker:", scorer.languages} <= set(words)
    for preset in PRESETS.values():
        # Nothing is cut off, neither within a name nor elsewhere.
        assert {preset.name, *preset.checkpoints, str(preset.dimension)} <= set(words)
        assert preset.suits in shown.out
        assert preset.licence in shown.out
    lines = [line.strip() for line in shown.out.splitlines()]
    assert "Matryoshka 64 128 256 512" in lines
    assert len(lines) < 32


def test_the_same_as_json() -> None:
    listed = json.loads(gap("models", "--json").out)

    assert [preset["name"] for preset in listed] == [*PRESETS, *SCORER_PRESETS]
    jina = asdict(PRESETS["jina"])
    assert listed[0] == {"kind": "encoder", **jina, "matryoshka": list(jina["matryoshka"])}
    assert listed[-1] == {"kind": "reranker", **asdict(SCORER_PRESETS["jina-m0"])}
