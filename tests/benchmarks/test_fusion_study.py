"""The study of fusions runs, and docs/fusion.md says what there is."""

from __future__ import annotations

import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from two_modalities import Collection, evaluate

from llama_index_gap.search.fusion import ScoredLeg, fuse

SCRIPT = ROOT / "benchmarks" / "fusion_study.py"
DOC = (ROOT / "docs" / "fusion.md").read_text(encoding="utf-8")
STUDY = runpy.run_path(str(SCRIPT))
UNIT = [-1.0, 1.0] * 50  # mean 0 and standard deviation 1


@pytest.mark.slow
def test_quick_run(
    gap_shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = gap_shared / "data" / "clip_features" / "features_clip.npy"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(features), "--quick"])
    monkeypatch.setenv("COLUMNS", "80")

    runpy.run_path(str(SCRIPT), run_name="__main__")

    tables = capsys.readouterr().out.split("\n\n")
    titles = [table.split("\n")[0] for table in tables]
    assert sum(title.startswith("one modality") for title in titles) == 2 * 3
    assert sum(title.startswith("two modalities") for title in titles) == 2 * 8
    assert sum(title.startswith("all") for title in titles) == 2 * 3
    for table in tables:
        cells = [line.split("|") for line in table.splitlines() if re.match(r"\|[^-]", line)]
        rows = {name.strip(): values for _, name, *values in cells if name.strip()}
        if table.startswith("one modality: 50 %"):
            # With one modality to a document there is nothing to combine.
            assert rows["evidence"] == rows["backgr. z, max"] == rows["backgr. z, sum"]
            assert rows["evidence"] == rows["evidence, unsized"]  # 125 of each
            assert rows["raw, max"] == rows["raw, sum"]
            assert rows["raw, max"][-2].strip() == ".000±.000"
        if table.startswith("two modalities") and "settings" not in table:
            assert [*rows][2:] == [*STUDY["METHODS"]]


def test_features_of_any_kind() -> None:
    """Two documents, the second with a text only: other features are passed in like this."""
    north, east, west = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    background = np.tile([east, west], (25, 1))
    collections = {
        "text": Collection(np.array([east, north]), np.array([0, 1]), background),
        "image": Collection(np.array([west]), np.array([0]), background),
    }

    found = evaluate(np.array([north + 0.1 * east, west]), collections, [{1}, {0, 1}])

    assert found.recall["evidence"].tolist() == [1, 1]
    assert found.ndcg["text leg"].tolist() == pytest.approx([1, 1])
    assert found.recall["image leg"].tolist() == [0, 0.5]


def test_only_the_unsized_evidence_does_not_know_the_sizes() -> None:
    legs = {"text": ScoredLeg(["t"], [2.0], UNIT, 50), "image": ScoredLeg(["i"], [2.1], UNIT, 100)}

    def first(method: str) -> str:
        return STUDY["METHODS"][method](legs).documents[0].key

    assert first("evidence") == "t"
    assert first("evidence, unsized") == first("backgr. z, max") == "i"


def test_told_again_keeps_a_modality_as_it_is() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 8)) * [3, 2, 1, 1, 1, 1, 1, 1] + [4, 0, 0, 0, 0, 0, 0, 0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    fit, some = rows[:200], rows[200:]

    again = STUDY["told_again"](some, fit, 0.6, rng)

    def centred(vectors: np.ndarray) -> np.ndarray:
        moved = vectors - fit.mean(axis=0)
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    assert (centred(again) * centred(some)).sum(axis=1).mean() == pytest.approx(0.6, abs=0.06)
    spreads = [(centred(vectors) @ centred(vectors).T).std() for vectors in (again, some)]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.1)


# --- docs/fusion.md ------------------------------------------------------------------------------


def test_its_commands_exist() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", DOC, re.DOTALL | re.MULTILINE)

    assert len(commands) >= 2
    for command in "".join(commands).splitlines():
        program, script, *_ = shlex.split(command)
        assert program in {"python", "llama-gap"}
        assert script == "demo" if program == "llama-gap" else (ROOT / script).is_file()


def test_its_methods_are_those_of_the_study() -> None:
    named = set(re.findall(r"^\| ([a-zR][^|]*?) *\| *[.\d]", DOC, re.MULTILINE))

    assert set(STUDY["METHODS"]) <= named


def test_its_default_is_the_default() -> None:
    defaults = inspect.signature(fuse).parameters
    chosen = defaults["normalize"].default, defaults["combine"].default

    assert "the default, `{}` × `{}`".format(*chosen) in DOC
    assert STUDY["METHODS"][STUDY["DEFAULT"]].keywords == dict(
        zip(("normalize", "combine"), chosen, strict=True)
    )
