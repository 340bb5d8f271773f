"""Compares fusions over a wide range: one modality or two, several kinds of query and corpus.

    python benchmarks/fusion_study.py [FEATURES] [--each] [--quick]

All methods get 16 candidates of each leg (with the hub correction, the best 16 of 64), up to 300
vectors of its collection as the background, and the collection's size. ``first_stage.py`` computes
the methods for all queries at once. It checks itself against ``llama_index_gap.search.fusion.fuse``
in every setting, and explains the methods that the package does not have. References for hubs are
up to 300 stored vectors of the query's modality. With ``(sample)``, some 180 to 250 unlabelled
queries are also known: they are the references, and the spread is √(own × sample's). In the real
parts they are captions or images of the background's pairs, unchanged or reworded. ``plain:``
leaves the upper quarter of the background out.

Tables show nDCG@10 and recall@10; ± is half of a 95 % bootstrap interval over queries (over COCO's
pairs for real features). In the summary, *rank* is the mean rank over the settings, *regret* the
mean distance from the best method of each setting, *worst* the largest distance.

**One modality.** Each document is a text or an image, with real CLIP ViT-B/16 features of 500
image–caption pairs of COCO (FEATURES; by default data/clip_features/features_clip.npy in the folder
that the environment variable GAP_SHARED names). 250 pairs are the background. The corpus is one
half of each of the other 250 pairs, with 10, 50 or 90 % images. There are 8 splits, text queries
and image queries. A query's right answer is

- *across*: the other half of its own pair; these queries are real;
- *own*: an item of its own modality. Each image has one caption here, so these queries are
  simulated: the query is the item reworded, that is, moved within its modality's own covariance
  until their centred cosine is 0.35 or 0.6 (raw, for texts: 0.69 or 0.81; unrelated texts have 0.52
  ± 0.11). The leg alone then finds it less often, or more often, than captions find their images
  (nDCG@10 0.5 or 0.98, and 0.77).

Queries of both kinds are mixed: 0 to 100 % across. A query has one answer or four; for four, the
corpus holds every item four times, reworded at a centred cosine of 0.8.

**Two modalities, real.** 125 documents, each the caption of one pair and the image of another. Text
queries are about the image (its own caption, real), about the headline (reworded, as above), or
about both (the mean of two such queries). One or four answers, as above.

**Two modalities, simulated.** 10,000 documents of the simulation in ``tests/support/
two_modalities.py``: with a gap like CLIP's (0.85) or a narrow one (0.41, where the modalities share
most of a vector); with texts, images or neither easier to find; with an image in every document or
in every fifth; and with one or eight documents that answer a query.

``first_stage.evaluate`` accepts any other features: vectors of queries, of texts and of images, and
the relevant documents of each query. ``hubs.py`` uses it for features of other dual encoders.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from llama_index_gap.gap.arrays import FloatArray, IntArray
from llama_index_gap.gap.estimates import Estimate, bootstrap

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
from first_stage import DEFAULT, METHODS, WITH_SAMPLE, Searched, evaluate  # noqa: E402
from gap_mitigations import FILE, PAIRS, Features, split  # noqa: E402
from two_modalities import KINDS, Outcome, Simulation, World, unit  # noqa: E402

WIDTH = 136  # characters in a line of the tables
PERCENT = (10, 50, 90)
COSINES = (0.35, 0.6)
ANSWERS = (1, 4)
AMONG_ANSWERS = 0.8
AGAIN = 0.5  # the centred cosine of a sample query with the item that it rewords
SAMPLE_OF_KIND = 60
ACROSS = (0, 25, 50, 75, 100)
GAPS = {
    "CLIP-like gap": {},
    "narrow gap": {"norms": (0.29, 0.29), "cosine_of_means": 0.0, "shared": 0.8},
}
SIGNALS = {
    "texts easier": {"of_headlines": 0.738, "of_images": 0.7},
    "alike": {"of_headlines": 0.5, "of_images": 0.67},
    "images easier": {"of_headlines": 0.55, "of_images": 0.9},
}
IMAGED = (1.0, 0.2)
ALIKE = (1, 8)


@dataclass(frozen=True)
class Experiment:
    """The results of all methods in one setting.

    Attributes:
        name: the setting.
        part: one of the three parts.
        table: the table that shows its mean with other settings.
        answers: the number of relevant documents per query.
        kinds: the kind of each query, shape (q,).
        units: the bootstrap unit of each query, shape (q,).
        outcome: nDCG and recall of each method and query.
        views: mixtures of kinds, by name: the weight of each kind.
    """

    name: str
    part: str
    table: str
    answers: int
    kinds: npt.NDArray[np.str_]
    units: IntArray
    outcome: Outcome
    views: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Scale:
    """How much to run."""

    percent: Sequence[int] = PERCENT
    cosines: Sequence[float] = COSINES
    splits: int = 8
    seeds: int = 6
    queries: int = 60
    documents: int = 10_000
    rounds: int = 500


QUICK = Scale((50,), (0.6,), splits=1, seeds=1, queries=5, documents=800, rounds=10)


# --- one modality --------------------------------------------------------------------------------


def told_again(
    rows: FloatArray, fit: FloatArray, cosine: float, rng: np.random.Generator
) -> FloatArray:
    """Reworded vectors: of the same modality, with about this centred cosine to the originals."""
    mean = fit.mean(axis=0)
    noise = rng.normal(size=(len(rows), len(fit))) @ (fit - mean) / np.sqrt(len(fit))
    return unit(mean + cosine * (rows - mean) + np.sqrt(1 - cosine**2) * noise)


def several(
    rows: FloatArray, fit: FloatArray, answers: int, rng: np.random.Generator
) -> FloatArray:
    """Each vector; for several answers, as many reworded copies of it."""
    if answers == 1:
        return rows
    return told_again(np.repeat(rows, answers, axis=0), fit, AMONG_ANSWERS, rng)


def like_queries(rows: FloatArray, rng: np.random.Generator, kinds: int = 2) -> FloatArray:
    """A sample of queries: stored vectors, reworded ones, and, for three kinds, sums of both.

    Args:
        rows: vectors of pairs that no query asks for, shape (n, d).
        rng: for the rewording.
        kinds: the number of kinds of query, 2 or 3.
    """
    parts = np.array_split(rows, kinds)
    asks = [parts[0], told_again(parts[1], rows, AGAIN, rng)]
    if kinds == 3:
        others = told_again(np.roll(parts[2], 1, axis=0), rows, AGAIN, rng)
        asks.append(unit(parts[2] + others))
    return np.vstack(asks)


def one_modality(features: Features, scale: Scale) -> Iterator[Experiment]:
    views = {f"{share} %": {"across": share / 100, "own": 1 - share / 100} for share in ACROSS}
    rows = {"text": features.texts, "image": features.images}
    for (asking, other), answers, cosine, percent in product(
        (("text", "image"), ("image", "text")), ANSWERS, scale.cosines, scale.percent
    ):
        outcomes, kinds, units = [], [], []
        for seed in range(scale.splits):
            fit, test = split(seed)
            rng = np.random.default_rng([seed, percent])
            images, texts = np.split(test, [round(len(test) * percent / 100)])
            pairs = {"text": texts, "image": images}
            legs = {
                name: Searched(
                    several(rows[name][pairs[name]], rows[name][fit], answers, rng),
                    np.arange(answers * len(pairs[name])) + answers * PAIRS * (name == "image"),
                    rows[name][fit],
                )
                for name in rows
            }
            closeness = cosine if answers == 1 else cosine / AMONG_ANSWERS
            again = told_again(rows[asking][pairs[asking]], rows[asking][fit], closeness, rng)
            queries = np.vstack([rows[asking][pairs[other]], again])
            wanted = np.vstack(
                [legs[name].documents.reshape(-1, answers) for name in (other, asking)]
            )
            known = {
                "references": rows[asking][fit],
                "sample": like_queries(rows[asking][fit], rng),
            }
            outcomes.append(evaluate(queries, legs, wanted, METHODS, **known))
            kinds += ["across"] * len(pairs[other]) + ["own"] * len(pairs[asking])
            units += [pairs[other], pairs[asking]]
        yield Experiment(
            f"{percent} % images, {asking} queries, {counted(answers)}, own at {cosine}",
            "one modality",
            f"one modality: {percent} % images, {counted(answers)}",
            answers,
            np.array(kinds),
            np.concatenate(units),
            joined(outcomes),
            views,
        )


def counted(answers: int) -> str:
    return "1 answer" if answers == 1 else f"{answers} answers"


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    ndcg, recall = (
        {
            name: np.concatenate([getattr(outcome, figure)[name] for outcome in outcomes])
            for name in outcomes[0].ndcg
        }
        for figure in ("ndcg", "recall")
    )
    return Outcome(ndcg, recall)


# --- two modalities ------------------------------------------------------------------------------

EACH_KIND = {
    **{kind: {kind: 1.0} for kind in KINDS},
    "mean": {kind: 1 / len(KINDS) for kind in KINDS},
}


def two_modalities(
    features: Features, scale: Scale, answers_of: Sequence[int] = ANSWERS
) -> Iterator[Experiment]:
    for answers, cosine in product(answers_of, scale.cosines):
        outcomes, units = [], []
        for seed in range(scale.splits):
            fit, test = split(seed, len(features.texts))
            headlines, shown = np.split(test[: len(test) // 2 * 2], 2)
            rng = np.random.default_rng(seed)
            settings = {"answers": answers, "cosine": cosine}
            outcomes.append(two_sided(features, fit, headlines, shown, rng=rng, **settings))
            units += [shown, headlines, shown]
        yield Experiment(
            f"{counted(answers)}, headlines at {cosine}",
            "two modalities, real",
            f"two modalities, real: {counted(answers)}",
            answers,
            np.tile(np.repeat(KINDS, len(headlines)), scale.splits),
            np.concatenate(units),
            joined(outcomes),
            EACH_KIND,
        )


def two_sided(
    features: Features,
    fit: IntArray,
    headlines: IntArray,
    shown: IntArray,
    *,
    answers: int,
    cosine: float,
    rng: np.random.Generator,
) -> Outcome:
    """Documents with the caption of one pair and the image of another, and three kinds of query."""
    texts, images = features.texts, features.images
    documents = np.arange(answers * len(headlines))
    legs = {
        name: Searched(several(rows[pairs], rows[fit], answers, rng), documents, rows[fit])
        for name, rows, pairs in (("text", texts, headlines), ("image", images, shown))
    }
    closeness = cosine if answers == 1 else cosine / AMONG_ANSWERS
    of_shown = texts[shown]
    of_headline = told_again(texts[headlines], texts[fit], closeness, rng)
    queries = np.vstack([of_shown, of_headline, unit(of_shown + of_headline)])
    wanted = np.tile(documents.reshape(-1, answers), (len(KINDS), 1))
    known = {"references": texts[fit], "sample": like_queries(texts[fit], rng, 3)}
    return evaluate(queries, legs, wanted, METHODS, **known)


def simulated(scale: Scale) -> Iterator[Experiment]:
    for number, (alike, gap, signal, imaged) in enumerate(product(ALIKE, GAPS, SIGNALS, IMAGED)):
        world = World(scale.documents, imaged, alike=alike, **GAPS[gap], **SIGNALS[signal])
        outcomes = [
            ask(Simulation([number, seed], world), scale.queries) for seed in range(scale.seeds)
        ]
        kinds = np.tile(np.repeat(KINDS, scale.queries), scale.seeds)
        yield Experiment(
            f"{gap}, {signal}, {imaged:.0%} with an image, {counted(alike)}",
            "two modalities, simulated",
            f"two modalities, simulated: {gap}, {counted(alike)}",
            alike,
            kinds,
            np.arange(len(kinds)),
            joined(outcomes),
            EACH_KIND,
        )


def ask(simulation: Simulation, queries: int) -> Outcome:
    """Ask ``queries`` queries of each kind; the sample of queries is about other subjects."""
    legs = {}
    for name, rows in (("text", simulation.texts), ("image", simulation.images)):
        places = np.full(len(rows), -1)
        drawn = simulation.samples[name]
        places[drawn] = np.arange(len(drawn))
        legs[name] = Searched(rows, np.arange(len(rows)), rows[drawn], places)
    world = simulation.world
    others = min(SAMPLE_OF_KIND, simulation.imaged // world.alike - queries)
    asked, wanted, sample = [], [], []
    for kind in KINDS:
        subjects = simulation.subjects(kind, queries + others)
        vectors = simulation.queries(kind, subjects)
        asked.append(vectors[:queries])
        sample.append(vectors[queries:])
        wanted.append(subjects[:queries, None] * world.alike + np.arange(world.alike))
    return evaluate(
        np.vstack(asked),
        legs,
        np.vstack(wanted),
        METHODS,
        references=legs["text"].sample,
        sample=np.vstack(sample),
    )


# --- results -------------------------------------------------------------------------------------


class Study:
    """All experiments; their means are functions of the count of each bootstrap unit."""

    def __init__(self, experiments: Sequence[Experiment], figure: str) -> None:
        self.experiments = experiments
        self.units, self.strata = one_numbering(experiments)
        self.legs = len(experiments[0].outcome.ndcg) - len(METHODS)
        self.values, self.kinds, self.weights = [], [], []
        for experiment in experiments:
            kinds = np.unique(experiment.kinds)
            self.values.append(np.column_stack(list(getattr(experiment.outcome, figure).values())))
            self.kinds.append((experiment.kinds == kinds[:, None]).astype(float))
            self.weights.append(
                np.array(
                    [[view.get(kind, 0) for kind in kinds] for view in experiment.views.values()]
                )
            )
        settings = [(experiment, view) for experiment in experiments for view in experiment.views]
        self.settings = [f"{experiment.name}: {view}" for experiment, view in settings]
        part, answers = (
            np.array([getattr(experiment, name) for experiment, _ in settings])
            for name in ("part", "answers")
        )
        self.parts = {name: part == name for name in dict.fromkeys(part.tolist())}
        self.groups = {
            **self.parts,
            "all with one answer": answers == 1,
            "all with several answers": answers > 1,
            "all": answers > 0,
        }

    def means(self, number: int, counts: FloatArray) -> FloatArray:
        """Means of one experiment's views, for both legs and all methods: (views, 2 + methods)."""
        times = self.kinds[number] * counts[self.units[number]]
        of_kinds = times @ self.values[number] / times.sum(axis=1, keepdims=True)
        return self.weights[number] @ of_kinds

    def all_means(self, counts: FloatArray) -> FloatArray:
        """Means of all settings, for all methods, shape (settings, methods)."""
        numbers = range(len(self.experiments))
        return np.vstack([self.means(number, counts)[:, self.legs :] for number in numbers])

    def estimates(self, numbers: Sequence[int], rounds: int) -> dict[str, list[Estimate]]:
        """Means over some experiments, with intervals: for each method, one per view."""
        units = np.unique(np.concatenate([self.units[number] for number in numbers]))

        def figures(counts: FloatArray) -> dict[int, float]:
            every = np.zeros(len(self.strata))
            every[units] = counts
            means = np.mean([self.means(number, every) for number in numbers], axis=0)
            return dict(enumerate(means.T.ravel().tolist()))

        found = list(bootstrap(figures, self.strata[units], rounds=rounds).values())
        views = len(self.experiments[numbers[0]].views)
        methods = self.experiments[numbers[0]].outcome.ndcg
        return {method: found[views * at : views * (at + 1)] for at, method in enumerate(methods)}

    def summary(self, counts: FloatArray) -> dict[tuple[str, str, str], float]:
        """The figures that rate a method, by group of settings, method and figure.

        If a group spans several parts, each part has the same weight.
        """
        means = self.all_means(counts)
        regret = means.max(axis=1, keepdims=True) - means
        figures = {
            "mean": means,
            "rank": rankdata(-means, axis=1),
            "regret": regret,
            **{
                f"lead of {name}": means[:, [list(METHODS).index(name)]] - means
                for name in (DEFAULT, WITH_SAMPLE)
            },
        }
        summary = {}
        for group, those in self.groups.items():
            parts = [those & part for part in self.parts.values() if (those & part).any()]
            of_group = {
                name: np.mean([figure[part].mean(axis=0) for part in parts], axis=0)
                for name, figure in figures.items()
            }
            of_group["worst"] = regret[those].max(axis=0)
            for name, row in of_group.items():
                summary |= {(group, method, name): row[at] for at, method in enumerate(METHODS)}
        return summary


def one_numbering(experiments: Sequence[Experiment]) -> tuple[list[IntArray], IntArray]:
    """Number the units of all experiments: they share COCO's pairs, but not simulated queries.

    Each kind of simulated query is a separate stratum.
    """
    units, strata = [], [np.zeros(PAIRS, dtype=np.int64)]
    for number, experiment in enumerate(experiments):
        simulated = "simulated" in experiment.part
        units.append(experiment.units + sum(map(len, strata)) * simulated)
        if simulated:
            kind = np.unique(experiment.kinds, return_inverse=True)[1]
            strata.append(1 + len(KINDS) * number + kind)
    return units, np.concatenate(strata)


def table_of(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=box.MARKDOWN, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def short(number: float, sign: str = "") -> str:
    return f"{number:{sign}.3f}".replace("0.", ".", 1)


def with_error(estimate: Estimate) -> str:
    return f"{short(estimate.value)}±{short((estimate.high - estimate.low) / 2)}"


def show_means(study: Study, console: Console, rounds: int, *, each: bool) -> None:
    tables: dict[str, list[int]] = {}
    for number, experiment in enumerate(study.experiments):
        title = f"{experiment.part}: {experiment.name}" if each else experiment.table
        tables.setdefault(title, []).append(number)
    for title, numbers in tables.items():
        rows = {
            method: [with_error(estimate) for estimate in of_method]
            for method, of_method in study.estimates(numbers, rounds).items()
        }
        console.print(f"\n{title}", highlight=False)
        console.print(table_of(list(study.experiments[numbers[0]].views), rows))


def show_summary(study: Study, console: Console, rounds: int) -> None:
    found = bootstrap(study.summary, study.strata, rounds=rounds)
    means = study.all_means(np.ones(len(study.strata)))
    regret = means.max(axis=1, keepdims=True) - means
    leaders = {f"lead of {name}": f"{name} leads by" for name in (DEFAULT, WITH_SAMPLE)}
    columns = ("mean", "rank", "regret", "worst", *leaders.values())
    for group, those in study.groups.items():
        rows = {}
        for method in METHODS:
            leads = [found[group, method, name] for name in leaders]
            rows[method] = [
                with_error(found[group, method, "mean"]),
                f"{found[group, method, 'rank'].value:.1f}",
                short(found[group, method, "regret"].value),
                short(found[group, method, "worst"].value),
                *(
                    f"{short(lead.value, '+')} ({short(lead.low, '+')} {short(lead.high, '+')})"
                    for lead in leads
                ),
            ]
        console.print(f"\n{group}: {those.sum()} settings", highlight=False)
        console.print(table_of(columns, rows))
    console.print(f"\nNumber of settings where {DEFAULT} is better, and worse, with the mean")
    console.print("difference; largest regret of each method, and the setting:\n")
    default = means[:, list(METHODS).index(DEFAULT)]
    for method, of_method, of_regret in zip(METHODS, means.T, regret.T, strict=True):
        leads = np.round(default - of_method, 9)
        better, worse = leads[leads > 0], -leads[leads < 0]
        by = [
            f"{len(each)} ({short(each.mean() if len(each) else 0.0)})" for each in (better, worse)
        ]
        worst = study.settings[int(of_regret.argmax())]
        console.print(
            f"{method}: {' and '.join(by)}; {short(of_regret.max())} – {worst}", highlight=False
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=Path, nargs="?", help=f"by default GAP_SHARED/{FILE}")
    parser.add_argument("--each", action="store_true", help="a table for each setting")
    parser.add_argument("--quick", action="store_true", help="small sizes, for tests")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    if options.features is None and "GAP_SHARED" in os.environ:
        options.features = Path(os.environ["GAP_SHARED"]) / FILE

    console = Console()
    console.width = max(console.width, WIDTH)
    experiments = list(simulated(scale))
    if options.features is None:
        console.print("Without FEATURES or GAP_SHARED, the parts with real features are left out")
    else:
        features = Features(options.features)
        experiments = [
            *one_modality(features, scale),
            *two_modalities(features, scale),
            *experiments,
        ]
    for figure, title in (("ndcg", "nDCG@10"), ("recall", "recall@10")):
        study = Study(experiments, figure)
        console.print(f"\n=== {title} ===")
        show_means(study, console, scale.rounds, each=options.each)
        show_summary(study, console, scale.rounds)


if __name__ == "__main__":
    main()
