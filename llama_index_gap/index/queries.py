"""Sorts, samples and embeds the queries that an index learns from."""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import QueryBundle
from PIL import Image

from llama_index_gap.embedding.base import EmbeddingBase
from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError
from llama_index_gap.files import FileError, open_file
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.images.opening import ImageSource, data_uri, describe
from llama_index_gap.index.vectors import PatientModel
from llama_index_gap.modality import PLURAL, Modality
from llama_index_gap.readers.records import Skipped
from llama_index_gap.text import is_blank
from llama_index_gap.threads import stop_if_given_up

FEWEST_QUERIES = 30
"""With fewer queries of a modality, chance decides their mean spread."""
MOST_QUERIES = 300
"""The most queries to keep of a modality; more brought no measurable gain."""

_LONGEST_NAME = 250  # the limit for file names on nearly all systems

UnlabelledQuery: TypeAlias = ImageSource | QueryBundle
"""A query to learn from: a ``str`` is a text; a path, bytes or an image is an image."""


@dataclass
class LearntQueries:
    """The queries that ``learn_queries`` learnt from, and those that it left out.

    Attributes:
        texts: the number of text queries kept; 0 if none were given, so that earlier ones stay.
        images: the number of image queries kept, likewise.
        duplicates: the number of duplicates.
        left_out: the number of queries not drawn, since a modality had more than 300.
        skipped: the queries that could not be embedded, with the reasons.
    """

    texts: int = 0
    images: int = 0
    duplicates: int = 0
    left_out: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def summary(self) -> str:
        """The counts in one line."""
        drawn = f", {self.left_out:,} not drawn" if self.left_out else ""
        return (
            f"learnt from {self.texts:,} text queries and {self.images:,} image queries; "
            f"{self.duplicates:,} duplicates{drawn}, {len(self.skipped):,} skipped"
        )


def sort_queries(
    queries: Iterable[UnlabelledQuery], report: LearntQueries
) -> dict[Modality, list[tuple[str, Any]]]:
    """Sort queries into texts and images, each with its place, without duplicate or blank texts.

    Args:
        queries: as for ``DualIndex.learn_queries``.
        report: receives what was left out.

    Raises:
        ValueError: an item is not a query.
    """
    if isinstance(queries, str | bytes | QueryBundle):
        raise InvalidValueError(f"queries={queries!r:.60}: must be a list of queries, not one")
    texts: dict[str, str] = {}
    images: list[tuple[str, Any]] = []
    for number, query in enumerate(queries, start=1):
        where = f"query {number:,}"
        text, image = "", cast(Any, query)
        if isinstance(query, str):
            text, image = query, None
        elif isinstance(query, QueryBundle):
            text, image = query.query_str or "", query.image_path
        if image is not None and describe(image) == f"<{type(image).__name__}>":
            raise InvalidValueError(
                f"{where} is of type {type(image).__name__}: must be a text (str), an image (a "
                "Path, bytes, an open image, a node), or a QueryBundle"
            )
        text = "" if is_blank(text) else text.strip()
        if image is None and _is_image_file(text):
            raise InvalidValueError(
                f"{where}, {text[:60]!r}, is an image, not a text: pass a Path, or a QueryBundle "
                "with image_path (also image_path in a .jsonl file)"
            )
        if text in texts:
            report.duplicates += 1
        elif text:
            texts[text] = where
        elif image is None:
            report.skipped.append(Skipped(where, "it is blank"))
        if image is not None:
            images.append((where, image))
    return {"text": [(where, text) for text, where in texts.items()], "image": images}


def _is_image_file(text: str) -> bool:
    if text.startswith("data:image/"):
        return True
    suffix = Path(text).suffix.lower() if len(text) < _LONGEST_NAME else ""
    return suffix in Image.registered_extensions() and Path(text).is_file()


def _image(source: ImageSource) -> tuple[str, str]:
    """An image as a path or a data URI, as queries hold it, and a digest of its content."""
    if isinstance(source, Image.Image):
        buffer = BytesIO()
        source.save(buffer, "PNG")
        uri = f"data:;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return uri, _digest(buffer.getvalue())
    if not isinstance(source, str | Path):
        uri = data_uri(source)
        return uri, _digest(base64.b64decode(uri.partition(",")[2]))
    try:
        with open_file(Path(source)) as file:
            return str(source), _digest(file.read())
    except FileError:  # perhaps a URL or the like: the model opens it, or says why not
        return str(source), str(source)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _patient(model: BaseEmbedding, modality: Modality) -> PatientModel[VectorArray]:
    """A model that embeds queries as a search does."""

    def embedded(queries: list[str]) -> list[VectorArray]:
        if modality == "image":
            found = cast(MultiModalEmbedding, model).get_image_embedding_batch(list(queries))
        elif isinstance(model, EmbeddingBase):
            found = model.get_query_embedding_batch(queries)
        else:
            found = [model.get_agg_embedding_from_queries([query]) for query in queries]
        rows = [np.asarray(each, dtype=np.float32) for each in found]
        if not all(np.isfinite(row).all() and row.any() for row in rows):
            raise InvalidValueError("its embedding has no direction")
        return rows

    return PatientModel(model.model_name, modality, embedded)


def embed_sample(
    modality: Modality,
    candidates: Sequence[tuple[str, Any]],
    models: Sequence[BaseEmbedding],
    report: LearntQueries,
) -> list[VectorArray]:
    """Embed at most 300 queries, drawn at random, with each model.

    Args:
        modality: the modality of the queries.
        candidates: the place and the content of each query, from ``sort_queries``.
        models: m models.
        report: receives what was left out.

    Returns:
        m arrays of vectors of length 1, shape (q, d), of the same queries.

    Raises:
        ValueError: fewer than 30 queries could be embedded.
        EmbeddingError: a model, or the service behind it, fails.
    """
    waiting = deque(candidates)
    if len(waiting) > MOST_QUERIES:
        order = np.random.default_rng(0).permutation(len(waiting))
        waiting = deque(candidates[place] for place in order.tolist())
    seen: set[str] = set()
    kept: list[list[VectorArray]] = []
    at_once = min(model.embed_batch_size for model in models)
    patient = [_patient(model, modality) for model in models]
    while waiting and len(kept) < MOST_QUERIES:
        stop_if_given_up()
        batch: list[tuple[str, str]] = []
        while waiting and len(batch) < min(at_once, MOST_QUERIES - len(kept)):
            where, query = waiting.popleft()
            if modality == "image":
                try:
                    query, content = _image(query)
                except EXPECTED_ERRORS as error:
                    report.skipped.append(Skipped(where, str(error)))
                    continue
                if content in seen:
                    report.duplicates += 1
                    continue
                seen.add(content)
            batch.append((where, query))
        asked = [query for _, query in batch]
        by_model = [model.vectors(asked) for model in patient]
        for (where, _), *rows in zip(batch, *by_model, strict=True):
            embedded = [unit_rows(row) for row in rows if not isinstance(row, Exception)]
            if len(embedded) == len(models):
                kept.append(embedded)
            else:
                why = next(row for row in rows if isinstance(row, Exception))
                report.skipped.append(Skipped(where, str(why)))
    report.left_out += len(waiting)
    if len(kept) < FEWEST_QUERIES:
        why_skipped = f", the first because {report.skipped[0].reason}" if report.skipped else ""
        raise InvalidValueError(
            f"{len(kept):,} {modality} queries to learn from ({report.duplicates:,} duplicates and "
            f"{len(report.skipped):,} skipped{why_skipped}): a modality needs at least "
            f"{FEWEST_QUERIES}; pass more, or no {PLURAL[modality]}"
        )
    return [np.array(rows, dtype=np.float32) for rows in zip(*kept, strict=True)]
