"""Collects labelled scores from an index, to fit a ``RelevanceCalibrator``."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.evaluation.datasets import LabelledQuery
from llama_index_gap.evaluation.metrics import Qrels
from llama_index_gap.gap.arrays import BoolArray, FloatArray
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.progress import Progress
from llama_index_gap.search.retriever import DualIndexRetriever

logger = logging.getLogger(__name__)

HITS = 100
"""Hits to take from each leg of an index."""


def collect_scores(
    searched: DualIndex | DualIndexRetriever,
    queries: Iterable[LabelledQuery],
    qrels: Qrels,
    *,
    relevant_from: int = 1,
    show_progress: bool = False,
) -> dict[str, tuple[FloatArray, BoolArray]]:
    """Search with labelled queries, and label each hit of each leg.

    An index returns 100 hits per leg, more than a search takes. So the irrelevant hits include
    ordinary ones, and deeper searches get probabilities too. Low probabilities are then too low
    for the first hits: the calibration error over the first 16 is 0.019, and 0.012 if fitted only
    on these. High probabilities hardly change (``benchmarks/calibration.py``). To fit on the hits
    of a retriever, pass that retriever.

    Args:
        searched: an index; or a retriever, which takes as many hits as it is set to.
        queries: the queries, from ``read_queries``.
        qrels: for each query, the grades of its relevant documents, from ``read_queries``. The key
            of a document is its ``ref_doc_id``, or without one the node's id. All its nodes count
            as relevant; to label a single node, use the node's id. A query may have no relevant
            document.
        relevant_from: the lowest grade that counts as relevant.
        show_progress: show a progress bar.

    Returns:
        For each pair of modalities, the scores of the hits, shape (n,), and whether each hit is
        relevant, shape (n,), as ``RelevanceCalibrator.fit`` takes them.

    Raises:
        ValueError: a query has no judgement.
    """
    queries = list(queries)
    for query in queries:
        if query.id not in qrels:
            raise InvalidValueError(
                f"qrels do not contain query {query.id!r}; if nothing is relevant to it, give it "
                "an empty judgement: {}"
            )
    retriever = (
        searched.as_retriever(similarity_top_k=HITS, image_queries="also_texts")
        if isinstance(searched, DualIndex)
        else searched
    )
    scores: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, list[bool]] = defaultdict(list)
    named = missed = 0
    for query in Progress(queries, desc="Asking", disable=not show_progress):
        relevant = {key for key, grade in qrels[query.id].items() if grade >= relevant_from}
        found = set()
        for leg, hits in retriever.search_legs(query.bundle).items():
            for node, score in zip(hits.nodes, hits.scores, strict=True):
                keys = relevant & {node.ref_doc_id, node.node_id}
                scores[leg.pair].append(score)
                labels[leg.pair].append(bool(keys))
                found |= keys
        named, missed = named + len(relevant), missed + len(relevant - found)
    if missed:
        logger.info("the queries did not find %d of %d relevant documents", missed, named)
    return {
        pair: (np.array(scores[pair], dtype=np.float64), np.array(labels[pair], dtype=np.bool_))
        for pair in scores
    }
