"""The two-stage experiment: compares ways to search, fuse and rerank on labelled queries."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from llama_index.core.schema import BaseNode

import llama_index_gap
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.evaluation.datasets import Dataset, LabelledQuery
from llama_index_gap.evaluation.experiment_notes import notes_on_size
from llama_index_gap.evaluation.experiment_result import ExperimentResult, MethodResult, OwnModality
from llama_index_gap.evaluation.first_stage import (
    Candidates,
    candidates_of,
    check_number,
    learn_weight,
)
from llama_index_gap.evaluation.metrics import (
    DEFAULT_METRICS,
    Qrels,
    compare,
    estimate,
    judge,
    judged_queries,
)
from llama_index_gap.evaluation.results_cache import ResultsCache, ResultsCacheError
from llama_index_gap.evaluation.sample_trial import SampleTrial, trial_in_words
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.gap.hubs import SAME
from llama_index_gap.images.opening import ImageError
from llama_index_gap.modality import LEGS, MODALITIES, Leg, Modality
from llama_index_gap.models.base import Item, LazyImage, ModelError, PairScorer
from llama_index_gap.models.presets import model_in_short
from llama_index_gap.nodes import document_key
from llama_index_gap.progress import Progress
from llama_index_gap.search.first_stage import check_weight
from llama_index_gap.search.legs import LegHits, searched_collection, unit_query
from llama_index_gap.search.rerank import MultiModalRerank, ScoreMode

if TYPE_CHECKING:
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.store.milvus import MilvusStore

DEPTH = 32
"""Documents that a reranker gets; half of them from each leg if there are two."""
METRICS = ("recall@1", "recall@5", "recall@10", "ndcg@10", "mrr@10")
DEFAULT = "16+16, default"
DEFAULT_RERANKED = "16+16, mean of both"
BOTH_STAGES = "16+16, both stages"
"""As ``DEFAULT_RERANKED``, with a weight for the first stage beside the reranker."""
BOTH_LEARNT = "16+16, both, learnt"
"""The same; each query is ranked with the weight that other queries teach."""

_BY_TEXT = {"similarity_top_k": DEPTH, "image_similarity_top_k": 0}
_BY_IMAGE = {"similarity_top_k": 0, "image_similarity_top_k": DEPTH}
_BY_BOTH = {"similarity_top_k": DEPTH // 2, "image_similarity_top_k": DEPTH // 2}
FIRST_STAGE: Mapping[str, Mapping[str, Any]] = {
    "32 by text": _BY_TEXT,
    "32 by image": _BY_IMAGE,
    "16+16, raw scores": {**_BY_BOTH, "normalize": "none", "combine": "max", "hubs": False},
    "16+16, RRF": {**_BY_BOTH, "normalize": "rank", "combine": "sum", "hubs": False},
    "16+16, min–max": {**_BY_BOTH, "normalize": "minmax", "combine": "sum", "hubs": False},
    DEFAULT: _BY_BOTH,
}
"""The settings of each ``DualIndexRetriever``; one mixed index ranks by raw scores."""
RERANKED: Mapping[str, tuple[Mapping[str, Any], ScoreMode]] = {
    "32 by text, reranked": (_BY_TEXT, "text"),
    "32 by image, reranked": (_BY_IMAGE, "image"),
    "16+16, by modality": ({**_BY_BOTH, "complete": True}, "by_modality"),
    DEFAULT_RERANKED: ({**_BY_BOTH, "complete": True}, "mean"),
}
"""The same, with the ``score_mode`` of the ``MultiModalRerank`` that follows."""

_TOP = 10
_BAD_QUERY = (ImageError, ModelError, ValueError, OSError)


class Experiment:
    """Searches each labelled query once, and ranks its hits by every method.

    Args:
        dataset: the queries and their relevant documents.
        index: holds the data set's documents; any others that it holds are searched too.
        scorer: reranks; without one there is only the first stage.
        first_stage: also measure a ``MultiModalRerank`` with this ``first_stage``.
        learn_first_stage: also learn the best one; see ``learn_weight``.

    Raises:
        ValueError: a first stage is asked for without a reranker, with a reranker that gives no
            probabilities, or with an invalid weight; or there are too few queries to learn from.
    """

    def __init__(
        self,
        dataset: Dataset,
        index: DualIndex,
        scorer: PairScorer | None = None,
        *,
        first_stage: float | None = None,
        learn_first_stage: bool = False,
    ) -> None:
        self._dataset, self._index = dataset, index
        self._rows = {str(name): rows for name, rows in index.count().items()}
        self._sample = index.query_sample()
        tried = [] if self._sample.fingerprint else dataset.queries
        self._trial = SampleTrial(index, tried, FIRST_STAGE[DEFAULT])
        self._collections = collections = index.collections()
        # The modalities of queries that one model embeds for both legs.
        self._one_space = set(MODALITIES)
        if collections["text"].embed_model is not collections["image"].embed_model:
            self._one_space.clear()
        elif "image_query" in collections:
            self._one_space.remove("image")
        self._deep = index.as_retriever(similarity_top_k=DEPTH, image_queries="also_texts")
        self._retrievers = {name: index.as_retriever(**each) for name, each in FIRST_STAGE.items()}
        self._rerankers: dict[str, MultiModalRerank] = {}
        self._scorer = None if scorer is None else _Remembering(scorer)
        for name, (settings, mode) in RERANKED.items():
            needed = {mode} & set(MODALITIES) or set(MODALITIES)
            if self._scorer is not None and needed <= self._scorer.modalities:
                self._retrievers[name] = index.as_retriever(**settings)
                self._rerankers[name] = MultiModalRerank(
                    model=self._scorer, score_mode=mode, top_n=None, batch_size=DEPTH
                )

        reranker = self._rerankers.get(DEFAULT_RERANKED)
        self._adds = reranker is not None and reranker.gives_probabilities
        self._first_stage, self._learns = first_stage, learn_first_stage
        if first_stage is not None:
            check_weight(first_stage)
        if learn_first_stage:
            asked = {query.id: dataset.qrels[query.id] for query in dataset.queries}
            check_number(len(judged_queries(asked, dataset.relevant_from)))
        if not self._adds and (learn_first_stage or first_stage is not None):
            raise InvalidValueError(
                "the first stage can count beside a reranker that reads texts and images and gives "
                f"probabilities; {'there is none' if scorer is None else f'{scorer.name} does not'}"
            )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that the results of a query depend on."""
        nodes = sorted(
            [node.node_id, node.hash, getattr(node, "image_path", "")]
            for node in self._dataset.corpus.nodes
        )
        return {
            "version": llama_index_gap.__version__,
            "corpus": hashlib.sha256(json.dumps(nodes).encode()).hexdigest()[:16],
            "models": self._index.models(),
            "rows": self._rows,
            "queries_learnt": self._sample.fingerprint,
            "depth": DEPTH,
            "reranker": None if self._scorer is None else self._scorer.name,
        }

    @property
    def file_name(self) -> str:
        """A name for the results cache, different for each experiment."""
        content = json.dumps(self.fingerprint, sort_keys=True).encode()
        return f"{self._dataset.name}-{hashlib.sha256(content).hexdigest()[:8]}.jsonl"

    def run(self, results: str | Path, *, show_progress: bool = False) -> ExperimentResult:
        """Search all queries that are not yet in the results cache, and judge the rankings.

        Args:
            results: the results cache, a JSONL file that is created if missing. The rankings of
                each query are added to it, so that an interrupted experiment continues where it
                stopped. It works for any queries and judgements of the same corpus.
            show_progress: show a progress bar.

        Raises:
            ResultsCacheError: the file is not a results cache, or belongs to another experiment.
            ValueError: no query could be answered, or none has a relevant document.
        """
        answers: dict[str, dict[str, Any]] = {}
        sampled: dict[str, list[str]] = {}
        failed: dict[str, str] = {}
        queries = self._dataset.queries
        with (
            ResultsCache(results, self.fingerprint) as cache,
            Progress(queries, "Asking", unit="query", disable=not show_progress) as progress,
        ):
            for query in progress:
                # The key has the whole query, so that a changed query is searched again.
                key = json.dumps([query.id, query.text, query.image_path])
                answer = cache.get(key)
                if answer is not None and not self._is_answer(answer):
                    raise ResultsCacheError(
                        f"{results}: the record of query {query.id!r} is damaged; delete the file"
                    )
                if answer is not None and self._asks_both and _candidates(answer) is None:
                    answer = None  # kept before there was a need for it
                if answer is None:
                    try:
                        answer = self._answer(query)
                    except _BAD_QUERY as error:  # not cached, so the next run tries it again
                        failed[query.id] = str(error)
                        continue
                    cache.add(key, answer)
                answers[query.id] = answer
                if self._trial.asks(query):
                    documents = cache.get(self._trial.key(query))
                    if documents is not None and not _is_ranking(documents):
                        raise ResultsCacheError(
                            f"{results}: a record of query {query.id!r} is damaged; delete the file"
                        )
                    if documents is None and (nodes := self._trial.found(query)) is not None:
                        documents = _documents(nodes)
                        cache.add(self._trial.key(query), documents)
                    if documents is not None:
                        sampled[query.id] = documents
        return self._result(answers, sampled, failed)

    def _answer(self, query: LabelledQuery) -> dict[str, Any]:
        legs = self._deep.search_legs(query.bundle, for_others=True)
        if self._scorer is not None:
            self._scorer.forget()
        runs, stages = {}, None
        for name, retriever in self._retrievers.items():
            found = hits = retriever.rank_legs(legs).nodes
            if name in self._rerankers:
                hits = self._rerankers[name].postprocess_nodes(found, query_bundle=query.bundle)
            if name == DEFAULT_RERANKED and self._adds:
                stages = asdict(candidates_of(found, hits))
            runs[name] = _documents(hit.node for hit in hits)
        return {
            "runs": runs,
            "stages": stages,
            "legs": {leg.pair: _documents(hits.nodes) for leg, hits in legs.items()},
            "own": self._own_share(legs),
            "learnt": any(self._has_learnt(leg, hits) for leg, hits in legs.items()),
        }

    @property
    def _asks_both(self) -> bool:
        return self._learns or self._first_stage is not None

    def _has_learnt(self, leg: Leg, hits: LegHits) -> bool:
        """Whether the index has learnt from this query."""
        if not self._sample.fingerprint:
            return False
        collection = self._collections[searched_collection(leg, self._collections)]
        background = collection.background(leg.query)
        if background is None or background.queries is None:
            return False
        return bool((background.queries @ unit_query(hits.query)).max() >= SAME)

    def _is_answer(self, answer: Any) -> bool:
        """Whether a record of the cache has the structure of ``_answer``'s result."""
        match answer:
            case {"runs": dict(runs), "legs": dict(legs), "own": dict(own)}:
                rankings = [*runs.values(), *legs.values()]
                return (
                    runs.keys() >= self._retrievers.keys()
                    and all(map(_is_ranking, rankings))
                    and all(isinstance(share, int | float) for share in own.values())
                )
        return False

    def _own_share(self, legs: Mapping[Leg, LegHits]) -> dict[str, float]:
        """The share of the query's own modality among the first hits of one mixed index.

        Empty for a query of two modalities, and if the legs share no space.
        """
        asked = {leg.query for leg in legs}
        if len(asked) != 1 or not asked <= self._one_space:
            return {}
        hits = [(score, leg.query == leg.target) for leg in legs for score in legs[leg].scores]
        first = sorted(hits, key=lambda hit: -hit[0])[:_TOP]
        return {asked.pop(): float(np.mean([own for _, own in first]))} if first else {}

    # --- the result ------------------------------------------------------------------------------

    def _result(
        self,
        answers: Mapping[str, dict[str, Any]],
        sampled: Mapping[str, list[str]],
        failed: dict[str, str],
    ) -> ExperimentResult:
        dataset, least = self._dataset, self._dataset.relevant_from
        if not answers:
            raise InvalidValueError(f"no query could be answered: {next(iter(failed.values()))}")
        qrels = {
            query: dataset.qrels[query]
            for query in judged_queries({q: dataset.qrels[q] for q in answers}, least)
        }
        runs = {
            name: {query: answers[query]["runs"][name] for query in qrels}
            for name in self._retrievers
        }
        kinds = self._kinds(qrels)
        learnt = None
        if self._asks_both:
            both = {q: each for q in qrels if (each := _candidates(answers[q])) is not None}
            if self._first_stage is not None:
                runs[BOTH_STAGES] = {q: both[q].ranking(self._first_stage) for q in both}
            if self._learns:
                kind_of = {query: kind for kind, of_kind in kinds.items() for query in of_kind}
                result = learn_weight(both, qrels, relevant_from=least, kinds=kind_of)
                learnt, runs[BOTH_LEARNT] = result.first_stage, result.run
        legs = {}
        for pair in (leg.pair for leg in LEGS):
            run = {q: answers[q]["legs"][pair] for q in qrels if pair in answers[q]["legs"]}
            if run:
                asked = {query: qrels[query] for query in run}
                found = judge(run, asked, ["recall@10"], relevant_from=least)
                legs[pair] = estimate(found["recall@10"])
        own_modality = []
        for modality in MODALITIES:
            shares = [answers[q]["own"][modality] for q in qrels if modality in answers[q]["own"]]
            if shares:
                corpus_share = self._rows[modality] / (self._rows["text"] + self._rows["image"])
                own_modality.append(
                    OwnModality(modality, estimate(shares), corpus_share, len(shares))
                )
        return ExperimentResult(
            dataset=dataset.name,
            models=_models_in_short(self._index.models()),
            reranker=None if self._scorer is None else model_in_short(self._scorer.name),
            documents=len(dataset.corpus.document_ids),
            rows=self._rows,
            queries=len(qrels),
            kinds=kinds,
            methods=self._methods(runs, qrels, kinds),
            legs=legs,
            own_modality=own_modality,
            failed=failed,
            notes=(
                *dataset.notes,
                *self._notes(len(answers) - len(qrels), failed, legs),
                *self._notes_on_learning(answers, sampled, runs[DEFAULT], qrels),
                *([] if learnt is None else [learnt.summary()]),
            ),
            runs=runs,
            qrels=qrels,
            relevant_from=least,
            first_stage=learnt,
        )

    def _kinds(self, qrels: Qrels) -> dict[str, list[str]]:
        """The labelled queries of each kind; empty if there is only one kind."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for query in self._dataset.queries:
            if query.id in qrels:
                asked = {"text": query.text.strip(), "image": query.image_path}
                modalities = " and ".join(name for name, given in asked.items() if given)
                kinds[query.kind or modalities].append(query.id)
        return dict(kinds) if len(kinds) > 1 else {}

    def _methods(
        self,
        runs: Mapping[str, Mapping[str, Sequence[str]]],
        qrels: Qrels,
        kinds: Mapping[str, Sequence[str]],
    ) -> list[MethodResult]:
        values = {
            name: judge(run, qrels, METRICS, relevant_from=self._dataset.relevant_from)
            for name, run in runs.items()
        }
        row = {query: number for number, query in enumerate(qrels)}
        rows = {kind: [row[query] for query in queries] for kind, queries in kinds.items()}
        methods = []
        for name, own in values.items():
            reranked = name in {*RERANKED, BOTH_STAGES, BOTH_LEARNT}
            default = DEFAULT_RERANKED if reranked else DEFAULT
            compared = default in values and default != name
            methods.append(
                MethodResult(
                    name=name,
                    reranked=reranked,
                    metrics={metric: estimate(each) for metric, each in own.items()},
                    by_kind={
                        kind: {metric: estimate(each[of_kind]) for metric, each in own.items()}
                        for kind, of_kind in rows.items()
                    },
                    against_default={
                        metric: compare(values[default][metric], own[metric])
                        for metric in DEFAULT_METRICS
                        if compared
                    },
                )
            )
        return methods

    def _notes(self, unjudged: int, failed: Mapping[str, str], legs: Iterable[str]) -> list[str]:
        notes = []
        if failed:
            query, reason = next(iter(failed.items()))
            notes.append(
                f"queries that failed, not counted: {len(failed):,} (the first is {query}: "
                f"{reason})"
            )
        if unjudged:
            notes.append(
                f"queries without a document of grade {self._dataset.relevant_from} or more, not "
                f"counted: {unjudged:,}"
            )
        notes += notes_on_size(self._dataset, self._rows, self._existing)
        notes += [
            f"16+16, raw scores: the legs embed {modality} queries with different models, so one "
            "mixed index could not give these scores"
            for modality in dict.fromkeys(pair.split("_")[0] for pair in legs)
            if modality not in self._one_space
        ]
        if self._scorer is not None:
            notes += [
                f"{name}: left out, because {model_in_short(self._scorer.name)} reads only "
                f"{' and '.join(sorted(self._scorer.modalities))}"
                for name in RERANKED
                if name not in self._rerankers
            ]
        return notes

    def _existing(self, name: Modality, ids: Iterable[str]) -> set[str]:
        return cast("MilvusStore", self._collections[name].store).existing_ids(ids)

    def _notes_on_learning(
        self,
        answers: Mapping[str, dict[str, Any]],
        sampled: Mapping[str, list[str]],
        default: Mapping[str, list[str]],
        qrels: Qrels,
    ) -> list[str]:
        if not self._sample.fingerprint:
            return [trial_in_words(default, sampled, qrels, self._dataset.relevant_from)]
        notes = [f"the index has learnt from {self._sample}: “{DEFAULT}” uses them"]
        known = sum(bool(answers[query].get("learnt")) for query in qrels)
        if known:
            notes.append(
                f"the index has learnt from {known:,} of the labelled queries, so their figures "
                "may be too good: let it learn from other queries"
            )
        return notes


class _Remembering(PairScorer):
    """Scores each pair of a query only once, even if several methods need it."""

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
        """Forget everything about the last query."""
        self._prepared.clear()
        self._scores.clear()


def _candidates(answer: Mapping[str, Any]) -> Candidates | None:
    """What both stages say of a query's documents; None where that was not kept."""
    match answer.get("stages"):
        case {
            "documents": list(documents),
            "probabilities": list(probabilities),
            "first_stage": list(values),
            "scale": scale,
        }:
            return Candidates(documents, probabilities, values, scale)
    return None


def _is_ranking(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def _documents(nodes: Iterable[BaseNode]) -> list[str]:
    return list(dict.fromkeys(document_key(node, "document") for node in nodes))


def _models_in_short(names: str) -> str:
    """Name the models of an index, which stand between quotes, without their folders."""
    return "'".join(map(model_in_short, names.split("'")))
