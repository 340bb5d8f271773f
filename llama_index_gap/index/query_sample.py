"""Keeps a sample of unlabelled queries with an index, to compare its scores with."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.index.models import (
    MODELS_PROPERTY,
    Identities,
    in_words,
    stored_identities,
    without_paths,
)
from llama_index_gap.index.queries import (
    FEWEST_QUERIES,
    LearntQueries,
    UnlabelledQuery,
    embed_sample,
    sort_queries,
)
from llama_index_gap.modality import MODALITIES, CollectionName, Modality
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore

logger = logging.getLogger(__name__)

_Kind: TypeAlias = Literal[
    "text", "image", "stored"
]  # "stored": texts of the index, see references
_KINDS: tuple[_Kind, ...] = get_args(_Kind)
_SMALL_INDEX = {"index_type": "FLAT"}
LEARN_AGAIN = (
    "learn queries again (index.learn_queries, 'llama-gap learn'), or forget them "
    "(index.forget_queries, 'llama-gap learn --forget')"
)
"""The way out if a sample is damaged."""


@dataclass(frozen=True)
class QuerySample:
    """The queries that an index has learnt from.

    Attributes:
        texts: the number of text queries.
        images: the number of image queries.
        fingerprint: changes with their vectors; empty if there are none.
    """

    texts: int = 0
    images: int = 0
    fingerprint: str = ""

    def __str__(self) -> str:
        counts = {"text": self.texts, "image": self.images}
        found = [f"{count:,} {name} queries" for name, count in counts.items() if count]
        return " and ".join(found) or "no queries"


class OpenCollection(Protocol):
    """Opens a collection of an index."""

    def __call__(self, each: str, dim: int | None, **settings: Any) -> MilvusStore:
        """Open ``{index}_{each}``; without a dimension, it must exist."""


def companion(slot: CollectionName) -> str:
    """The part of a collection's name that stands for a query sample.

    Args:
        slot: the collection whose model embedded the queries.
    """
    # No collection of another index ends like this, whatever the name of that index.
    return f"{slot}_queries"


class SampleKeeper:
    """Keeps the vectors of sample queries in small collections beside those of an index.

    Each distinct model of the index has one such collection. It is created at the first write, and
    open only while it is read or written. The queries themselves are not kept.

    Args:
        named: returns the name of a collection of the index.
        of: the name of the index, for messages.
        stores: the collections of the index.
        models: the model of each collection.
        identities: the identities of the models, from ``stored_identities``.
        opens: opens a collection.
        overwrite: start without a sample.
    """

    def __init__(
        self,
        named: Callable[[str], str],
        of: str,
        stores: Mapping[CollectionName, MilvusStore],
        models: Mapping[CollectionName, BaseEmbedding],
        *,
        identities: Identities,
        opens: OpenCollection,
        overwrite: bool,
    ) -> None:
        self._named, self._of, self._opens = named, of, opens
        self._beside, self._models = stores["text"], models
        self._dims = {each: int(store.dim or 0) for each, store in stores.items()}
        known: Identities = {each: identities.get(each) or identities["text"] for each in stores}
        compared = without_paths(known)
        self._slots: dict[CollectionName, CollectionName] = {
            each: next(first for first in stores if compared[first] == compared[each])
            for each in stores
        }
        self._identities = known
        by_image: CollectionName = "image_query" if "image_query" in stores else "image"
        asked: dict[Modality, list[CollectionName]] = {
            "text": ["text", "image"],
            "image": [by_image, "text"] if models["text"] is models["image"] else [by_image],
        }
        self._asked: dict[Modality, list[CollectionName]] = {
            modality: list(dict.fromkeys(self._slots[each] for each in collections))
            for modality, collections in asked.items()
        }
        self._read: dict[CollectionName, dict[_Kind, tuple[VectorArray, int]]] = {}
        if overwrite:
            self.drop()

    # --- learning --------------------------------------------------------------------------------

    def learn(self, queries: Iterable[UnlabelledQuery]) -> LearntQueries:
        """Keep a sample of queries, replacing earlier ones of the same modality.

        Args:
            queries: as for ``DualIndex.learn_queries``.
        """
        vectors, report = self.embedded(queries)
        for (slot, modality), rows in vectors.items():
            self._write(slot, modality, rows)
        logger.info("%s: %s", self._of, report.summary())
        return report

    def embedded(
        self, queries: Iterable[UnlabelledQuery]
    ) -> tuple[dict[tuple[CollectionName, Modality], VectorArray], LearntQueries]:
        """Embed a sample of queries without keeping it.

        Args:
            queries: as for ``DualIndex.learn_queries``.

        Returns:
            Vectors of length 1, shape (q, d), by slot and modality of the queries; and a report.
        """
        report = LearntQueries()
        given = sort_queries(queries, report)
        if not any(given.values()):
            raise InvalidValueError(
                f"no queries to learn from ({len(report.skipped):,} skipped); pass at least "
                f"{FEWEST_QUERIES} texts or images"
            )
        vectors: dict[tuple[CollectionName, Modality], VectorArray] = {}
        for modality, candidates in given.items():
            if candidates:
                slots = self._asked[modality]
                models = [self._models[slot] for slot in slots]
                found = embed_sample(modality, candidates, models, report)
                vectors |= {(s, modality): rows for s, rows in zip(slots, found, strict=True)}
        report.texts, report.images = (
            len(vectors.get((self._asked[modality][0], modality), ())) for modality in MODALITIES
        )
        return vectors, report

    # --- what is kept ----------------------------------------------------------------------------

    def queries(self, name: CollectionName, asking: Modality) -> VectorArray | None:
        """Learnt queries of a modality in the space of a collection; None if there are none.

        Args:
            name: the name of the collection.
            asking: the modality of the queries.
        """
        kept = self._kept(self._slots[name]).get(asking)
        return None if kept is None else kept[0]

    def in_place_of(
        self,
        vectors: Mapping[tuple[CollectionName, Modality], VectorArray],
        name: CollectionName,
        asking: Modality,
    ) -> VectorArray | None:
        """Like ``queries``, but with vectors from ``embedded`` in place of learnt ones."""
        found = vectors.get((self._slots[name], asking))
        return self.queries(name, asking) if found is None else found

    def references(self, name: CollectionName, texts: int) -> VectorArray | None:
        """Vectors of stored texts, embedded by the model of another collection.

        Args:
            name: the name of that collection.
            texts: the number of texts in the index.

        Returns:
            None if none are kept, or if the number of texts has since more than doubled or halved.
        """
        rows, before = self._kept(self._slots[name]).get("stored", (None, 0))
        return rows if texts <= 2 * before and before <= 2 * texts else None

    def keep_references(self, name: CollectionName, rows: VectorArray, texts: int) -> None:
        """Keep such vectors for later processes; logs a warning if the database is not writable.

        Args:
            name: the name of the collection.
            rows: the vectors, of length 1, shape (r, d).
            texts: the number of texts in the index.
        """
        try:
            self._write(self._slots[name], "stored", rows, texts)
        except StoreError as error:
            logger.warning(
                "%s: could not keep the vectors of %d texts, embedded by the images' model to find "
                "hubs, so every process embeds them again (%s)",
                self._of,
                len(rows),
                error,
            )

    def sample(self) -> QuerySample:
        """The number of learnt queries, and a fingerprint of their vectors."""
        counts = {
            modality: min(len(self._kept(slot).get(modality, ((), 0))[0]) for slot in slots)
            for modality, slots in self._asked.items()
        }
        digest = hashlib.blake2b(digest_size=8)
        for modality, slots in self._asked.items():
            for slot in slots:
                rows, _ = self._kept(slot).get(modality, (np.zeros(0, np.float32), 0))
                digest.update(f"{slot} {modality} {len(rows)}".encode() + rows.tobytes())
        known = digest.hexdigest() if any(counts.values()) else ""
        return QuerySample(counts["text"], counts["image"], known)

    def forget(self) -> None:
        """Forget what was read, so that it is read again when needed."""
        self._read.clear()

    def drop(self) -> None:
        """Delete the samples of all models."""
        for slot in get_args(CollectionName):
            self._beside.drop_collection(self._named(companion(slot)))
        self.forget()

    # --- reading and writing ---------------------------------------------------------------------

    def _kept(self, slot: CollectionName) -> dict[_Kind, tuple[VectorArray, int]]:
        if slot not in self._read:
            name = self._named(companion(slot))
            try:
                exists = self._beside.has_collection(name)
            except StoreError as error:  # perhaps a reader that may only read the index
                logger.warning("%s: searching without learnt queries (%s)", self._of, error)
                exists = False
            self._read[slot] = self._checked(slot) if exists else {}
        return self._read[slot]

    def _checked(self, slot: CollectionName) -> dict[_Kind, tuple[VectorArray, int]]:
        """Read a collection as untrusted data.

        Raises:
            StoreError: the collection is damaged, or comes from another model.
        """
        try:
            with self._opens(companion(slot), None) as store:
                if store.count() == 0:
                    return {}
                made_with = stored_identities(store.properties(), self._of)
                mine = {"text": self._identities[slot]}
                if without_paths(made_with | {"image": None}) != without_paths(
                    mine | {"image": None}
                ):
                    raise InvalidValueError(
                        f"they were embedded by {in_words(made_with) or 'an unknown model'}, but "
                        f"the index has {in_words(mine)}"
                    )
                store.check_dim(self._dims[slot])
                return kept_queries(store)
        except (StoreError, InvalidValueError) as error:
            raise StoreError(
                f"{self._of}: its learnt queries in {self._named(companion(slot))} cannot be used "
                f"({error}); {LEARN_AGAIN}"
            ) from error

    def _write(
        self, slot: CollectionName, kind: _Kind, rows: VectorArray, texts: int | None = None
    ) -> None:
        name = self._named(companion(slot))
        self.forget()
        try:
            self._kept(slot)
        except StoreError as error:
            logger.warning("%s; they are deleted", error)
            self._beside.drop_collection(name)
        settings = {} if self._beside.has_collection(name) else {"index_config": _SMALL_INDEX}
        with self._opens(companion(slot), rows.shape[1], **settings) as store:
            identity = json.dumps({"text": self._identities[slot]}, sort_keys=True)
            if store.initial_properties.get(MODELS_PROPERTY) != identity:
                store.set_properties({MODELS_PROPERTY: identity})
            about = {"kind": kind} if texts is None else {"kind": kind, "texts": texts}
            ids = [f"{kind}-{number:04}" for number in range(MOST_STORED)]
            store.add(
                [
                    TextNode(id_=row_id, text="", metadata=about, embedding=row.tolist())
                    for row_id, row in zip(ids, rows, strict=False)
                ]
            )
            store.delete_nodes(ids[len(rows) :])
            store.finish()
        self.forget()


MOST_STORED = 1_000
"""The most rows of one kind that are accepted as a sample."""


def kept_queries(store: MilvusStore) -> dict[_Kind, tuple[VectorArray, int]]:
    """Read the rows of a query sample: for each kind, its vectors and the index's number of texts.

    Args:
        store: the collection.

    Raises:
        StoreError: a row does not belong to a query sample, or there are too many rows.
    """
    count, most = store.count(), len(_KINDS) * MOST_STORED
    if count > most:
        raise StoreError(f"it has {count:,} rows; a query sample has at most {most:,}")
    nodes = sorted(store.get_nodes(), key=lambda node: node.node_id)
    vectors = store.get_vectors([node.node_id for node in nodes])
    rows: dict[_Kind, list[VectorArray]] = {}
    texts: dict[_Kind, int] = {}
    for node in nodes:
        kind, row = node.metadata.get("kind"), vectors.get(node.node_id)
        if kind not in _KINDS or row is None:
            raise StoreError(f"row {node.node_id[:60]!r} is not a query; its kind is {kind!r:.60}")
        if not np.isfinite(row).all() or not row.any():
            raise StoreError(f"row {node.node_id[:60]!r} has a vector without a direction")
        of = node.metadata.get("texts", 0)
        if not isinstance(of, int) or isinstance(of, bool) or of < 0:
            raise StoreError(f"row {node.node_id[:60]!r} stands for {of!r:.60} texts")
        rows.setdefault(kind, []).append(row)
        texts[kind] = of
    return {kind: (unit_rows(np.array(found)), texts[kind]) for kind, found in rows.items()}
