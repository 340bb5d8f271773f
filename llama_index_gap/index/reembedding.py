"""Embeds an index again with other models, while the old vectors can still be searched."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast, get_args

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import ImageNode, TextNode

from llama_index_gap.embedding.dual_encoder import warn_once_of_cuts
from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError
from llama_index_gap.images.opening import image_digest
from llama_index_gap.index.indexed_images import ImageRoot, IndexedImages
from llama_index_gap.index.models import (
    CALIBRATOR_PROPERTY,
    MODELS_PROPERTY,
    Identities,
    asked_dimension,
    embeds,
    identity_of,
    image_model,
    in_words,
    known_dimension,
    stored_identities,
    without_paths,
)
from llama_index_gap.index.query_sample import companion, kept_queries
from llama_index_gap.index.transfer import Rows, Transfer
from llama_index_gap.index.vectors import RowEmbedder
from llama_index_gap.index.versions import (
    UNFINISHED_PROPERTY,
    IndexAddress,
    StoredIndex,
    collection_name,
    drop_parts,
    the_index,
)
from llama_index_gap.modality import CollectionName
from llama_index_gap.progress import Progress
from llama_index_gap.readers.records import Skipped
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.database import Database
from llama_index_gap.store.filters import ID_FIELD
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import FINGERPRINT_KEY, VECTOR_FIELD, fingerprint, to_node
from llama_index_gap.threads import stop_if_given_up

logger = logging.getLogger(__name__)

_BAD_INPUT = (*EXPECTED_ERRORS, RecursionError)


@dataclass
class ReembedReport:
    """What a call embedded again.

    Attributes:
        rows: rows embedded, by collection: ``text``, ``image``, ``image_query``.
        unchanged: rows that did not need embedding: an earlier, stopped call had embedded them, or
            their model stays.
        skipped: rows that are left out of the index, and why.
        lost: what was learnt from the old model's vectors, and how to get it again.
    """

    rows: dict[str, int] = field(default_factory=dict)
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The counts in one line."""
        texts, images, extra = (self.rows.get(part, 0) for part in get_args(CollectionName))
        return (
            f"{texts:,} texts and {images:,} images embedded, "
            + (f"{extra:,} for image queries, " if extra else "")
            + f"{self.unchanged:,} unchanged, {len(self.skipped):,} skipped"
        )


def reembed_index(
    address: IndexAddress,
    embed_model: BaseEmbedding,
    image_embed_model: BaseEmbedding | None = None,
    *,
    image_query_embed_model: BaseEmbedding | None = None,
    image_root: ImageRoot | None = None,
    index_config: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    show_progress: bool = False,
) -> ReembedReport:
    """Embed everything in an index again, with other models.

    Texts come from the stored rows, and images from their files. The new collections are built
    beside the old ones, which can still be searched. When all rows are there, one property of the
    new text collection changes. From then on, the index opens with all new vectors. Then the old
    collections are deleted. If a call was stopped, the same call continues, with the same result.
    Do not insert or delete nodes meanwhile: if this is noticed, it is an error.

    Args:
        address: the address of the index.
        embed_model: embeds texts.
        image_embed_model: embeds images, and text queries that search them; by default
            ``embed_model``.
        image_query_embed_model: embeds images a second time, for image queries; by default the
            model that the index has, whose vectors stay, or none.
        image_root: folders that must contain the images; by default those that this user inserted
            images from.
        index_config: Milvus' vector index; HNSW by default.
        skip_unreadable: leave out rows that can no longer be read, such as missing images. By
            default such rows are an error, and the index does not change.
        show_progress: show a progress bar.

    Raises:
        ValueError: there is no such index, a model is unsuitable, or a row can no longer be read.
        StoreError: the database cannot be read or written.
    """
    for_images = image_model(image_embed_model or embed_model, "image_embed_model")
    for model in (embed_model, for_images):
        if not embeds(model, "text"):
            raise InvalidValueError(
                f"{model.model_name} embeds no texts, so a text query could not search with it; "
                "pass it as image_query_embed_model"
            )
    models: dict[CollectionName, BaseEmbedding] = {"text": embed_model, "image": for_images}
    if image_query_embed_model is not None:
        models["image_query"] = image_model(image_query_embed_model, "image_query_embed_model")
    report = ReembedReport()
    with ExitStack() as opened:
        database = opened.enter_context(Database(address.uri, address.token, address.timeout))
        index = the_index(database, address)
        assert index.current is not None
        parts = index.versions[index.current]
        stores = {
            part: opened.enter_context(address.opened(parts[part]))
            for part in _collections(parts, models)
        }
        before = stored_identities(stores["text"].initial_properties, str(address))
        after = _identities(models, before, one=image_embed_model in (None, embed_model))
        if _distinct(before) == _distinct(after):
            _drop_others(database, index, index.current)
            report.unchanged = sum(store.count() for store in stores.values())
            return report
        number = _begin(database, index, after)
        building = _Building(address, stores, models, report, before=before, after=after)
        building.open_new(opened, number, image_root, index_config)
        total = sum(store.count() for store in stores.values())
        with (
            warn_once_of_cuts(embed_model),
            Progress(total=total, desc="Embedding", unit="row", disable=not show_progress) as bar,
        ):
            for part in building.parts:
                for done in building.build(part):
                    bar.update(done)
        if report.skipped and not skip_unreadable:
            raise InvalidValueError(_why_not_over(address, report.skipped))
        report.lost = _what_is_lost(opened, address, parts, stores["text"], before)
        building.change_over()
        _drop_others(database, index, number)
    logger.info("%s: %s", address, report.summary())
    return report


def _collections(
    parts: Mapping[str, str], models: Mapping[CollectionName, BaseEmbedding]
) -> list[CollectionName]:
    """The collections to read; the new models may include one for image queries."""
    present: list[CollectionName] = [each for each in get_args(CollectionName) if each in parts]
    missing = {"text", "image"} - set(present)
    if missing:
        raise StoreError(f"its collection {missing.pop()!r} is gone; insert its documents again")
    return present


def _identities(
    models: Mapping[CollectionName, BaseEmbedding], before: Identities, *, one: bool
) -> Identities:
    """The identities of the models, as an index stores them."""
    after: Identities = {"text": identity_of(models["text"]), "image": None}
    if not one:
        after["image"] = identity_of(models["image"])
    if "image_query" in models:
        after["image_query"] = identity_of(models["image_query"])
    elif "image_query" in before:
        after["image_query"] = before["image_query"]
    return after


def _distinct(identities: Identities) -> Identities:
    """The identity of each collection's model, without the paths of files."""
    full = {each: identities[each] or identities["text"] for each in identities}
    return without_paths(full)


def _begin(database: Database, index: StoredIndex, after: Identities) -> int:
    """The number of the version to build; an unfinished one with other models is deleted."""
    mark = _mark(after)
    for number, begun in index.unfinished.items():
        if begun == mark:
            return number
    for number in list(index.unfinished):
        drop_parts(database, index.versions.pop(number))
    index.unfinished.clear()
    return max(index.versions) + 1


def _mark(after: Identities) -> str:
    return f"embedding it anew with {in_words(after)}"


def _drop_others(database: Database, index: StoredIndex, kept: int) -> None:
    for number in index.versions:
        if number != kept:
            drop_parts(database, index.versions[number])


def _why_not_over(address: IndexAddress, skipped: Sequence[Skipped]) -> str:
    first = skipped[0]
    rows = "1 row" if len(skipped) == 1 else f"{len(skipped):,} rows"
    such_as = ":" if len(skipped) == 1 else ", such as"
    return (
        f"{address}: {rows} cannot be embedded{such_as} {first.source} ({first.reason}); the index "
        "has not changed. Name the folder of the images with image_root= (--image-root) and run "
        "the same again, which embeds only these, or leave them out of the index with "
        "skip_unreadable=True (--skip-unreadable)"
    )


def _what_is_lost(
    opened: ExitStack,
    address: IndexAddress,
    parts: Mapping[str, str],
    texts: MilvusStore,
    before: Identities,
) -> list[str]:
    lost = []
    for slot in get_args(CollectionName):
        if name := parts.get(companion(slot)):
            try:
                kept = kept_queries(opened.enter_context(address.opened(name)))
            except (StoreError, InvalidValueError):  # damaged, and in any case lost
                kept = {}
            if kept.keys() - {"stored"}:
                lost.append(
                    "the learnt queries, since only their vectors from the old model were kept: "
                    "learn them again (index.learn_queries, 'llama-gap learn')"
                )
                break
    if texts.properties().get(CALIBRATOR_PROPERTY):
        lost.append(
            "the calibrator, which was fitted to the old model's scores: fit another one, and save "
            "it (index.save_calibrator)"
        )
    if any(each and each.get("aligner") for each in before.values()):
        lost.append(
            "the aligner, which moved the old model's vectors: fit another one for the new model "
            "if you want one"
        )
    return lost


class _Building:
    """Builds the new collections of an index.

    Args:
        address: the address of the index.
        stores: its collections.
        models: the new models.
        report: receives the counts.
        before: the identities of the old models.
        after: the identities of the new models.
    """

    def __init__(
        self,
        address: IndexAddress,
        stores: Mapping[CollectionName, MilvusStore],
        models: Mapping[CollectionName, BaseEmbedding],
        report: ReembedReport,
        *,
        before: Identities,
        after: Identities,
    ) -> None:
        self._address, self._from, self._models = address, stores, models
        self.report, self._after = report, after
        old, new = _distinct(before), _distinct(after)
        # Where the model stays, so do the vectors.
        self._stay = {part for part in new if old.get(part) == new[part]}
        self.parts: list[CollectionName] = [
            part for part in get_args(CollectionName) if part in new
        ]
        self._to: dict[CollectionName, MilvusStore] = {}
        self._told: set[tuple[str, str]] = set()
        self._held: dict[CollectionName, int] = {}

    def open_new(
        self,
        opened: ExitStack,
        number: int,
        image_root: ImageRoot | None,
        index_config: Mapping[str, Any] | None,
    ) -> None:
        """Open or create the new collections; texts first, marked as unfinished."""
        for part in self.parts:
            old = self._from.get(part)
            properties = self._properties(part)
            if part == "text":
                properties[UNFINISHED_PROPERTY] = _mark(self._after)
            stays = part in self._stay and old is not None
            if stays and old is not None:
                dim = old.dim
            else:
                model = self._models[part]
                dim = known_dimension(model) or asked_dimension(model)
            self._to[part] = opened.enter_context(
                self._address.opened(
                    collection_name(self._address.name, part, number),
                    dim,
                    index_config=index_config,
                    properties=properties,
                )
            )
        where = (self._address.uri, self._address.name, image_root, self._address.storage)
        self._folders = IndexedImages(self._from["image"], *where).folders

    def _properties(self, part: CollectionName) -> dict[str, str]:
        """The properties of the old collection, except those that belong to its model."""
        properties = self._from[part].properties() if part in self._from else {}
        properties.pop(CALIBRATOR_PROPERTY, None)
        properties.pop(UNFINISHED_PROPERTY, None)
        return properties | {MODELS_PROPERTY: json.dumps(self._after, sort_keys=True)}

    def build(self, part: CollectionName) -> Any:
        """Fill a collection; yields the number of rows in each batch."""
        stays = part in self._stay
        transfer = Transfer(
            self._from.get(part, self._from["image"]),
            self._to[part],
            made=(lambda page: {row[ID_FIELD]: row for row in page})
            if stays
            else partial(self._made, part),
            completed=None if stays else partial(self._embedded, part),
        )
        yield from transfer.run()
        self._held[part] = transfer.written + transfer.unchanged + transfer.left_out
        self.report.rows[part] = 0 if stays else transfer.written
        self.report.unchanged += transfer.unchanged + (transfer.written if stays else 0)

    def _made(self, part: CollectionName, page: Sequence[dict[str, Any]]) -> Rows:
        """The new rows, still with the old vectors; digests of images are computed again."""
        rows: Rows = {}
        for row in page:
            stop_if_given_up()
            made = row
            try:
                node = to_node(row, self._folders)
                if part != "text":
                    if not isinstance(node, ImageNode):
                        raise InvalidValueError("its node has no image")
                    if node.image_path:
                        digest = image_digest(node)  # raises if outside the allowed folders
                        made = {**row, FINGERPRINT_KEY: fingerprint(to_node(row), digest)}
            except _BAD_INPUT as error:
                self._skip(part, row, error)
                continue
            rows[row[ID_FIELD]] = made
        return rows

    def _embedded(self, part: CollectionName, rows: Rows) -> Rows:
        """The rows with new vectors, without those that cannot be embedded."""
        store = self._to[part]
        embedder = RowEmbedder(
            *(part, self._models[part], int(store.dim or 0)),
            lambda row, error: self._skip(part, rows[row.node_id], error),
        )
        embedded: Rows = {}
        nodes = [cast(TextNode, to_node(row, self._folders)) for row in rows.values()]
        for node in embedder.embed(nodes):
            vector = store.checked_vector(node.get_embedding(), node.node_id)
            embedded[node.node_id] = {**rows[node.node_id], VECTOR_FIELD: vector}
        return embedded

    def _skip(self, part: CollectionName, row: Mapping[str, Any], error: Exception) -> None:
        """Skip a row; report an image only once, even if two collections have it."""
        row_id = str(row[ID_FIELD])
        kind = "text" if part == "text" else "image"
        if (kind, row_id) not in self._told:
            self._told.add((kind, row_id))
            self.report.skipped.append(Skipped(f"{kind} {row_id[:100]}", str(error)))

    def change_over(self) -> None:
        """Make the new collections the index, in one atomic step."""
        for part, store in self._from.items():
            if store.count() != self._held[part]:
                raise StoreError(
                    f"{store.collection} was written to meanwhile; run the same again, which "
                    "embeds only the missing rows"
                )
        for part, store in self._to.items():
            store.keep()
            stored = store.properties()
            properties = self._properties(part)  # read again: they may have changed meanwhile
            store.set_properties({k: v for k, v in properties.items() if stored.get(k) != v})
        self._to["text"].set_properties({UNFINISHED_PROPERTY: ""})
