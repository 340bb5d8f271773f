"""Labelled scores from a live index, for fitting a ``RelevanceCalibrator``."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np
from llama_index.core.schema import QueryBundle
from tqdm import tqdm

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import BoolArray, FloatArray
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.search.retriever import DualIndexRetriever

logger = logging.getLogger(__name__)

LabelledQuery: TypeAlias = tuple[str | QueryBundle, Collection[str]]
HITS = 100
"""Hits to take from each leg of an index."""


def collect_scores(
    searched: DualIndex | DualIndexRetriever,
    queries: Sequence[LabelledQuery],
    *,
    show_progress: bool = False,
) -> dict[str, tuple[FloatArray, BoolArray]]:
    """Ask labelled queries, and label each hit of each leg.

    An index is asked for 100 hits per leg, more than a search takes, so that the hits that are not
    relevant are everyday ones too, and deeper searches have their probabilities as well. Low ones
    are then too low for the first hits: over the first 16 the calibration error is 0.019, and 0.012
    if fitted on just these; high ones hardly change (``benchmarks/calibration.py``). For the hits
    of one retriever, pass it.

    Args:
        searched: an index; or a retriever, which takes as many hits as it is set to.
        queries: texts, or bundles with an image or both, each with the keys of all its relevant
            documents (``ref_doc_id``, or the id of a node without one). All nodes of these count as
            relevant; to label single nodes, name their ids instead. None at all is an answer too.
        show_progress: show a progress bar.

    Returns:
        For each pair of modalities that was asked the hits' scores, shape (n,), and whether they
        are relevant, shape (n,): what ``RelevanceCalibrator.fit`` takes.

    Raises:
        ValueError: relevant keys that are one text, not a collection.
    """
    retriever = (
        searched.as_retriever(similarity_top_k=HITS, image_queries="also_texts")
        if isinstance(searched, DualIndex)
        else searched
    )
    scores: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, list[bool]] = defaultdict(list)
    named = missed = 0
    for query, relevant in tqdm(queries, desc="Asking", disable=not show_progress):
        if isinstance(relevant, str):
            raise InvalidValueError(
                f"the relevant keys of {query!r} are one text: pass {{{relevant!r}}}"
            )
        wanted, found = set(relevant), set()
        for leg, hits in retriever.search_legs(query).items():
            for node, score in zip(hits.nodes, hits.scores, strict=True):
                keys = wanted & {node.ref_doc_id, node.node_id}
                scores[leg.pair].append(score)
                labels[leg.pair].append(bool(keys))
                found |= keys
        named, missed = named + len(wanted), missed + len(wanted - found)
    if missed:
        logger.info("%d of %d relevant keys are of no hit of their query", missed, named)
    return {
        pair: (np.array(scores[pair], dtype=np.float64), np.array(labels[pair], dtype=np.bool_))
        for pair in scores
    }
