"""The study of fusions runs, agrees with the package, and the docs match it."""

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

from llama_index_gap.search.fusion import fuse
from llama_index_gap.search.retriever import DualIndexRetriever

SCRIPT = ROOT / "benchmarks" / "fusion_study.py"
PAGE, APPENDIX = (
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("fusion.md", "fusion-study.md")
)
STUDY = runpy.run_path(str(SCRIPT))


@pytest.mark.slow
def test_quick_run(
    gap_shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = gap_shared / "data" / "clip_features" / "features_clip.npy"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(features), "--quick"])

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
            # With one modality per document, there is nothing to combine.
            assert rows["raw, max"] == rows["raw, sum"]
            assert rows["evidence"] == rows["intent"]  # 125 of each
            assert rows["raw, max"][-2].strip() == ".000±.000"
        if table.startswith("two modalities") and "settings" not in table:
            assert [*rows][2:] == [*STUDY["METHODS"]]


@pytest.mark.parametrize("answers", [1, 2])
def test_its_fusion_is_the_packages(answers: int) -> None:
    """Legs of different sizes, hits in the background, real hubs, and a sample of queries."""
    rng = np.random.default_rng(answers)

    def cone(n: int, at: int) -> np.ndarray:
        rows = rng.normal(size=(n, 16))
        rows[:, at] += 4 + rng.normal(size=n)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    legs = {}
    for at, (name, size) in enumerate((("text", 400), ("image", 90))):
        rows = cone(size, at)
        drawn = rng.permutation(size)[:70]
        places = np.full(size, -1)
        places[drawn] = np.arange(70)
        legs[name] = STUDY["Searched"](rows, np.arange(size), rows[drawn], places)
    queries = cone(12, 0)
    methods = {name: each for name, each in STUDY["METHODS"].items() if each.of_package}
    wanted = rng.permutation(90)[: 12 * answers].reshape(12, answers)

    found = STUDY["evaluate"](  # raises if ``fuse`` disagrees
        queries, legs, wanted, methods, references=cone(100, 0), sample=cone(60, 0), checked=12
    )

    assert [*found.ndcg] == ["text leg", "image leg", *methods]
    assert len(methods) > 12


def test_other_scores_than_the_packages_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 4))
    leg = STUDY["Searched"](rows, np.arange(20), rows[:10])
    evaluate = STUDY["evaluate"]
    monkeypatch.setitem(evaluate.__globals__, "RANK_CONSTANT", 61)

    with pytest.raises(AssertionError, match="RRF: fuse gives"):
        evaluate(
            rows[:2],
            {"text": leg, "image": leg},
            np.array([[0], [1]]),
            {"RRF": STUDY["METHODS"]["RRF"]},
            references=rows,
            sample=rows,
        )


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


# --- the documentation ---------------------------------------------------------------------------


def test_its_commands_exist() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", PAGE + APPENDIX, re.DOTALL | re.MULTILINE)

    assert len(commands) >= 2
    for command in "".join(commands).splitlines():
        program, script, *_ = shlex.split(command)
        assert program in {"python", "llama-gap"}
        assert program == "llama-gap" or (ROOT / script).is_file()


def test_its_methods_are_those_of_the_study() -> None:
    named = set(re.findall(r"^\| ([a-zA-Z][^|]*?) *\| *[.\d]", APPENDIX, re.MULTILINE))

    assert set(STUDY["METHODS"]) <= named


def test_its_default_is_the_default() -> None:
    defaults = inspect.signature(fuse).parameters
    chosen = defaults["normalize"].default, defaults["combine"].default
    hubs = inspect.signature(DualIndexRetriever).parameters["hubs"].default

    assert "`{}` × `{}`".format(*chosen) in PAGE
    assert hubs is True
    default = STUDY["METHODS"][STUDY["DEFAULT"]]
    assert default == (*chosen, "hubs", False)
    assert STUDY["METHODS"][STUDY["WITH_SAMPLE"]] == (*chosen, "hubs", True)
