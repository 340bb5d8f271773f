"""Aligners move vectors across the modality gap, so that texts and images can share one index.

A dual encoder's texts and images lie in two cones (Liang et al. 2022, *Mind the Gap*, arXiv
2203.02053), so a query finds mostly vectors of its own modality. An aligner is fitted on vectors of
one model, and never changes afterwards. It moves all vectors of an index, and all queries.
``benchmarks/gap_mitigations.py`` measures the effect of each aligner.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.files import write_at_once
from llama_index_gap.gap.arrays import FloatArray, VectorArray
from llama_index_gap.modality import Kind, Modality

if TYPE_CHECKING:
    from typing import Self

Towards: TypeAlias = Literal["identity", "zero"]

RIDGES = np.logspace(-4, 4, 17)
"""The values of λ that cross-validation chooses from, two in each decade."""
_FORMAT = "llama_index_gap.aligner"
_VERSION = 1
_LENGTH_TOLERANCE = 1e-3  # accepts vectors that were stored in half precision
_NO_DIRECTION = 1e-6
_DAMAGED = (KeyError, TypeError, AttributeError, StopIteration, ValueError, RecursionError)


@dataclass(frozen=True, eq=False)
class Aligner(ABC):
    """The base of all aligners. Two are equal if they move vectors in the same way.

    Attributes:
        fitted_on: how many texts, images and queries it was fitted on, and their model, if known.
        path: the file that ``load_aligner`` read it from; None if it was not loaded.
    """

    fitted_on: Mapping[str, int | str] = field(default_factory=dict, kw_only=True)
    path: Path | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        width = np.shape(next(iter(self._arrays().values())))[-1:]
        for name, array in self._arrays().items():
            own = np.array(array, dtype=np.float32, order="C")
            wanted = width * (2 if name == "matrix" else 1)
            if own.shape != wanted or not np.isfinite(own).all():
                raise InvalidValueError(
                    f"{name} has shape {own.shape}: must be {wanted}, without NaN or infinity"
                )
            own.flags.writeable = False
            object.__setattr__(self, name, own)

    @property
    def dimension(self) -> int:
        """Dimension of the vectors that it moves."""
        return int(next(iter(self._arrays().values())).shape[-1])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, computed from its class and its arrays."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, array in self._arrays().items():
            digest.update(f"{name}{array.shape}".encode() + array.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aligner) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def apply(
        self, vectors: npt.ArrayLike, modality: Modality, kind: Kind = "document"
    ) -> VectorArray:
        """Move vectors so that they can be compared with vectors of the other modality.

        Args:
            vectors: shape (n, d), rows of length 1; never changed.
            modality: of the vectors.
            kind: whether the vectors are queries or documents.

        Returns:
            Shape (n, d), rows of length 1.

        Raises:
            ValueError: a vector has another dimension, is not of length 1, holds NaN, or becomes a
                zero vector; the modality or the kind is unknown.
        """
        for name, value, known in (("modality", modality, Modality), ("kind", kind, Kind)):
            if value not in get_args(known):
                raise InvalidValueError(f"{name}={value!r}: must be {' or '.join(get_args(known))}")
        moved = self._move(_checked("vectors", vectors, self.dimension), modality, kind)
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        lost = np.flatnonzero(lengths < _NO_DIRECTION)
        if lost.size:
            raise InvalidValueError(
                f"{lost.size} of {len(moved)} vectors (first: row {lost[0]}) equal the subtracted "
                "mean and would become zero vectors; fit the aligner on more vectors"
            )
        scaled: VectorArray = moved / lengths
        return scaled

    def save(self, path: str | Path) -> Path:
        """Write it to one file in safetensors format, which holds no code.

        Args:
            path: for example ``aligner.safetensors``; an existing file is replaced.

        Returns:
            The file.

        Raises:
            ValueError: ``path`` is a folder.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            raise InvalidValueError(
                f"{path} is a folder; pass a file, such as {path}/aligner.safetensors"
            )
        content = {
            "version": _VERSION,
            "kind": type(self).__name__,
            "dimension": self.dimension,
            "fingerprint": self.fingerprint,
            "settings": self._settings(),
            "fitted_on": dict(self.fitted_on),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(path, save(self._arrays(), {_FORMAT: json.dumps(content)}))
        return path

    @abstractmethod
    def _move(self, vectors: VectorArray, modality: Modality, kind: Kind) -> VectorArray:
        """Move (n, d) unit vectors, without scaling them."""

    def _arrays(self) -> dict[str, VectorArray]:
        names = [each.name for each in fields(self) if each.type == "VectorArray"]
        return {name: getattr(self, name) for name in names}

    def _settings(self) -> dict[str, Any]:
        others = {"fitted_on", "path", *self._arrays()}
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in others
        }


@dataclass(frozen=True, eq=False)
class OffsetAligner(Aligner):
    """Moves images by the difference of the means: v − Δ, with Δ = mean(images) − mean(texts).

    This is the usual recipe (Liang et al. 2022, arXiv 2203.02053, who move in steps of Δ). Texts
    are not moved, so stored vectors of texts stay valid.

    Attributes:
        offset: Δ, shape (d,).
    """

    offset: VectorArray

    @classmethod
    def fit(
        cls, texts: npt.ArrayLike, images: npt.ArrayLike, *, model_name: str | None = None
    ) -> Self:
        """Fit on any texts and any images; they need not belong together.

        Args:
            texts: shape (n, d), rows of length 1; a few hundred are enough.
            images: shape (m, d), rows of length 1.
            model_name: the model of the vectors, for ``fitted_on``.

        Raises:
            ValueError: there are fewer than two texts or images, dimensions differ, or a row holds
                NaN or is not of length 1.
        """
        samples = _samples(texts=texts, images=images)
        means = _means(samples)
        offset = means["image_mean"] - means["text_mean"]
        return cls(offset, fitted_on=_counts(samples, model_name))

    def _move(self, vectors: VectorArray, modality: Modality, kind: Kind) -> VectorArray:
        return vectors - self.offset if modality == "image" else vectors


@dataclass(frozen=True, eq=False)
class CenterAligner(Aligner):
    """Subtracts from each vector the mean of its kind: query text, document text, or image.

    GR-CLIP (Li et al. 2025, *Closing the Modality Gap for Mixed Modality Search*, arXiv
    2507.19054). An image has one mean, whether it is a document or a query.

    Attributes:
        query_mean: of texts that are queries, shape (d,).
        text_mean: of texts that are documents, shape (d,).
        image_mean: of images, shape (d,).
    """

    query_mean: VectorArray
    text_mean: VectorArray
    image_mean: VectorArray

    @classmethod
    def fit(
        cls,
        texts: npt.ArrayLike,
        images: npt.ArrayLike,
        *,
        queries: npt.ArrayLike | None = None,
        model_name: str | None = None,
    ) -> Self:
        """Fit on any texts, images and queries; they need not belong together.

        Args:
            texts: shape (n, d), rows of length 1; a few hundred are enough.
            images: shape (m, d), rows of length 1.
            queries: shape (k, d), rows of length 1. By default the texts are used; this suits
                models without a prompt for queries, if queries read like the texts.
            model_name: the model of the vectors, for ``fitted_on``.

        Raises:
            ValueError: as for ``OffsetAligner.fit``.
        """
        samples = _samples(texts=texts, images=images, queries=queries)
        return cls(**_means(samples), fitted_on=_counts(samples, model_name))

    def _move(self, vectors: VectorArray, modality: Modality, kind: Kind) -> VectorArray:
        if modality == "image":
            return vectors - self.image_mean
        return vectors - (self.query_mean if kind == "query" else self.text_mean)


@dataclass(frozen=True, eq=False)
class LinearAligner(CenterAligner):
    """Centres like ``CenterAligner``, and then maps images onto their texts by a matrix W.

    W is learnt from pairs. X holds the pairs' texts and Y their images, each n rows of unit
    vectors, centred. W minimises

    - ‖YW − X‖² + λ‖W − I‖² (``towards="identity"``): ridge regression with a target (van
      Wieringen, arXiv 1509.09169). Directions that the pairs do not constrain stay unchanged.
    - ‖YW − X‖² + λ‖W‖² (``towards="zero"``): plain ridge regression (Hoerl and Kennard 1970).
      Directions that the pairs do not constrain shrink. Text queries then find images well, but
      *image queries find hardly anything but images*.
    - ‖YW − X‖² over rotations (``rotation=True``): orthogonal Procrustes (Schönemann 1966), which
      keeps all similarities among images. With fewer pairs than dimensions many rotations fit
      equally well; the one nearest to the identity is taken.

    Attributes:
        matrix: W, shape (d, d).
        ridge: λ; None for a rotation.
        towards: the matrix that λ pulls W to; None for a rotation.
    """

    matrix: VectorArray
    ridge: float | None = None
    towards: Towards | None = None

    @classmethod
    def fit(
        cls,
        texts: npt.ArrayLike,
        images: npt.ArrayLike,
        *,
        queries: npt.ArrayLike | None = None,
        ridge: float | None = None,
        towards: Towards = "identity",
        rotation: bool = False,
        model_name: str | None = None,
    ) -> Self:
        """Fit on pairs, such as captions and their images.

        Args:
            texts: shape (n, d), rows of length 1.
            images: shape (n, d), rows of length 1; row i belongs to text i.
            queries: as for ``CenterAligner.fit``; they are in no pair.
            ridge: λ, above 0. By default the value of ``RIDGES`` that best predicts texts from
                images in leave-one-out cross-validation (squared error; exact, from one singular
                value decomposition: Allen 1974). If images have several captions, the chosen λ is
                too small, since leaving out one caption leaves the others in.
            towards: as above.
            rotation: as above; excludes ``ridge`` and ``towards``.
            model_name: the model of the vectors, for ``fitted_on``.

        Raises:
            ValueError: the numbers of texts and images differ, λ is out of range, or as for
                ``OffsetAligner.fit``.
        """
        if rotation and (ridge is not None or towards != "identity"):
            raise InvalidValueError("rotation=True takes neither ridge nor towards; leave them out")
        if ridge is not None and not (np.isfinite(ridge) and ridge > 0):
            raise InvalidValueError(f"ridge={ridge}: must be a number above 0")
        if towards not in get_args(Towards):
            raise InvalidValueError(
                f"towards={towards!r}: must be {' or '.join(get_args(Towards))}"
            )
        samples = _samples(texts=texts, images=images, queries=queries)
        pairs, others = len(samples["texts"]), len(samples["images"])
        if pairs != others:
            raise InvalidValueError(
                f"{pairs} texts and {others} images: row i of both must form a pair; for vectors "
                "without pairs, use OffsetAligner or CenterAligner"
            )
        means = _means(samples)
        x = (samples["texts"] - means["text_mean"]).astype(np.float64)
        y = (samples["images"] - means["image_mean"]).astype(np.float64)
        if rotation:
            matrix = _rotation(y, x)
        elif towards == "zero":
            matrix, ridge = _ridge(y, x, ridge)
        else:
            matrix, ridge = _ridge(y, x - y, ridge)
            matrix += np.eye(len(matrix))
        return cls(
            **means,
            matrix=matrix,
            ridge=ridge,
            towards=None if rotation else towards,
            fitted_on=_counts(samples, model_name),
        )

    def _move(self, vectors: VectorArray, modality: Modality, kind: Kind) -> VectorArray:
        moved = super()._move(vectors, modality, kind)
        return np.matmul(moved, self.matrix) if modality == "image" else moved


def load_aligner(path: str | Path) -> Aligner:
    """Read an aligner that ``save`` wrote, bit for bit.

    Raises:
        ValueError: the file does not exist, is damaged, or holds something else.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise InvalidValueError(f"{path}: no such file; aligner.save(path) writes an aligner")
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(_FORMAT)
            names = file.keys() if header else []
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InvalidValueError(
            f"{path} is not a saved aligner, or is damaged ({error}); fit the aligner again"
        ) from error
    if header is None:
        raise InvalidValueError(f"{path} holds other arrays; pass a file that aligner.save wrote")
    kinds = {each.__name__: each for each in (OffsetAligner, CenterAligner, LinearAligner)}
    try:
        content = json.loads(header)
        version, kind = content["version"], content["kind"]
        aligner: Aligner | None = None
        if version == _VERSION and kind in kinds:
            settings, fitted_on = content["settings"], content["fitted_on"]
            aligner = kinds[kind](**arrays, **settings, fitted_on=fitted_on, path=path)
            changed = aligner.fingerprint != content["fingerprint"]
    except InvalidValueError as error:
        raise InvalidValueError(f"{path}: {error}") from error
    except _DAMAGED as error:
        raise InvalidValueError(
            f"{path} is damaged ({str(error)[:200]!r}); fit the aligner again"
        ) from error
    if aligner is None:
        raise InvalidValueError(
            f"{path} holds a {kind} in version {version} of the format; this package reads "
            f"{', '.join(kinds)} in version {_VERSION}: install the version that wrote the file"
        )
    if changed:
        raise InvalidValueError(
            f"{path} is damaged (its arrays have changed); fit the aligner again"
        )
    return aligner


# --- the mathematics -----------------------------------------------------------------------------


def _rotation(source: FloatArray, target: FloatArray) -> Any:
    """The orthogonal matrix R with source·R nearest to target, both (n, d)."""
    from scipy.linalg import orthogonal_procrustes  # slow to import, and only needed to fit

    # Pairing each axis with itself, at a tiny weight, fixes the directions that the pairs leave
    # open.
    weight = np.sqrt(1e-9 * np.linalg.norm(source.T @ target, 2))
    axes = weight * np.eye(source.shape[1])
    return orthogonal_procrustes(np.vstack([source, axes]), np.vstack([target, axes]))[0]


def _ridge(source: FloatArray, target: FloatArray, ridge: float | None) -> tuple[Any, float]:
    """The W that minimises ‖source·W − target‖² + λ‖W‖², both (n, d) and centred; and its λ."""
    left, singular, right = np.linalg.svd(source, full_matrices=False)
    projected = left.T @ target
    if ridge is None:

        def error(ridge: float) -> float:
            # Dividing by 1 − leverage gives the residual of row i if it is left out of the fit. The
            # mean is fitted too, hence 1/n.
            shrunk = left * (singular**2 / (singular**2 + ridge))
            leverage = np.einsum("ij,ij->i", shrunk, left) + 1 / len(source)
            return float((((target - shrunk @ projected) / (1 - leverage)[:, None]) ** 2).sum())

        ridge = float(min(RIDGES, key=error))
    return (right.T * (singular / (singular**2 + ridge))) @ projected, ridge


# --- samples -------------------------------------------------------------------------------------


def _samples(**samples: npt.ArrayLike | None) -> dict[str, VectorArray]:
    """The given samples, checked."""
    checked = {
        name: _checked(name, vectors) for name, vectors in samples.items() if vectors is not None
    }
    for name, vectors in checked.items():
        if len(vectors) < 2:
            raise InvalidValueError(
                f"{len(vectors)} {name}: at least 2 are needed, and a few hundred are better"
            )
    if len({vectors.shape[1] for vectors in checked.values()}) > 1:
        listed = ", ".join(f"{name} {vectors.shape[1]}" for name, vectors in checked.items())
        raise InvalidValueError(f"dimensions differ ({listed}); all must come from one model")
    return checked


def _checked(name: str, vectors: npt.ArrayLike, dimension: int | None = None) -> VectorArray:
    rows: VectorArray = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2:
        raise InvalidValueError(f"{name} have shape {rows.shape}: must be (n, d)")
    if dimension not in {None, rows.shape[1]}:
        raise InvalidValueError(
            f"{name} have {rows.shape[1]} dimensions, the aligner has {dimension}; use it only "
            "with the model and the number of dimensions that it was fitted on"
        )
    lengths = np.linalg.norm(rows, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))  # NaN too
    if wrong.size:
        raise InvalidValueError(
            f"{wrong.size} of {len(rows)} {name} are not of length 1, the first in row {wrong[0]} "
            f"(length {lengths[wrong[0]]:.3g}); scale them first, as DualEncoderEmbedding does"
        )
    return rows


def _means(samples: Mapping[str, VectorArray]) -> dict[str, Any]:
    mean = {
        name: vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        for name, vectors in samples.items()
    }
    queries = mean.get("queries", mean["texts"])
    return {"query_mean": queries, "text_mean": mean["texts"], "image_mean": mean["images"]}


def _counts(samples: Mapping[str, VectorArray], model_name: str | None) -> dict[str, int | str]:
    counts: dict[str, int | str] = {name: len(vectors) for name, vectors in samples.items()}
    return counts | ({"model_name": model_name} if model_name else {})
