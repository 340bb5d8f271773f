"""The two-stage experiment: what each way to search, fuse and rerank finds of judged queries."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_index.core.schema import BaseNode, ImageNode, QueryBundle
from tqdm import tqdm

import llama_index_gap
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.evaluation.datasets import Dataset, LabelledQuery
from llama_index_gap.evaluation.metrics import (
    DEFAULT_METRICS,
    Comparison,
    Estimate,
    Qrels,
    compare,
    estimate,
    judge,
    judged_queries,
)
from llama_index_gap.evaluation.results_cache import ResultsCache
from llama_index_gap.evaluation.trec import write_qrels, write_run
from llama_index_gap.gap.arrays import FloatArray, VectorArray
from llama_index_gap.gap.calibrate import PAIRS
from llama_index_gap.images.opening import ImageError
from llama_index_gap.models.base import Item, LazyImage, ModelError, PairScorer
from llama_index_gap.nodes import document_key
from llama_index_gap.search.fusion import SMALLEST_BACKGROUND
from llama_index_gap.search.rerank import MultiModalRerank, ScoreMode
from llama_index_gap.search.retriever import LegHits, pair_of

if TYPE_CHECKING:
    from llama_index_gap.index.dual_index import DualIndex

DEPTH = 32
"""Documents that a reranker is given; half of them from each leg where there are two."""
METRICS = ("recall@1", "recall@5", "recall@10", "ndcg@10", "mrr@10")
DEFAULT = "16+16, default"
DEFAULT_RERANKED = "16+16, mean of both"

_BY_TEXT = {"similarity_top_k": DEPTH, "image_similarity_top_k": 0}
_BY_IMAGE = {"similarity_top_k": 0, "image_similarity_top_k": DEPTH}
_BY_BOTH = {"similarity_top_k": DEPTH // 2, "image_similarity_top_k": DEPTH // 2}
FIRST_STAGE: Mapping[str, Mapping[str, Any]] = {
    "32 by text": _BY_TEXT,
    "32 by image": _BY_IMAGE,
    "16+16, raw scores": {**_BY_BOTH, "normalize": "none", "combine": "max"},
    "16+16, RRF": {**_BY_BOTH, "normalize": "rank", "combine": "sum"},
    "16+16, min–max": {**_BY_BOTH, "normalize": "minmax", "combine": "sum"},
    DEFAULT: _BY_BOTH,
}
"""Settings of a ``DualIndexRetriever`` each; raw scores are what one mixed index goes by."""
RERANKED: Mapping[str, tuple[Mapping[str, Any], ScoreMode]] = {
    "32 by text, reranked": (_BY_TEXT, "text"),
    "32 by image, reranked": (_BY_IMAGE, "image"),
    "16+16, by modality": ({**_BY_BOTH, "complete": True}, "by_modality"),
    DEFAULT_RERANKED: ({**_BY_BOTH, "complete": True}, "mean"),
}
"""The same, and the ``score_mode`` of the ``MultiModalRerank`` that follows."""

_TOP = 10
_ASKED = {"text": "text", "image": "image"}
_BAD_QUERY = (ImageError, ModelError, ValueError, OSError)


@dataclass(frozen=True)
class MethodResult:
    """What one method found.

    Attributes:
        name: as in ``FIRST_STAGE`` or ``RERANKED``.
        reranked: which of the two.
        metrics: over all queries, by metric.
        by_kind: over the queries of each kind, by kind and metric.
        against_default: by metric, how much more it finds than ``DEFAULT``, or reranked than
            ``DEFAULT_RERANKED``; empty for these themselves.
    """

    name: str
    reranked: bool
    metrics: dict[str, Estimate]
    by_kind: dict[str, dict[str, Estimate]]
    against_default: dict[str, Comparison]


@dataclass(frozen=True)
class OwnModality:
    """What one mixed index would return (intra-modal bias rate: Li et al., arXiv 2507.19054).

    Attributes:
        modality: of the queries.
        share: of the 10 hits with the highest raw scores, how many have that modality too.
        corpus_share: of all rows, how many have.
        queries: how many queries there were.
    """

    modality: str
    share: Estimate
    corpus_share: float
    queries: int


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment found; plain data.

    Attributes:
        dataset: its name.
        models: what the index was made with; of folders, their names only.
        reranker: the name of the model, likewise; None without one.
        documents: how many the data set has.
        rows: how many texts and images the index has, by side.
        queries: how many were judged.
        kinds: the queries of each kind; empty where all are alike.
        methods: first those of ``FIRST_STAGE``.
        legs: recall@10 of each leg by itself, by pair of modalities (query, then what is found).
        own_modality: what one mixed index prefers; empty where the legs share no space.
        failed: why queries could not be answered, by id; they count nowhere.
        notes: what a reader of the figures should know.
        runs: for each method and query the documents found, best first.
        qrels: the judgements of these queries.
        relevant_from: the lowest grade that counts as relevant.
    """

    dataset: str
    models: str
    reranker: str | None
    documents: int
    rows: dict[str, int]
    queries: int
    kinds: dict[str, list[str]]
    methods: list[MethodResult]
    legs: dict[str, Estimate]
    own_modality: list[OwnModality]
    failed: dict[str, str]
    notes: tuple[str, ...]
    runs: dict[str, dict[str, list[str]]]
    qrels: Qrels
    relevant_from: int

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON knows them; for the rankings see ``write_runs``."""
        fields = asdict(replace(self, runs={}, qrels={}))
        del fields["runs"], fields["qrels"]
        return {**fields, "kinds": {kind: len(queries) for kind, queries in self.kinds.items()}}

    def write_runs(self, folder: str | Path) -> None:
        """Write each method's rankings, and ``qrels.txt``, as TREC's tools read them.

        Raises:
            ValueError: an id cannot stand in such a file.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_qrels(self.qrels, folder / "qrels.txt")
        for name, run in self.runs.items():
            tag = re.sub(r"[^a-z0-9]+", "-", name.lower())
            write_run(run, folder / f"{tag}.run", tag=tag)


class Experiment:
    """Asks judged queries: each is searched once, and ranked by every method.

    Args:
        dataset: what is asked, and what answers it.
        index: holds the data set's documents; what else it holds is searched, too.
        scorer: reranks; without one there is the first stage only.
    """

    def __init__(
        self, dataset: Dataset, index: DualIndex, scorer: PairScorer | None = None
    ) -> None:
        self._dataset = dataset
        self._index = index
        self._rows = {str(side): count for side, count in index.count().items()}
        self._mixed = _modalities_of_one_space(index)
        self._deep = index.as_retriever(similarity_top_k=DEPTH, image_similarity_top_k=DEPTH)
        self._retrievers = {name: index.as_retriever(**each) for name, each in FIRST_STAGE.items()}
        self._rerankers: dict[str, MultiModalRerank] = {}
        self._scorer = None if scorer is None else _Remembering(scorer)
        for name, (settings, mode) in RERANKED.items():
            if self._scorer is not None and _sides(mode) <= self._scorer.modalities:
                self._retrievers[name] = index.as_retriever(**settings)
                self._rerankers[name] = MultiModalRerank(
                    model=self._scorer, score_mode=mode, top_n=None, batch_size=DEPTH
                )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the answer to a query depends on."""
        return {
            "version": llama_index_gap.__version__,
            "corpus": _digest(self._dataset.corpus.nodes),
            "models": self._index.models(),
            "rows": self._rows,
            "depth": DEPTH,
            "reranker": None if self._scorer is None else self._scorer.name,
        }

    @property
    def file_name(self) -> str:
        """A name for the file of results; another experiment has another one."""
        content = json.dumps(self.fingerprint, sort_keys=True).encode()
        return f"{self._dataset.name}-{hashlib.sha256(content).hexdigest()[:8]}.jsonl"

    def run(self, results: str | Path, *, show_progress: bool = False) -> ExperimentResult:
        """Ask all queries that have not been answered yet, and judge.

        Args:
            results: a JSONL file, made where it is missing, to which each query's rankings are
                added. Run again with it, an experiment goes on where it stopped; it serves any
                queries and judgements of the same corpus.
            show_progress: show a progress bar.

        Raises:
            ResultsCacheError: the file holds something else, or another experiment's results.
            ValueError: no query could be answered, or none has a relevant document.
        """
        answers: dict[str, dict[str, Any]] = {}
        failed: dict[str, str] = {}
        queries = self._dataset.queries
        with (
            ResultsCache(results, self.fingerprint) as cache,
            tqdm(queries, "Asking", unit="query", disable=not show_progress) as progress,
        ):
            for query in progress:
                key = _key(query)
                answer = cache.get(key)
                if answer is None:
                    try:
                        answer = self._answer(query)
                    except _BAD_QUERY as error:  # not written: asked again when run again
                        failed[query.id] = str(error)
                        continue
                    cache.add(key, answer)
                answers[query.id] = answer
        return self._result(answers, failed)

    def _answer(self, query: LabelledQuery) -> dict[str, Any]:
        bundle = QueryBundle(query.text, image_path=query.image_path)
        legs = self._deep.search_legs(bundle)
        if self._scorer is not None:
            self._scorer.forget()
        runs = {}
        for name, retriever in self._retrievers.items():
            hits = retriever.rank_legs(legs)
            if name in self._rerankers:
                hits = self._rerankers[name].postprocess_nodes(hits, query_bundle=bundle)
            runs[name] = _documents(hit.node for hit in hits)
        return {
            "runs": runs,
            "legs": {pair_of(leg): _documents(hits.nodes) for leg, hits in legs.items()},
            "own": _own_share(legs, self._mixed),
        }

    # --- the result ------------------------------------------------------------------------------

    def _result(
        self, answers: Mapping[str, dict[str, Any]], failed: dict[str, str]
    ) -> ExperimentResult:
        dataset = self._dataset
        if not answers:
            raise InvalidValueError(f"no query could be answered: {next(iter(failed.values()))}")
        judged = judged_queries({q: dataset.qrels[q] for q in answers}, dataset.relevant_from)
        qrels = {query: dataset.qrels[query] for query in judged}
        runs = {
            name: {query: answers[query]["runs"][name] for query in judged}
            for name in self._retrievers
        }
        values = {
            name: judge(run, qrels, METRICS, relevant_from=dataset.relevant_from)
            for name, run in runs.items()
        }
        legs = self._legs(answers, qrels)
        kinds = _by_kind([query for query in dataset.queries if query.id in qrels])
        return ExperimentResult(
            dataset=dataset.name,
            models=_without_folders(self._index.models()),
            reranker=None if self._scorer is None else _without_folders(self._scorer.name),
            documents=len(dataset.corpus.document_ids),
            rows=self._rows,
            queries=len(judged),
            kinds={kind: [judged[at] for at in places] for kind, places in kinds.items()},
            methods=[_method(name, values, kinds) for name in values],
            legs=legs,
            own_modality=self._own_modality([answers[query]["own"] for query in judged]),
            failed=failed,
            notes=(*dataset.notes, *self._notes(len(answers) - len(judged), failed, legs)),
            runs=runs,
            qrels=qrels,
            relevant_from=dataset.relevant_from,
        )

    def _legs(self, answers: Mapping[str, dict[str, Any]], qrels: Qrels) -> dict[str, Estimate]:
        legs = {}
        for pair in PAIRS:
            run = {q: answers[q]["legs"][pair] for q in qrels if pair in answers[q]["legs"]}
            if run:
                asked = {query: qrels[query] for query in run}
                (recall,) = judge(
                    run, asked, ["recall@10"], relevant_from=self._dataset.relevant_from
                ).values()
                legs[pair] = estimate(recall)
        return legs

    def _own_modality(self, shares: Sequence[Mapping[str, float]]) -> list[OwnModality]:
        found = []
        for side in ("text", "image"):
            values = [of_query[side] for of_query in shares if side in of_query]
            if values:
                corpus_share = self._rows[side] / (self._rows["text"] + self._rows["image"])
                found.append(OwnModality(side, estimate(values), corpus_share, len(values)))
        return found

    def _notes(self, unjudged: int, failed: Mapping[str, str], legs: Iterable[str]) -> list[str]:
        notes = []
        if failed:
            query, reason = next(iter(failed.items()))
            notes.append(
                f"counted nowhere: {_count(len(failed))} that failed (the first, {query}: {reason})"
            )
        if unjudged:
            notes.append(
                f"counted nowhere: {_count(unjudged)} with no document of grade "
                f"{self._dataset.relevant_from} or more to be found"
            )
        nodes = self._dataset.corpus.nodes
        due = {
            "text": sum(bool(getattr(node, "text", "").strip()) for node in nodes),
            "image": sum(isinstance(node, ImageNode) for node in nodes),
        }
        notes += [
            f"the index holds {self._rows[side]:,} {what} where the data set has {due[side]:,}"
            for side, what in (("text", "texts"), ("image", "images"))
            if self._rows[side] != due[side]
        ]
        thin = []
        for name, side in self._index.sides().items():
            sample = side.sample()
            if self._rows[name] and (sample is None or len(sample) < SMALLEST_BACKGROUND):
                thin.append(name)
        if thin:
            notes.append(
                f"{DEFAULT}: fell back to RRF, with fewer than {SMALLEST_BACKGROUND} vectors of "
                f"{' and '.join(thin)} to sample"
            )
        notes += [
            f"16+16, raw scores: for queries by {_ASKED[modality]} these are of different models, "
            "which no one index could hold"
            for modality in dict.fromkeys(pair.split("_")[0] for pair in legs)
            if modality not in self._mixed
        ]
        if self._scorer is not None:
            notes += [
                f"{name}: left out, as {self._scorer.name} reads only "
                f"{' and '.join(sorted(self._scorer.modalities))}"
                for name in RERANKED
                if name not in self._rerankers
            ]
        return notes


class _Remembering(PairScorer):
    """Scores each pair once for a query, though several methods ask for it."""

    def __init__(self, scorer: PairScorer) -> None:
        self._scorer = scorer
        self.name, self.licence = scorer.name, scorer.licence
        self.modalities, self.joint = scorer.modalities, scorer.joint
        self._prepared: dict[Any, Any] = {}
        self._scores: dict[tuple[Any, Any], float] = {}

    def prepare(self, item: Item) -> Any:
        key = ("image", item.key) if isinstance(item, LazyImage) else ("text", item)
        if key not in self._prepared:
            self._prepared[key] = self._scorer.prepare(item)
        return key

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> VectorArray:
        new = [key for key in dict.fromkeys(documents) if (query, key) not in self._scores]
        if new:
            scores = self._scorer.score_prepared(
                self._prepared[query], [self._prepared[key] for key in new]
            )
            self._scores |= {(query, key): score for key, score in zip(new, scores, strict=True)}
        return np.array([self._scores[query, key] for key in documents], dtype=np.float32)

    def to_probability(self, scores: VectorArray) -> VectorArray | None:
        return self._scorer.to_probability(scores)

    def forget(self) -> None:
        """Begin with another query."""
        self._prepared.clear()
        self._scores.clear()


def _sides(mode: ScoreMode) -> set[str]:
    return {mode} if mode in {"text", "image"} else {"text", "image"}


def _documents(nodes: Iterable[BaseNode]) -> list[str]:
    return list(dict.fromkeys(document_key(node, "document") for node in nodes))


def _modalities_of_one_space(index: DualIndex) -> set[str]:
    """The modalities of queries that one model embeds for both legs."""
    sides = index.sides()
    if sides["text"].embed_model is not sides["image"].embed_model:
        return set()
    return {"text"} if "image_query" in sides else {"text", "image"}


def _own_share(legs: Mapping[str, LegHits], mixed: Collection[str]) -> dict[str, float]:
    """Of the first hits of one mixed index, how many have the query's own modality.

    Nothing for a query of two modalities, which has none of its own, or where the legs share no
    space.
    """
    pairs = {leg: pair_of(leg).split("_to_") for leg in legs}
    asked = {query for query, _ in pairs.values()}
    if len(asked) != 1 or not asked <= set(mixed):
        return {}
    hits = [
        (score, query == found)
        for leg, (query, found) in pairs.items()
        for score in legs[leg].scores
    ]
    first = sorted(hits, key=lambda hit: -hit[0])[:_TOP]
    return {asked.pop(): float(np.mean([own for _, own in first]))} if first else {}


def _by_kind(queries: Sequence[LabelledQuery]) -> dict[str, list[int]]:
    """The places of the queries of each kind; nothing where all are of one."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        sides = {"text": query.text.strip(), "image": query.image_path}
        places[query.kind or " and ".join(s for s, there in sides.items() if there)].append(place)
    return dict(places) if len(places) > 1 else {}


def _method(
    name: str,
    values: Mapping[str, Mapping[str, FloatArray]],
    kinds: Mapping[str, Sequence[int]],
) -> MethodResult:
    own = values[name]
    default = DEFAULT_RERANKED if name in RERANKED else DEFAULT
    return MethodResult(
        name,
        name in RERANKED,
        {metric: estimate(of_query) for metric, of_query in own.items()},
        {
            kind: {metric: estimate(of_query[places]) for metric, of_query in own.items()}
            for kind, places in kinds.items()
        },
        {
            metric: compare(values[default][metric], own[metric])
            for metric in DEFAULT_METRICS
            if default in values and default != name
        },
    )


def _without_folders(names: str) -> str:
    """Where models lie is nobody's business who gets the figures."""
    parts = names.split("'")
    return "'".join(Path(part).name if Path(part).is_dir() else part for part in parts)


def _count(queries: int) -> str:
    return "1 query" if queries == 1 else f"{queries:,} queries"


def _key(query: LabelledQuery) -> str:
    """A query's name in the file of results: who changes what is asked gets another answer."""
    return json.dumps([query.id, query.text, query.image_path])


def _digest(nodes: Iterable[BaseNode]) -> str:
    content = sorted([node.node_id, node.hash, getattr(node, "image_path", "")] for node in nodes)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
