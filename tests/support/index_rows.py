"""The stored rows of an index, and a comparison of two indexes."""

from __future__ import annotations

from typing import Any

import numpy as np

from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.store.rows import VECTOR_FIELD


def rows_of(index: DualIndex) -> dict[str, dict[str, dict[str, Any]]]:
    """All stored rows, by collection and id."""
    return {
        name: {
            row["id"]: row
            for row in store.collection.read(sorted(store.rows_from(None)), ["*"], 400)
        }
        for name, store in index._stores.items()
    }


def assert_same_rows(one: DualIndex, other: DualIndex) -> None:
    """Compare bit by bit, except for vectors, whose rounding depends on the batch."""
    ours, theirs = rows_of(one), rows_of(other)
    assert ours.keys() == theirs.keys()
    for name, of_collection in ours.items():
        assert of_collection.keys() == theirs[name].keys()
        for node_id, row in of_collection.items():
            again = theirs[name][node_id]
            np.testing.assert_allclose(row[VECTOR_FIELD], again[VECTOR_FIELD], atol=1e-5)
            assert row | {VECTOR_FIELD: None} == again | {VECTOR_FIELD: None}
