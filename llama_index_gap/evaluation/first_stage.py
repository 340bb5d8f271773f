"""Learns the weight of the first stage beside a reranker from labelled queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.evaluation.datasets import LabelledQuery
from llama_index_gap.evaluation.metrics import Qrels, compare, estimate, judge, judged_queries
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.nodes import GroupBy, by_document, document_key
from llama_index_gap.progress import Progress
from llama_index_gap.search.first_stage import (
    FirstStage,
    Scale,
    added_log_odds,
    first_stage_scores,
)
from llama_index_gap.search.rerank import MultiModalRerank

if TYPE_CHECKING:
    from llama_index_gap.index.dual_index import DualIndex

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The weights to try; 0 is the reranker alone, 16 nearly the first stage alone."""
PARTS = 5
"""The queries are split into so many parts, and each is held out once."""
FEWEST = 10
"""The fewest labelled queries: two for each part."""
_METRIC = "ndcg@10"


@dataclass(frozen=True)
class Candidates:
    """The documents that a query found, with the scores of both stages.

    Attributes:
        documents: the keys of the documents, in the first stage's order.
        probabilities: the reranker's probabilities; None for a document without one.
        first_stage: values of ``first_stage_scores``.
        scale: the scale of these values; None if no document has a score.
    """

    documents: Sequence[str]
    probabilities: Sequence[float | None]
    first_stage: Sequence[float]
    scale: Scale | None

    def ranking(self, weight: float) -> list[str]:
        """The documents as ``MultiModalRerank(first_stage=weight)`` ranks them.

        Args:
            weight: the weight of the first stage.
        """
        odds = added_log_odds(self.probabilities, self.first_stage, weight)
        return [self.documents[place] for place in np.argsort(-odds, kind="stable")]


@dataclass(frozen=True)
class Learnt:
    """A learnt weight, and the rankings of cross-validation.

    Attributes:
        first_stage: the weight and its figures.
        run: the ranking of each query, with the weight that the other parts taught.
    """

    first_stage: FirstStage
    run: dict[str, list[str]]


def learn_first_stage(
    searched: DualIndex | BaseRetriever,
    reranker: MultiModalRerank,
    queries: Iterable[LabelledQuery],
    qrels: Qrels,
    *,
    relevant_from: int = 1,
    show_progress: bool = False,
) -> FirstStage:
    """Learn the weight of the first stage beside a reranker from labelled queries.

    Each query is searched and reranked once. Nine weights from 0 to 16 are tried. The weight with
    the highest nDCG@10 is chosen, the smallest one if several are equal. The figures come from
    cross-validation: the queries are split into five parts, and each part is ranked with the weight
    that the other four teach. Learn again for another reranker, ``score_mode`` or retriever.

    Args:
        searched: a retriever; or an index, which is searched by ``as_retriever(complete=True)``.
        reranker: a reranker that gives probabilities. Its ``top_n``, ``similarity_cutoff``,
            ``max_seconds`` and ``first_stage`` are ignored.
        queries: the queries, as ``read_queries`` gives them; at least 10 with a relevant document,
            and better 50 or more.
        qrels: for each query the grades of its relevant documents.
        relevant_from: the lowest grade that counts as relevant.
        show_progress: show a progress bar.

    Returns:
        A value for ``MultiModalRerank(first_stage=…)``. ``summary()`` gives the weight's range, and
        ``gain`` says whether both stages together beat the better of the two.

    Raises:
        ValueError: too few queries with a relevant document; the reranker gives no probabilities;
            or the retriever's scores of some queries are log odds and those of others are not.
    """
    retriever: BaseRetriever = (
        searched if isinstance(searched, BaseRetriever) else searched.as_retriever(complete=True)
    )
    queries = list(queries)
    asked = set(judged_queries(qrels, relevant_from))
    judged = [query for query in queries if query.id in asked]
    check_number(len(judged))
    if not reranker.gives_probabilities:
        raise InvalidValueError(
            f"the scores of {reranker.model_name} are no probabilities, so that no weight for the "
            "first stage can be learnt; give the reranker a calibrator"
        )
    changes = dict.fromkeys(("top_n", "similarity_cutoff", "max_seconds", "first_stage"))
    alone = reranker.model_copy(update=changes)
    candidates: dict[str, Candidates] = {}
    for query in Progress(judged, desc="Asking", unit="query", disable=not show_progress):
        hits = retriever.retrieve(query.bundle)
        ranked = alone.postprocess_nodes(hits, query_bundle=query.bundle)
        candidates[query.id] = candidates_of(hits, ranked, alone.group_by)
    return learn_weight(
        candidates,
        qrels,
        relevant_from=relevant_from,
        kinds={query.id: query.kind or "" for query in judged},
        source=reranker.model_name,
    ).first_stage


def candidates_of(
    hits: Sequence[NodeWithScore], ranked: Sequence[NodeWithScore], group_by: GroupBy = "document"
) -> Candidates:
    """The documents that a query found, with the scores of both stages.

    Args:
        hits: the first stage's nodes, best first.
        ranked: the same nodes from a reranker that keeps all of them and has no ``first_stage``.
        group_by: the reranker's ``group_by``.
    """
    documents = by_document(hits, group_by)
    keys = [document_key(nodes[0].node, group_by) for nodes in documents]
    scores = {document_key(hit.node, group_by): hit.score for hit in ranked}
    found = first_stage_scores(documents)
    return Candidates(
        keys,
        [scores[key] for key in keys],
        found.values.tolist(),
        found.scale if found.missing < len(keys) else None,
    )


def learn_weight(
    candidates: Mapping[str, Candidates],
    qrels: Qrels,
    *,
    relevant_from: int = 1,
    kinds: Mapping[str, str] | None = None,
    source: str = "",
) -> Learnt:
    """Learn the weight as ``learn_first_stage`` does, from candidates that are known.

    Args:
        candidates: the candidates of each query.
        qrels: the judgements; a query without candidates is left out.
        relevant_from: the lowest grade that counts as relevant.
        kinds: the kind of each query; all parts get equal numbers of each kind.
        source: the reranker's name.

    Raises:
        ValueError: as for ``learn_first_stage``.
    """
    asked = {query: qrels[query] for query in qrels if query in candidates}
    queries = judged_queries(asked, relevant_from)
    check_number(len(queries))
    scales = {each.scale for each in candidates.values() if each.scale is not None}
    if len(scales) > 1:
        raise InvalidValueError(
            "the first stage gives log odds for some queries and other scores for others; learn "
            "with one retriever, with one way to combine its legs"
        )

    def judged(run: Mapping[str, Sequence[str]]) -> FloatArray:
        return judge(run, asked, [_METRIC], relevant_from=relevant_from)[_METRIC]

    runs = [{query: candidates[query].ranking(weight) for query in queries} for weight in WEIGHTS]
    values = np.array([judged(run) for run in runs])
    place = {query: number for number, query in enumerate(queries)}
    by_kind = sorted(queries, key=lambda query: (kinds or {}).get(query, ""))
    held_out, weights = np.empty(len(queries)), []
    run: dict[str, list[str]] = {}
    for part in range(PARTS):
        out = by_kind[part::PARTS]
        rows = [place[query] for query in out]
        best = _best(np.delete(values, rows, axis=1))
        held_out[rows] = values[best, rows]
        run |= {query: runs[best][query] for query in out}
        weights.append(WEIGHTS[best])
    reranker = values[0]
    retriever = judged({query: candidates[query].documents for query in queries})
    better = max(reranker, retriever, key=lambda each: each.mean())
    found = compare(better, held_out)
    return Learnt(
        FirstStage(
            weight=WEIGHTS[_best(values)],
            scale=scales.pop() if scales else "standardised",
            source=source,
            queries=len(queries),
            weights=tuple(weights),
            held_out=estimate(held_out),
            reranker=estimate(reranker),
            retriever=estimate(retriever),
            gain=found.difference,
            verdict=found.verdict,
        ),
        run,
    )


def _best(values: FloatArray) -> int:
    """The place of the weight with the highest mean; the smallest weight if several are equal."""
    return int(np.argmax(values.mean(axis=1).round(12)))


def check_number(queries: int) -> None:
    """Check early that a weight can be learnt from so many queries.

    Args:
        queries: the number of queries with a relevant document.

    Raises:
        ValueError: they are too few.
    """
    if queries < FEWEST:
        raise InvalidValueError(
            f"{queries} queries with a relevant document; a weight for the first stage needs at "
            f"least {FEWEST}: judge more queries, or pass a weight as a number"
        )
