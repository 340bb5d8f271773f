"""Measures small indexes, such as everybody's first one, and legs of noise.

    python benchmarks/small_indexes.py [FEATURES] [--splits 40] [--quick]

FEATURES are CLIP ViT-B/16 features of 500 image–caption pairs of COCO, see ``fusion_study.py``. An
index has n documents with a text; m of them also have an image, from another pair. Figures are R@1;
± is half of a 95 % bootstrap interval over splits.

1. **Small indexes.** Up to 40 queries ask for a text (reworded, at a centred cosine of 0.6), and up
   to 40 for an image (by its caption). The figure is the mean of both.
2. **Noise.** The image vectors are random, and all queries ask for texts. This shows the cost of a
   useless leg. *texts* is the text leg alone.
3. **An idea that is not in the package: captions show whether the image leg works.** A caption's
   percentile is the share of the *other* images that lie farther from it than its own. The image
   leg's weight is 2 · mean percentile − 1, at least 0: about 1 for a good leg and about 0 for
   noise. With *caption*, each image has a caption (reworded at 0.6); with *text*, it has none, and
   the document's text, which is about something else, takes its place.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.estimates import bootstrap
from llama_index_gap.search.fusion import fuse

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
from first_stage import Leg, Method, Searched, rankings, scored  # noqa: E402
from fusion_study import table_of, told_again, with_error  # noqa: E402
from gap_mitigations import FILE, PAIRS, Features  # noqa: E402
from two_modalities import BACKGROUND, unit  # noqa: E402

DEFAULT = Method("background", "intent", "hubs")
METHODS = {
    "rank, sum": Method("rank", "sum"),
    "min–max, sum": Method("minmax", "sum"),
    "list z, evidence": Method("zscore", "evidence"),
    "all vectors' z, evidence": Method("all vectors", "evidence"),
    "the others' t, evidence": Method("plain", "evidence"),
    "the others' t, intent": Method("plain", "intent"),
    "evidence": Method("background", "evidence"),
    "evidence, hubs": Method("background", "evidence", "hubs"),
    "intent": Method("background", "intent"),
    "intent, hubs": DEFAULT,
}
SIZES = ((15, 4), (30, 6), (60, 20), (120, 40), (411, 40))
NOISE = ((15, 4), (60, 20), (400, 40))
COSINE = 0.6
OF_KIND = 40


class Small(NamedTuple):
    """A small index with its queries.

    Attributes:
        legs: the legs, searched by all queries.
        wanted: the relevant document of each query, shape (q,).
        for_texts: the number of queries that ask for texts; they come first.
        captions: captions of the images, shape (m, d).
        texts: texts of the documents that have an image, shape (m, d).
    """

    legs: Mapping[str, Leg]
    wanted: FloatArray
    for_texts: int
    captions: FloatArray
    texts: FloatArray


def small(features: Features, n: int, m: int, seed: int, *, noise: bool = False) -> Small:
    rng = np.random.default_rng([seed, n, m])
    order = rng.permutation(PAIRS)
    headlines = order[:n]
    shown = order[-m:] if n + m <= PAIRS else rng.permutation(PAIRS)[:m]
    texts, images = features.texts[headlines], features.images[shown]
    if noise:
        images = unit(rng.normal(size=images.shape))
    some = rng.permutation(n)[:OF_KIND]
    queries, wanted = [told_again(texts[some], features.texts, COSINE, rng)], [some]
    if not noise:
        queries.append(features.texts[shown][:OF_KIND])
        wanted.append(np.arange(min(m, OF_KIND)))
    captions = told_again(features.texts[shown], features.texts, COSINE, rng)
    searched = {}
    for name, rows in (("text", texts), ("image", images)):
        drawn = rng.permutation(len(rows))[:BACKGROUND]
        places = np.full(len(rows), -1)
        places[drawn] = np.arange(len(drawn))
        searched[name] = Searched(rows, np.arange(len(rows)), rows[drawn], places)
    references = searched["text"].sample
    asked = np.vstack(queries)
    legs = {name: Leg(asked, leg, references, references) for name, leg in searched.items()}
    return Small(legs, np.concatenate(wanted), len(some), captions, texts[:m])


def first_right(index: Small, first: FloatArray) -> float:
    """R@1; each kind of query has the same weight."""
    right = first == index.wanted
    kinds = (right[: index.for_texts], right[index.for_texts :])
    return float(np.mean([kind.mean() for kind in kinds if len(kind)]))


def all_methods(index: Small) -> dict[str, float]:
    text_leg = index.legs["text"]
    found = {"texts": text_leg.searched.documents[text_leg.rows]} | rankings(index.legs, METHODS)
    return {name: first_right(index, ranked[:, 0]) for name, ranked in found.items()}


def weight(captions: FloatArray, images: FloatArray) -> float:
    """The weight of an image leg, by how well captions find their own images."""
    scores = captions @ images.T
    own = np.diag(scores)[:, None]
    percentiles = (scores < own).sum(axis=1) / (len(images) - 1)
    return max(0.0, float(2 * percentiles.mean() - 1))


def weighted(index: Small) -> dict[str, float]:
    """The default, without and with two weights for the image leg."""
    images = index.legs["image"].searched.vectors
    weights = {
        "default": 1.0,
        "weighted by captions": weight(index.captions, images),
        "weighted by the text": weight(index.texts, images),
    }
    found = {f"weight: {name}": value for name, value in weights.items()}
    for name, value in weights.items():
        first = [
            fuse(scored(index.legs, DEFAULT, number), weights={"image": value}).documents[0].key
            for number in range(len(index.wanted))
        ]
        found[name] = first_right(index, np.array(first))
    return found


def over_splits(found: list[dict[str, float]], rounds: int) -> dict[str, str]:
    table = np.array([list(of_split.values()) for of_split in found])

    def means(counts: FloatArray) -> dict[str, float]:
        return dict(zip(found[0], (counts @ table / counts.sum()).tolist(), strict=True))

    estimates = bootstrap(means, np.zeros(len(table)), rounds=rounds)
    return {name: with_error(estimate) for name, estimate in estimates.items()}


def columns_of(features: Features, splits: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The table's title, the column's name, and the cells."""
    for noise, sizes in ((False, SIZES), (True, NOISE)):
        for n, m in sizes:
            indexes = [
                small(features, n, m, seed, noise=noise)
                for seed in range(splits if n < 100 else max(1, splits // 3))
            ]
            what = "an image leg of noise" if noise else "small indexes"
            column = f"{n} / {m}"
            yield what, column, over_splits([all_methods(index) for index in indexes], 500)
            lead = over_splits([weighted(index) for index in indexes], 500)
            yield f"{what}: captions weigh the image leg", column, lead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=Path, nargs="?", help=f"by default GAP_SHARED/{FILE}")
    parser.add_argument(
        "--splits", type=int, default=40, help="splits; a third of them for the larger indexes"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for tests")
    options = parser.parse_args()
    if options.features is None and "GAP_SHARED" not in os.environ:
        parser.error("give FEATURES, or set GAP_SHARED")
    path = options.features or Path(os.environ["GAP_SHARED"]) / FILE
    features = Features(path)
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for title, column, cells in columns_of(features, 2 if options.quick else options.splits):
        tables.setdefault(title, {})[column] = cells
    console = Console()
    console.width = max(console.width, 100)
    for title, columns in tables.items():
        console.print(f"\n{title}: R@1", highlight=False)
        names = next(iter(columns.values()))
        rows = {name: [cells[name] for cells in columns.values()] for name in names}
        console.print(table_of(list(columns), rows))


if __name__ == "__main__":
    main()
