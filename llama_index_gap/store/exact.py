"""What Milvus Lite's graph does not reach: searched by comparing with every vector."""

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
"""Nodes of its graph that Milvus Lite looks at, at least, where not all of them may be found.

It walks over those that may not, too, and stops after so many steps: of 10,000 vectors, a tenth of
which a filter let through, 64 steps found 48 % of the nearest 16, and 1,024 found all.
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
    """The nearest rows that a search of fewer hits than it was asked for has not found.

    After so many steps the graph may not have come out of a crowd of rows that a filter leaves out,
    or that were deleted.

    Args:
        collection: on Milvus Lite.
        expression: which rows may be found; ``""`` for all.
        vector: the query, shape (d,).
        found: ids that the search has found.
        fields: what to read of a row.
        metric: how vectors are compared.
        most: rows to give, at most.

    Returns:
        Rows as a search gives them: ``id``, ``distance``, ``entity``.
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
