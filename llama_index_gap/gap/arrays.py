"""Arrays, and vectors of length 1."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
"""Figures that are reckoned with."""
VectorArray: TypeAlias = npt.NDArray[np.float32]
"""Vectors and scores as models and databases give them."""
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


def unit_rows(vectors: npt.ArrayLike) -> VectorArray:
    """Scale vectors to length 1.

    Args:
        vectors: shape (n, d), or (d,) for a single one.

    Returns:
        float32 of the same shape; a vector of zeros becomes NaN.
    """
    rows: VectorArray = np.asarray(vectors, dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled: VectorArray = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled
