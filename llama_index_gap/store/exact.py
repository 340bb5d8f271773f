"""Exact search for the rows that Milvus Lite's graph does not reach."""

from __future__ import annotations

import math
from collections.abc import Collection as Ids
from typing import Any

import numpy as np

from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.store.collection import IDS_PER_MESSAGE, MESSAGE_BYTES, Collection
from llama_index_gap.store.filters import ID_FIELD
from llama_index_gap.store.rows import VECTOR_FIELD

LITE_EF = 8_192
"""Minimum ef of a filtered search on Milvus Lite: how many nodes of its graph it visits.

Lite visits filtered-out nodes too, and stops after this many. With 10,000 vectors, of which a
filter let a tenth through, 64 found 48 % of the nearest 16, and 1,024 found all.
"""


def missed_hits(
    collection: Collection,
    expression: str,
    vector: VectorArray,
    found: Ids[str],
    fields: list[str],
    *,
    metric: str,
    most: int,
) -> list[dict[str, Any]]:
    """The nearest rows that a search missed, if it found fewer hits than it should.

    The search may stop while it is still among nodes that a filter leaves out, or that were
    deleted.

    Args:
        collection: on Milvus Lite.
        expression: filter for the rows; ``""`` for all.
        vector: the query, shape (d,).
        found: ids that the search has found.
        fields: columns and keys to read.
        metric: compares vectors.
        most: maximum rows to return.

    Returns:
        Rows in the form of a search's hits: ``id``, ``distance``, ``entity``.
    """
    waiting = [each for each in collection.find_ids(expression) if each not in found]
    if not waiting:
        return []
    at_once = min(max(1, MESSAGE_BYTES // (4 * collection.dim)), IDS_PER_MESSAGE)
    scores: dict[str, float] = {}
    for row in collection.read(waiting, [VECTOR_FIELD], at_once):
        score = _score(np.asarray(row[VECTOR_FIELD], np.float32), vector, metric)
        if math.isfinite(score):
            scores[row[ID_FIELD]] = score
    nearest = sorted(scores.items(), key=lambda each: each[1], reverse=metric != "L2")
    known = dict(nearest[:most])
    rows = {row[ID_FIELD]: row for row in collection.read(known, fields, IDS_PER_MESSAGE)}
    return [
        {ID_FIELD: each, "distance": score, "entity": rows[each]}
        for each, score in known.items()
        if each in rows
    ]


def _score(row: VectorArray, query: VectorArray, metric: str) -> float:
    if metric == "L2":
        return float(np.square(row - query).sum())
    if metric == "COSINE":
        if not row.any():
            return float("nan")
        row, query = unit_rows(row), unit_rows(query)
    return float(row @ query)
