"""What the first stage should count beside a reranker, by how strong the reranker is.

    python benchmarks/first_stage_weights.py [--articles 3000] [--queries 200] [--seed 0]
        [--checkpoint FOLDER] [--reranker FOLDER] [--quick]

The newsroom of ``llama-gap demo``, as many queries for a headline, an image, or both. Each is
searched and reranked once. Then the log odds of both stages are added by fixed weights, by one
that ``learn_weight`` learns (each query ranked with the weight of the others), by one for each kind
of query, and by one that needs no labels: how far the first stage confirms the reranker. The same
with two simulated rerankers. Brackets are 95 % bootstrap intervals over queries; the second table
of each is the lead over the better of the two stages.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank
from llama_index_gap.demo.newsroom import (
    CHECKPOINT,
    QUERY_KINDS,
    RERANKER,
    development_queries,
    write_newsroom,
)
from llama_index_gap.evaluation.datasets import Dataset, read_dataset, read_unlabelled
from llama_index_gap.evaluation.experiment import DEFAULT_RERANKED, RERANKED
from llama_index_gap.evaluation.first_stage import (
    FEWEST,
    WEIGHTS,
    Candidates,
    candidates_of,
    learn_weight,
)
from llama_index_gap.evaluation.metrics import Run, estimate, judge, judged_queries
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.models import LoadingSettings, load_scorer
from llama_index_gap.progress import Progress
from llama_index_gap.search.first_stage import added_log_odds

FIXED = (0.25, 0.5, 1.0, 2.0)
SIMULATED = {"a weak one, simulated": 1.0, "a strong one, simulated": 4.0}
"""By how many standard deviations the log odds of relevant documents lie above the others'."""
METRIC = "ndcg@10"

Found = Mapping[str, Candidates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--articles", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the newsroom")
    parser.add_argument("--checkpoint", default=str(CHECKPOINT), help="the dual encoder")
    parser.add_argument("--reranker", default=str(RERANKER))
    parser.add_argument("--quick", action="store_true", help="a small newsroom, for tests")
    options = parser.parse_args()
    if options.quick:
        options.articles, options.queries = 100, FEWEST
    with tempfile.TemporaryDirectory() as scratch:
        dataset = read_dataset(
            write_newsroom(
                Path(scratch) / "newsroom",
                articles=options.articles,
                queries_per_kind=options.queries,
                seed=options.seed,
            )
        )
        found = search(dataset, Path(scratch), options.checkpoint, options.reranker)
    rerankers = {Path(options.reranker).name: found} | {
        name: simulated(found, dataset, strength) for name, strength in SIMULATED.items()
    }
    console = Console()
    console.width = max(console.width, 130)
    for name, candidates in rerankers.items():
        show(name, candidates, dataset, console)


def search(dataset: Dataset, folder: Path, checkpoint: str, reranker: str) -> Found:
    """What both stages say of each query's documents, as in ``llama-gap demo``.

    Args:
        dataset: the newsroom.
        folder: for the index.
        checkpoint: the dual encoder.
        reranker: the cross-encoder.
    """
    model = DualEncoderEmbedding(model_name=checkpoint, dtype="float32")
    settings, mode = RERANKED[DEFAULT_RERANKED]
    ranks = MultiModalRerank(
        model=load_scorer(reranker, LoadingSettings(dtype="float32")), score_mode=mode, top_n=None
    )
    (folder / "queries.txt").write_text("\n".join(development_queries()), encoding="utf-8")
    found = {}
    with DualIndex.from_documents(
        dataset.corpus, uri=str(folder / "newsroom.db"), embed_model=model
    ) as index:
        index.learn_queries(read_unlabelled(folder / "queries.txt"))
        retriever = index.as_retriever(**settings)
        for query in Progress(dataset.queries, desc="Asking", unit="query"):
            hits = retriever.retrieve(query.bundle)
            ranked = ranks.postprocess_nodes(hits, query_bundle=query.bundle)
            found[query.id] = candidates_of(hits, ranked)
    return found


def simulated(found: Found, dataset: Dataset, strength: float) -> Found:
    """The same candidates, as a reranker of this strength would judge them.

    Args:
        found: by query.
        dataset: says which are relevant.
        strength: standard deviations between relevant and other documents.
    """
    rng = np.random.default_rng(0)
    judged = {}
    for query, each in found.items():
        relevant = np.array([key in dataset.qrels[query] for key in each.documents], dtype=float)
        odds = strength * relevant - 2 + rng.normal(size=len(relevant))
        judged[query] = replace(each, probabilities=expit(odds).tolist())
    return judged


def agreement_weight(found: Sequence[Candidates]) -> float:
    """A weight without labels: 1/b, where b · (the reranker's log odds) fits the first stage's.

    Least squares over all candidates, both without their mean in each query. A reranker whose
    differences the first stage does not confirm is scaled down to what it does.

    Args:
        found: of some queries.
    """
    squares = together = 0.0
    for each in found:
        kept = [place for place, value in enumerate(each.probabilities) if value is not None]
        values = np.array(each.first_stage)[kept]
        odds = added_log_odds([each.probabilities[place] for place in kept], values, 0.0)
        odds -= odds.mean() if kept else 0.0
        squares, together = squares + float(odds @ odds), together + float(odds @ values)
    return min(squares / together, WEIGHTS[-1]) if together > 0 else WEIGHTS[-1]


def runs_of(found: Found, dataset: Dataset, console: Console) -> dict[str, Run]:
    """The rankings of each method.

    Args:
        found: what both stages say of each query's documents.
        dataset: its judgements.
        console: to tell what was learnt.
    """
    kinds = {query.id: query.kind or "" for query in dataset.queries}

    def by(weight: float) -> Run:
        return {query: each.ranking(weight) for query, each in found.items()}

    learnt = learn_weight(found, dataset.qrels, kinds=kinds)
    console.print(learnt.first_stage.summary(), highlight=False)
    of_kind: dict[str, Sequence[str]] = {}
    for kind in QUERY_KINDS:
        those = {query: each for query, each in found.items() if kinds[query] == kind}
        alone = learn_weight(those, dataset.qrels)
        of_kind |= alone.run
        console.print(f"{kind}: weight {alone.first_stage.weight:g}", highlight=False)
    agreed = agreement_weight(list(found.values()))
    console.print(f"by agreement, without labels: weight {agreed:.2f}", highlight=False)
    return {
        "first stage": {query: each.documents for query, each in found.items()},
        "reranker": by(0.0),
        **{f"both, weight {weight:g}": by(weight) for weight in FIXED},
        "both, learnt": learnt.run,
        "both, learnt for each kind": of_kind,
        "both, by agreement": by(agreed),
    }


def show(name: str, found: Found, dataset: Dataset, console: Console) -> None:
    """Print the figures of a reranker.

    Args:
        name: of the reranker.
        found: what it and the first stage say.
        dataset: its judgements.
        console: where to.
    """
    console.print(f"\n[bold]{name}[/bold]")
    values = {
        method: judge(run, dataset.qrels, [METRIC])[METRIC]
        for method, run in runs_of(found, dataset, console).items()
    }
    kind_of = {query.id: query.kind for query in dataset.queries}
    kinds = np.array([kind_of[query] for query in judged_queries(dataset.qrels)])
    rows = {kind: kinds == kind for kind in QUERY_KINDS} | {"all": np.full(len(kinds), True)}
    better = {}
    for kind, row in rows.items():
        stages = (values[stage][row] for stage in ("first stage", "reranker"))
        better[kind] = max(stages, key=lambda each: float(each.mean()))
    figures, leads = Table("nDCG@10", *rows), Table("lead over the better one", *rows)
    for method, of_method in values.items():
        figures.add_row(method, *(short(of_method[row]) for row in rows.values()))
        if method.startswith("both"):
            lead = (short(of_method[row] - better[kind], "+") for kind, row in rows.items())
            leads.add_row(method, *lead)
    console.print(figures, leads)


def short(values: FloatArray, sign: str = "") -> str:
    """A mean with its interval, without the 0 before the point.

    Args:
        values: one for each query.
        sign: "+" to show it.
    """
    found = estimate(values)
    three = (f"{each:{sign}.3f}" for each in (found.value, found.low, found.high))
    mean, low, high = (each.replace("0.", ".").replace("-", "−") for each in three)
    return f"{mean} ({low}{', ' if sign else '–'}{high})"


if __name__ == "__main__":
    main()
