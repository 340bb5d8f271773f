"""Types of arrays, and functions that check and scale them."""

from __future__ import annotations

from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from llama_index_gap.errors import InvalidValueError

FloatArray: TypeAlias = npt.NDArray[np.float64]
"""Numbers in the precision of computations."""
VectorArray: TypeAlias = npt.NDArray[np.float32]
"""Vectors and scores in the precision of models and databases."""
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


@overload
def unit_rows(vectors: npt.ArrayLike) -> VectorArray: ...
@overload
def unit_rows(vectors: npt.ArrayLike, dtype: type[np.float64]) -> FloatArray: ...
def unit_rows(
    vectors: npt.ArrayLike, dtype: type[np.float32] | type[np.float64] = np.float32
) -> VectorArray | FloatArray:
    """Scale vectors to length 1.

    Args:
        vectors: shape (n, d), or (d,) for a single one.
        dtype: of the result.

    Returns:
        The same shape; a vector of zeros becomes NaN.
    """
    rows = np.asarray(vectors, dtype=dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled: VectorArray = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


def checked_unit_rows(**named: npt.ArrayLike) -> list[FloatArray]:
    """Check vectors of one model, and scale them to length 1.

    Args:
        named: arrays of shape (n, d), under the names that errors use.

    Raises:
        ValueError: there are no vectors, NaN, a zero vector, or different dimensions.
    """
    rows = []
    for name, values in named.items():
        vectors = finite(name, values)
        if vectors.ndim != 2:
            raise InvalidValueError(
                f"{name} of shape {vectors.shape}: must be (n, d), n and d at least 1"
            )
        rows.append(unit_rows(vectors, np.float64))
        zeros = np.isnan(rows[-1]).any(axis=1)
        if zeros.any():
            raise InvalidValueError(f"{name}: row {int(np.argmax(zeros))} is a zero vector")
    dimensions = {name: vectors.shape[1] for name, vectors in zip(named, rows, strict=True)}
    if len(set(dimensions.values())) > 1:
        listed = ", ".join(f"{name} {dimension}" for name, dimension in dimensions.items())
        raise InvalidValueError(
            f"vectors of different dimensions: {listed}; all must come from one model"
        )
    return rows


def finite(name: str, values: npt.ArrayLike) -> FloatArray:
    """Check that there are numbers, none of them NaN or infinite; ``name`` is for errors."""
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        raise InvalidValueError(f"{name}: there are none")
    if not np.isfinite(numbers).all():
        raise InvalidValueError(f"{name}: hold NaN or infinity")
    return numbers


def group_numbers(name: str, labels: npt.ArrayLike, n: int) -> IntArray:
    """Number the distinct labels from 0, for n items; ``name`` is for errors."""
    given = np.asarray(labels)
    if given.shape != (n,):
        raise InvalidValueError(f"{name} of shape {given.shape}: must be ({n},), one for each")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)
