"""What goes into an index: nodes as rows, embedded and written beside each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from tqdm import tqdm

from llama_index_gap.embedding import warn_once_of_cuts
from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.modality import CollectionName
from llama_index_gap.readers.records import Skipped
from llama_index_gap.readers.splitting import default_splitter
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.threads import stop_if_given_up

_PASSES_PER_WRITE = 4
_WRITES_AHEAD = 2
# Metadata may be nested too deep to be read or written.
_BAD_INPUT = (*EXPECTED_ERRORS, RecursionError)


@dataclass
class IndexReport:
    """What a call put into an index, and what it did not.

    Attributes:
        text_rows: rows written to the text collection.
        image_rows: rows written to the image collection.
        image_query_rows: rows written to the collection for image queries, where there is one.
        unchanged: rows that were there already, just so.
        skipped: what was left out, with its reason.
    """

    text_rows: int = 0
    image_rows: int = 0
    image_query_rows: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def summary(self) -> str:
        """The counts in one line."""
        again = f"{self.image_query_rows:,} for image queries, " if self.image_query_rows else ""
        return (
            f"{self.text_rows:,} texts and {self.image_rows:,} images written, {again}"
            f"{self.unchanged:,} unchanged, {len(self.skipped):,} skipped"
        )


class Writing:
    """One call of ``insert_nodes``: what is new is embedded while what is embedded is written.

    Args:
        stores: the collections.
        models: the model of each.
        images: where images that come as base64 are kept.
        strict: raise at the first node that would be skipped.

    Attributes:
        report: what was written, and what was skipped and why.
    """

    def __init__(
        self,
        stores: Mapping[CollectionName, MilvusStore],
        models: Mapping[CollectionName, BaseEmbedding],
        images: ImageStorage,
        *,
        strict: bool,
    ) -> None:
        self._stores, self._models, self._images = stores, models, images
        self._strict = strict
        self._told: set[tuple[str, str]] = set()
        self.report = IndexReport()

    def write(self, nodes: Sequence[BaseNode], *, show_progress: bool) -> None:
        """Write nodes; those that are there already, just so, are left alone.

        Args:
            nodes: text nodes and image nodes; never changed.
            show_progress: show a progress bar.
        """
        rows = self._by_collection(nodes)
        everywhere = {row.node_id for of_collection in rows.values() for row in of_collection}
        total = sum(map(len, rows.values()))
        writes: deque[Future[None]] = deque()
        with (
            warn_once_of_cuts(self._models["text"]),
            tqdm(total=total, desc="Indexing", unit="node", disable=not show_progress) as bar,
            ThreadPoolExecutor(1, "milvus") as writer,
        ):
            for name, of_collection in rows.items():
                store = self._stores[name]
                lost = everywhere - {row.node_id for row in of_collection}
                delete_rows(store, name, store.existing_ids(sorted(lost)), self._images)
                # In one go, since a server's first read waits.
                unchanged = store.unchanged_ids(of_collection)
                at_once = self._models[name].embed_batch_size * _PASSES_PER_WRITE
                for start in range(0, len(of_collection), at_once):
                    stop_if_given_up()
                    batch = of_collection[start : start + at_once]
                    new = [row for row in batch if row.node_id not in unchanged]
                    self.report.unchanged += len(batch) - len(new)
                    new = [row for row in new if self._can_be_stored(name, row)]
                    if new:
                        embedded = self._embedded(name, new)
                        writes.append(writer.submit(self._store, name, embedded))
                    if len(writes) > _WRITES_AHEAD:
                        writes.popleft().result()
                    bar.update(len(batch))
            while writes:
                writes.popleft().result()
        for store in self._stores.values():
            store.finish()

    def _skip(self, node: BaseNode, reason: str | Exception) -> None:
        if self._strict:
            raise InvalidValueError(f"node {node.node_id}: {reason} (strict=True)")
        self.report.skipped.append(Skipped(f"node {node.node_id}", str(reason)))

    def _skip_row(self, row: TextNode, error: Exception) -> None:
        """Skip a node, once for all collections."""
        reason = str(error)
        if isinstance(error, RecursionError):
            reason = "its metadata is nested too deep; flatten it"
        if (row.node_id, reason) not in self._told:
            self._told.add((row.node_id, reason))
            self._skip(row, reason)

    def _by_collection(self, nodes: Sequence[BaseNode]) -> dict[CollectionName, list[TextNode]]:
        """The rows of each collection, one for each id, images in files."""
        rows: dict[CollectionName, dict[str, TextNode]] = {"text": {}, "image": {}}
        last = {node.node_id: node for node in nodes}
        for node in nodes:
            if last[node.node_id] is not node:
                self._skip(node, "the same id comes again; the last one is taken")
                continue
            try:
                row = self._images.keep(as_row(node))
            except _BAD_INPUT as error:
                self._skip(node, error)
                continue
            if row.text.strip():
                rows["text"][row.node_id] = row
            if isinstance(row, ImageNode) and (row.image_path or row.image_url):
                rows["image"][row.node_id] = row
            if not any(row.node_id in of_collection for of_collection in rows.values()):
                self._skip(node, "has neither a text nor an image")
        if "image_query" in self._stores:
            rows["image_query"] = rows["image"]
        return {name: list(of_collection.values()) for name, of_collection in rows.items()}

    def _can_be_stored(self, name: CollectionName, row: TextNode) -> bool:
        """Skip a row that the store refuses, before it is embedded."""
        try:
            self._stores[name].check(row)
        except (InvalidValueError, RecursionError) as error:
            self._skip_row(row, error)
            return False
        return True

    def _embedded(self, name: CollectionName, rows: list[TextNode]) -> list[TextNode]:
        """Copies of the rows with their vectors; one that cannot be embedded is skipped."""
        model = self._models[name]
        try:
            if name == "text":
                texts = [row.get_content(MetadataMode.EMBED) for row in rows]
                vectors = model.get_text_embedding_batch(texts)
            else:
                images: list[Any] = [
                    row.image_path or row.image_url for row in rows if isinstance(row, ImageNode)
                ]
                vectors = cast(MultiModalEmbedding, model).get_image_embedding_batch(images)
        except _BAD_INPUT as error:
            if len(rows) == 1:
                self._skip_row(rows[0], error)
                return []
            return [embedded for row in rows for embedded in self._embedded(name, [row])]
        return [
            row.model_copy(update={"embedding": vector})
            for row, vector in zip(rows, vectors, strict=True)
        ]

    def _store(self, name: CollectionName, rows: list[TextNode]) -> None:
        if not rows:
            return
        try:
            self._stores[name].add(rows)
        except (InvalidValueError, RecursionError) as error:  # before anything was written
            if len(rows) == 1:
                self._skip_row(rows[0], error)
                return
            for row in rows:
                self._store(name, [row])
            return
        match name:
            case "text":
                self.report.text_rows += len(rows)
            case "image_query":
                self.report.image_query_rows += len(rows)
            case "image":
                self.report.image_rows += len(rows)
                for row in rows:
                    self._images.settle(row.node_id, getattr(row, "image_path", None))


def delete_rows(
    store: MilvusStore, name: CollectionName, node_ids: Iterable[str], images: ImageStorage
) -> None:
    """Delete rows of a collection, and the images that no other node uses.

    Args:
        store: the collection.
        name: which it is.
        node_ids: ids; unknown ones are no error.
        images: where the images are kept.
    """
    ids = sorted(node_ids)
    if ids:
        store.delete_nodes(node_ids=ids)
    if name == "image":
        for node_id in ids:
            images.settle(node_id, None)


def as_nodes(documents: Sequence[BaseNode], splitter: NodeParser | None) -> list[BaseNode]:
    """LlamaIndex documents as nodes: texts cut, images as they are; nodes stay nodes.

    Args:
        documents: documents and nodes.
        splitter: cuts the texts; 512 tokens by default.
    """
    splitter = splitter or default_splitter()
    nodes: list[BaseNode] = []
    for document in documents:
        if not isinstance(document, Document):
            nodes.append(document)
        elif document.image_resource is not None:
            row = as_row(document)
            own_id = f"{document.node_id}#image"
            source = RelatedNodeInfo(node_id=document.node_id, node_type=ObjectType.DOCUMENT)
            relationships = {NodeRelationship.SOURCE: source}
            nodes.append(row.model_copy(update={"id_": own_id, "relationships": relationships}))
        else:
            stable = splitter.model_copy(update={"id_func": lambda i, doc: f"{doc.id_}#text-{i}"})
            nodes += stable.get_nodes_from_documents([document])
    return nodes


def as_row(node: BaseNode) -> TextNode:
    """A node of any class as the text node or image node that is stored."""
    if isinstance(node, TextNode):
        return node
    if not isinstance(node, Node):
        raise TypeError(f"{type(node).__name__} is neither a text nor an image node")
    common = {
        "id_": node.node_id,
        "text": node.get_content(MetadataMode.NONE),
        "metadata": node.metadata,
        "excluded_embed_metadata_keys": node.excluded_embed_metadata_keys,
        "excluded_llm_metadata_keys": node.excluded_llm_metadata_keys,
        "relationships": node.relationships,
    }
    image = node.image_resource
    if image is None:
        return TextNode(**common)
    return ImageNode(
        **common,
        image=image.data.decode() if image.data else None,
        image_path=str(image.path) if image.path else None,
        image_url=str(image.url) if image.url else None,
        image_mimetype=image.mimetype,
    )
