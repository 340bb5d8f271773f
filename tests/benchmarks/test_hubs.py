"""The benchmarks of the hub correction and of small indexes run, and the correction helps."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from paths import ROOT


def table(shown: str) -> dict[str, list[float]]:
    """The first number of each cell, by row name; the last row with a name counts."""
    rows = [line.split("|")[1:-1] for line in shown.splitlines() if re.match(r"\|[^-]", line)]
    return {
        name.strip(): [
            float(number[0]) for cell in cells if (number := re.findall(r"\d?\.\d+", cell))
        ]
        for name, *cells in rows
    }


def run(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared: Path
) -> str:
    path = ROOT / "benchmarks" / script
    monkeypatch.setattr(sys, "argv", [str(path), "--quick"])
    monkeypatch.setenv("GAP_SHARED", str(shared))
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.slow
def test_hubs(
    gap_shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table(run("hubs.py", monkeypatch, capsys, gap_shared))

    reliability, plain, corrected, *_ = rows["clip, → image"]
    assert reliability > 0.8
    assert corrected > plain
    assert rows["hubs, intent"][0] > rows["plain: evidence"][0] > rows["raw, max"][0]


@pytest.mark.slow
def test_small_indexes(
    gap_shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run("small_indexes.py", monkeypatch, capsys, gap_shared)

    small, lead, noise, noise_lead = (table(part) for part in re.split(r"\n\w.*: R@1\n", shown)[1:])
    assert all(map(float.__gt__, small["intent, hubs"], small["rank, sum"]))
    assert all(map(float.__gt__, noise["intent, hubs"], noise["rank, sum"]))
    # Captions reveal a leg of noise; texts about something else do not.
    assert min(lead["weight: weighted by captions"]) > max(
        noise_lead["weight: weighted by captions"]
    )
    assert max(lead["weight: weighted by the text"]) < 0.5


@pytest.mark.slow
def test_newsroom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run("newsroom_fusion.py", monkeypatch, capsys, tmp_path)

    ndcg, recall = (table(part) for part in re.split(r"\n(?:nDCG|recall)@10\n", shown)[1:])
    assert ndcg["hubs, intent (sample)"][0] > ndcg["hubs, intent"][0]
    assert recall["hubs, intent (sample)"][0] > recall["text leg"][0]
