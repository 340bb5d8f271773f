"""Measures how well probabilities of relevance are calibrated, and which hits a threshold keeps.

    python benchmarks/calibration.py [--resamples 1000] [--seed 0] [--hits 100] [--shown 16]

The data are real CLIP ViT-B/16 features of 500 COCO pairs (Liang et al., Mind the Gap), in the
folder that ``GAP_SHARED`` names. 400 images and their captions are searched. The queries are:

- ``text_to_image``: a caption asks for its image;
- ``image_to_text``: an image asks for its caption;
- ``text_to_text``: *simulated*, because each image has only one caption here. The query keeps a
  share of 0.55 of the difference between its caption and the mean of all captions; the rest comes
  from one of the other 100 captions. With that share, a text is about as hard to find as an
  image.

Half of the queries fit the calibrators, with their first 100 hits, the default of
``collect_scores``. The first 16 hits of the other queries are judged, as many as a search returns.
Probabilities are

- the raw cosine, taken as a probability;
- the share of relevant hits, whatever the score;
- one curve for all pairs (pooled), and one for each pair, by either method;
- one curve for each pair, fitted on the first 16 hits only (few hits).

The error is the expected calibration error with 15 bins. Intervals cover 95 % of bootstrap samples
of the held-out queries; calibrators are fitted once. A bootstrap sample has a higher calibration
error than the queries that it is drawn from, so intervals near 0 are too high.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from llama_index_gap.gap.arrays import BoolArray, FloatArray, IntArray
from llama_index_gap.gap.calibrate import (
    RelevanceCalibrator,
    brier_score,
    expected_calibration_error,
)

Probability = Callable[[str, FloatArray], FloatArray]
Measure = Callable[[IntArray], float]

DOCUMENTS = 400
KEPT_SHARE = 0.55
POOLED = "text_to_text"  # any pair will do: a calibrator has no pair that stands for all pairs
WANTED = 0.5


@dataclass(frozen=True)
class Hits:
    """The hits of queries, best first.

    Attributes:
        scores: shape (queries, hits).
        labels: whether each hit is the relevant one, shape (queries, hits).
    """

    scores: FloatArray
    labels: BoolArray

    def of(self, queries: IntArray, hits: int) -> Hits:
        return Hits(self.scores[queries, :hits], self.labels[queries, :hits])

    def flat(self) -> tuple[FloatArray, BoolArray]:
        return self.scores.ravel(), self.labels.ravel()


def search(file: Path, rng: np.random.Generator) -> dict[str, Hits]:
    """All documents ranked for each query, by pair of modalities."""
    features = np.load(file).astype(np.float64)
    images, texts = unit(features)[:, rng.permutation(features.shape[1])]
    of_others = rng.choice(texts[DOCUMENTS:], DOCUMENTS)
    images, texts, mean = images[:DOCUMENTS], texts[:DOCUMENTS], texts.mean(axis=0)
    told_again = KEPT_SHARE * (texts - mean) + np.sqrt(1 - KEPT_SHARE**2) * (of_others - mean)
    cosines = {
        "text_to_image": texts @ images.T,
        "image_to_text": images @ texts.T,
        "text_to_text": unit(mean + told_again) @ texts.T,
    }
    found = {}
    for pair, of_pair in cosines.items():
        ranked = np.argsort(-of_pair, axis=1)
        own = np.arange(DOCUMENTS)[:, None]
        found[pair] = Hits(np.take_along_axis(of_pair, ranked, axis=1), ranked == own)
    return found


def unit(vectors: FloatArray) -> FloatArray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# --- ways to obtain a probability ----------------------------------------------------------------


def ways_to_probability(fit: dict[str, Hits], few: dict[str, Hits]) -> dict[str, Probability]:
    data = {pair: hits.flat() for pair, hits in fit.items()}
    pooled = tuple(np.concatenate(parts) for parts in zip(*data.values(), strict=True))
    share = {pair: float(hits.labels.mean()) for pair, hits in few.items()}
    ways: dict[str, Probability] = {
        "raw cosine": lambda pair, scores: scores.clip(0, 1),
        "the share": lambda pair, scores: np.full_like(scores, share[pair]),
    }
    for method in ("logistic", "isotonic"):
        of_all = RelevanceCalibrator.fit({POOLED: pooled}, method)
        ways[f"pooled {method}"] = lambda pair, scores, c=of_all: c.probability(POOLED, scores)
    for method in ("logistic", "isotonic"):
        ways[f"per pair, {method}"] = RelevanceCalibrator.fit(data, method).probability
    of_few = RelevanceCalibrator.fit({pair: hits.flat() for pair, hits in few.items()})
    ways["isotonic, few hits"] = of_few.probability
    return ways


def interval(measure: Measure, queries: int, resamples: int) -> str:
    """A measure over all queries, with its 95 % bootstrap interval."""
    every = np.arange(queries)
    sampled = bootstrap(
        (every,), measure, n_resamples=resamples, vectorized=False, method="percentile", rng=0
    )
    value, (low, high) = measure(every), sampled.confidence_interval
    return f"{value:.3f} [{low:.3f}, {high:.3f}]".replace("0.", ".")


def error_table(ways: dict[str, Probability], test: dict[str, Hits], resamples: int) -> Table:
    table = Table("pair", "probability", "calibration error", "Brier score", box=None)
    for pair, hits in test.items():
        for name, probability in ways.items():
            values = probability(pair, hits.scores.ravel()).reshape(hits.scores.shape)
            cells = [
                interval(
                    lambda queries, of=of, values=values, hits=hits: of(
                        values[queries].ravel(), hits.labels[queries].ravel()
                    ),
                    len(hits.scores),
                    resamples,
                )
                for of in (expected_calibration_error, brier_score)
            ]
            table.add_row("" if name != "raw cosine" else pair, name, *cells)
    return table


# --- hits that a threshold keeps -----------------------------------------------------------------


def threshold_table(
    ways: dict[str, Probability],
    fit: dict[str, Hits],
    test: dict[str, Hits],
    resamples: int,
) -> Table:
    """Precision of the kept hits, and the share of queries whose relevant document is kept.

    At each cosine shown, half of the images, or half of the texts, are relevant.
    """
    calibrator = RelevanceCalibrator.fit({pair: hits.flat() for pair, hits in fit.items()})
    keeps: dict[str, Callable[[str, FloatArray], BoolArray]] = {}
    for pair in ("text_to_image", "text_to_text"):
        least = calibrator.threshold(pair, WANTED)
        keeps[f"cosine ≥ {least:.3f}"] = lambda _, scores, least=least: scores >= least
    for name in ("pooled isotonic", "per pair, logistic", "per pair, isotonic"):
        keeps[f"{name} ≥ {WANTED}"] = lambda pair, s, of=ways[name]: of(pair, s) >= WANTED
    table = Table("kept", "pair", "hits", "precision", "found", box=None)
    for name, keep in keeps.items():
        for number, (pair, hits) in enumerate(test.items()):
            kept = keep(pair, hits.scores.ravel()).reshape(hits.scores.shape)
            right = (kept & hits.labels).sum(axis=1)
            count = kept.sum(axis=1)

            def precision(queries: IntArray, right=right, count=count) -> float:
                total = count[queries].sum()
                return float(right[queries].sum() / total) if total else np.nan

            table.add_row(
                "" if number else name,
                pair,
                f"{count.mean():.2f}",
                interval(precision, len(count), resamples) if count.any() else "–",
                f"{right.mean():.2f}",
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hits", type=int, default=100, help="hits of each query for fitting")
    parser.add_argument("--shown", type=int, default=16, help="hits that a search returns")
    options = parser.parse_args()
    if not (shared := os.environ.get("GAP_SHARED")):
        parser.error("GAP_SHARED is not set; it must name the folder of shared data")

    rng = np.random.default_rng(options.seed)
    found = search(Path(shared) / "data" / "clip_features" / "features_clip.npy", rng)
    fitted, held_out = np.split(rng.permutation(DOCUMENTS), 2)
    fit = {pair: hits.of(fitted, options.hits) for pair, hits in found.items()}
    few = {pair: hits.of(fitted, options.shown) for pair, hits in found.items()}
    test = {pair: hits.of(held_out, options.shown) for pair, hits in found.items()}
    ways = ways_to_probability(fit, few)

    console = Console()
    console.print(f"{len(fitted)} queries of each pair to fit, {len(held_out)} held out")
    firsts = (f"{pair} {hits.labels[:, 0].mean():.2f}" for pair, hits in found.items())
    console.print(f"Share of queries with the relevant document first: {', '.join(firsts)}\n")
    console.print(error_table(ways, test, options.resamples))
    console.print(
        f"\nHits that a threshold keeps, of {options.shown} per query "
        "(first cosine: for images, second: for texts)"
    )
    console.print(threshold_table(ways, fit, test, options.resamples))


if __name__ == "__main__":
    main()
