"""Measures the effect of the hub correction on real features of several dual encoders.

    python benchmarks/hubs.py [FOLDER] [--splits 8] [--quick]

FOLDER holds features of pairs as ``.npy`` files of shape (2, n, d), images (or their counterparts)
first; by default data/clip_features and data/other_gap_features in the folder that the environment
variable GAP_SHARED names: CLIP ViT-B/16 (COCO), VideoCLIP, ConVIRT and CLASP (Liang et al. 2022,
*Mind the Gap*). ConVIRT matches weakly, and its texts repeat; CLASP is at chance.

Half of the pairs are queries, in several splits; references are the other half's vectors of the
query's modality. ± is half of a 95 % bootstrap interval over pairs. *gain* is the paired
difference.

1. One leg: each text asks for its image among the images of its half, and each image for its text.
   The correction gets the first 64 hits, as in the retriever. ρ is the reliability of the hubs.
2. Two legs: as *two modalities, real* of ``fusion_study.py``, with one answer: nDCG@10, mean over
   queries for the image, the headline, and both.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.estimates import Estimate, bootstrap
from llama_index_gap.gap.hubs import reliability

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
from first_stage import Leg, Searched  # noqa: E402
from fusion_study import (  # noqa: E402
    DEFAULT,
    WIDTH,
    WITH_SAMPLE,
    Scale,
    Study,
    short,
    table_of,
    two_modalities,
    with_error,
)
from gap_mitigations import Features, split  # noqa: E402

FOLDERS = ("data/clip_features", "data/other_gap_features")
CUTS = (1, 10)
RIVALS = ("raw, max", "RRF", "min–max, sum", "DBSF, sum", "list z, evidence", "plain: evidence")
FUSIONS = (
    "text leg",
    "image leg",
    "raw, max",
    "RRF",
    "min–max, sum",
    "DBSF, sum",
    "list z, evidence",
    "plain: evidence",
    "intent",
    DEFAULT,
    WITH_SAMPLE,
)


def figures(rows: FloatArray) -> FloatArray:
    """R@1, R@10 and nDCG@10 of queries; the right hit of query i is i."""
    right = rows == np.arange(len(rows))[:, None]
    place = np.where(right.any(axis=1), right.argmax(axis=1), np.inf)
    ndcg = np.where(place < 10, 1 / np.log2(place + 2), 0)
    return np.column_stack([*(place < cut for cut in CUTS), ndcg])


def one_leg(features: Features, target: str, splits: int) -> tuple[float, dict[str, Estimate]]:
    """ρ, the figures without and with the correction, and the gain."""
    pairs = len(features.texts)
    rows = {"text": features.texts, "image": features.images}
    asking = "image" if target == "text" else "text"
    values, units, rhos = [], [], []
    for seed in range(splits):
        fit, test = split(seed, pairs)
        vectors, references = rows[target][test], rows[asking][fit]
        leg = Leg(
            rows[asking][test],
            Searched(vectors, np.arange(len(test)), vectors[:300]),
            references,
            references,
        )
        found = [figures(leg.hits(correct, sample=False).rows) for correct in ("", "hubs")]
        values.append(np.hstack([*found, found[1] - found[0]]))
        units.append(test)
        rhos.append(reliability(vectors[:300], references))
    every, of_unit = np.vstack(values), np.concatenate(units)
    names = [
        f"{way} {figure}"
        for way in ("plain", "corrected", "gain")
        for figure in ("R@1", "R@10", "nDCG@10")
    ]

    def means(counts: FloatArray) -> dict[str, float]:
        times = counts[of_unit]
        return dict(zip(names, (times @ every / times.sum()).tolist(), strict=True))

    return float(np.mean(rhos)), bootstrap(means, np.zeros(pairs))


def signed(gain: Estimate) -> str:
    return f"{short(gain.value, '+')} ({short(gain.low, '+')} {short(gain.high, '+')})"


def single_legs(files: Sequence[Path], splits: int) -> Iterator[tuple[str, list[str]]]:
    for path in files:
        features = Features(path, None)
        for target in ("image", "text"):
            rho, found = one_leg(features, target, splits)
            cells = [f"{rho:.2f}"]
            for figure in ("R@1", "nDCG@10"):
                cells += [with_error(found[f"{way} {figure}"]) for way in ("plain", "corrected")]
                cells.append(signed(found[f"gain {figure}"]))
            cells.append(
                " → ".join(short(found[f"{way} R@10"].value) for way in ("plain", "corrected"))
            )
            yield f"{named(path)}, → {target}", cells


def fused(path: Path, scale: Scale) -> dict[str, str]:
    """nDCG@10 of each method, mean over the kinds of query, and the default's lead."""
    experiments = list(two_modalities(Features(path, None), scale, answers_of=(1,)))
    study = Study(experiments, "ndcg")
    methods = list(experiments[0].outcome.ndcg)

    def figures(counts: FloatArray) -> dict[tuple[str, str], float]:
        means = [study.means(number, counts)[-1] for number in range(len(experiments))]
        mean = dict(zip(methods, np.mean(means, axis=0).tolist(), strict=True))
        leads = {(name, "lead"): mean[DEFAULT] - mean[name] for name in RIVALS}
        return {(name, "mean"): mean[name] for name in FUSIONS} | leads

    asked = np.unique(np.concatenate(study.units))
    every = np.zeros(len(study.strata))

    def of_units(counts: FloatArray) -> dict[tuple[str, str], float]:
        every[asked] = counts
        return figures(every)

    found = bootstrap(of_units, np.zeros(len(asked)), rounds=scale.rounds)
    cells = {name: with_error(found[name, "mean"]) for name in FUSIONS}
    return cells | {f"leads {name} by": signed(found[name, "lead"]) for name in RIVALS}


def named(path: Path) -> str:
    return path.stem.removeprefix("features_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one split, for tests")
    options = parser.parse_args()
    if options.folder is None and "GAP_SHARED" not in os.environ:
        parser.error("give FOLDER, or set GAP_SHARED")
    folders = [options.folder] if options.folder else []
    folders = folders or [Path(os.environ["GAP_SHARED"]) / name for name in FOLDERS]
    files = [path for folder in folders for path in sorted(folder.glob("*.npy"))]
    splits = 1 if options.quick else options.splits
    console = Console()
    console.width = max(console.width, WIDTH)

    console.print(f"One leg, queries from half of the pairs, {splits} splits")
    columns = ("ρ", "R@1", "corrected", "gain", "nDCG@10", "corrected", "gain", "R@10")
    console.print(table_of(columns, dict(single_legs(files, splits))))
    console.print(f"\nTwo legs, nDCG@10, {splits} splits")
    scale = Scale(splits=splits, rounds=20 if options.quick else 500)
    by_set = {named(path): fused(path, scale) for path in files}
    first = next(iter(by_set.values()))
    rows = {name: [cells[name] for cells in by_set.values()] for name in first}
    console.print(table_of(list(by_set), rows))


if __name__ == "__main__":
    main()
