"""Hubs: vectors that are near to all queries, and the correction of their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray, VectorArray

NEAREST = 16
"""Hubness is the mean similarity to this many nearest references (k)."""
STRENGTH = 0.6
"""Strength of the hub correction (α), confirmed on features of eight models."""
FEWEST_REFERENCES = 2 * NEAREST
"""Minimum number of references: with fewer, nearly all of them would be the nearest ones."""

SAME = 1 - 1e-5
"""From this cosine on, a vector and a reference count as the same vector."""


def hubness(vectors: npt.ArrayLike, references: npt.ArrayLike, k: int = NEAREST) -> FloatArray:
    """How near each vector is to typical queries, whatever they ask.

    This is the mean of its k largest similarities to the references. A vector that is itself a
    reference does not count as its own neighbour (Chowdhury et al., *Nearest Neighbor
    Normalization*, EMNLP 2024; Bogolin et al., *Cross Modal Retrieval with Querybank
    Normalisation*, CVPR 2022).

    Args:
        vectors: of length 1, shape (n, d).
        references: queries, or vectors that are like queries; of length 1, shape (r, d).
        k: how many references; all if there are fewer.

    Returns:
        Shape (n,); 0 for a vector without other references.
    """
    rows, bank = np.asarray(vectors), np.asarray(references)
    if not len(rows) or not len(bank):
        return np.zeros(len(rows))
    similarities = (rows @ bank.T).astype(np.float64)
    itself = similarities >= SAME
    similarities[itself] = -np.inf
    k = min(k, len(bank))
    nearest = np.partition(similarities, len(bank) - k, axis=1)[:, len(bank) - k :]
    there = np.isfinite(nearest)
    total = np.where(there, nearest, 0.0).sum(axis=1)
    return np.asarray(total / np.maximum(there.sum(axis=1), 1), dtype=np.float64)


def reliability(sample: npt.ArrayLike, references: npt.ArrayLike, k: int = NEAREST) -> float:
    """How far the hubness of vectors is real and not chance (ρ).

    The references are split in two halves. Real hubs are near to both. ρ is the correlation between
    the hubness from the one half and from the other, each with k/2.

    Args:
        sample: of the searched vectors, of length 1, shape (m, d).
        references: as for ``hubness``, in no particular order.
        k: as for ``hubness``.

    Returns:
        0 to 1. It is 0 if the correlation is negative, if the hubness has no spread, or if there
        are fewer than 2k references or vectors.
    """
    rows, bank = np.asarray(sample), np.asarray(references)
    if min(len(rows), len(bank)) < 2 * k:
        return 0.0
    first, second = (hubness(rows, half, k // 2) for half in (bank[::2], bank[1::2]))
    if min(np.ptp(first), np.ptp(second)) < 1e-9:
        return 0.0
    return max(0.0, float(np.corrcoef(first, second)[0, 1]))


@dataclass(frozen=True)
class Hubs:
    """Tells how much of a hub each vector of a leg is.

    Attributes:
        references: of length 1, shape (r, d).
        reliability: ρ, above 0.
    """

    references: VectorArray
    reliability: float

    @classmethod
    def found(cls, sample: npt.ArrayLike, references: VectorArray) -> Hubs | None:
        """Find the hubs of a leg; None if it has none, or if there are too few vectors to tell.

        Args:
            sample: of the searched vectors, of length 1, shape (m, d).
            references: as for ``reliability``.
        """
        rho = reliability(sample, references)
        return cls(references, rho) if rho > 0 else None

    def of(self, vectors: npt.ArrayLike) -> FloatArray:
        """ρ · hubness of each vector, shape (n,); α times this is subtracted from its score.

        Args:
            vectors: of length 1, shape (n, d).
        """
        return self.reliability * hubness(vectors, self.references)


def spare_itself(amounts: npt.ArrayLike, scores: npt.ArrayLike) -> FloatArray:
    """Set the correction to 0 for hits with a cosine of 1, so that the query itself stays first.

    Args:
        amounts: the corrections, shape (n,).
        scores: the query's cosines, shape (n,).
    """
    return np.where(np.asarray(scores) < SAME, amounts, 0.0)


def hub_strength(hubs: bool | float) -> float:
    """α from a setting: True for 0.6, False for 0, or a number.

    Raises:
        ValueError: the number is not between 0 and 1.
    """
    if isinstance(hubs, bool):
        return STRENGTH if hubs else 0.0
    if not 0 <= hubs <= 1:
        raise InvalidValueError(f"hubs={hubs}: must be True, False, or a number from 0 to 1")
    return float(hubs)
