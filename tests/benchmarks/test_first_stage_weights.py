from __future__ import annotations

import subprocess
import sys

import pytest
from paths import ROOT
from scipy.special import expit

from llama_index_gap.evaluation.first_stage import Candidates

SCRIPT = ROOT / "benchmarks" / "first_stage_weights.py"


def test_agreement_scales_a_reranker_to_what_the_first_stage_confirms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Log odds of ±2 and ±1 against ±1 and ±0.5: b is 1/2. Against the opposite: the most."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from first_stage_weights import agreement_weight

    def found(odds: float, first: float) -> Candidates:
        probabilities = [*expit([odds, -odds]).tolist(), None]
        return Candidates(["a", "b", "c"], probabilities, [first, -first, 0.0], "log_odds")

    assert agreement_weight([found(2, 1), found(1, 0.5)]) == pytest.approx(2)
    assert agreement_weight([found(2, -1)]) == 16
    assert agreement_weight([Candidates([], [], [], None)]) == 16


@pytest.mark.slow
def test_it_shows_each_way_for_each_reranker() -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--quick"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert run.returncode == 0, run.stderr
    for reranker in ("reranker", "a weak one, simulated", "a strong one, simulated"):
        assert f"\n{reranker}\n" in run.stdout
    assert run.stdout.count("│ both, learnt for each kind ") == 6
    assert run.stdout.count("by agreement, without labels: weight") == 3
