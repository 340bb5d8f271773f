"""What goes into an index: nodes as rows, embedded and written beside each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from tqdm import tqdm

from llama_index_gap.embedding import warn_once_of_cuts
from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError
from llama_index_gap.images.folders import ImageFolders, is_made
from llama_index_gap.images.opening import ImageError, image_digest
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.modality import CollectionName
from llama_index_gap.nodes import as_row, confined
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
        unchanged: rows that were there already, just so. Where only the path of an image has
            changed, since its folder was moved, the row is brought up to date with its vector.
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
        note: is told which images' files are about to be inserted.
        confine: where they must lie; anywhere if it is None.
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
        note: Callable[[Iterable[Path]], None],
        confine: ImageFolders | None,
        strict: bool,
    ) -> None:
        self._stores, self._models, self._images = stores, models, images
        self._note, self._confine, self._strict = note, confine, strict
        # By node id, what an image's vector is made from.
        self._digests: dict[str, str] = {}
        self._refused: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self.report = IndexReport()

    def write(self, nodes: Sequence[BaseNode], *, show_progress: bool) -> None:
        """Write nodes; those that are there already, just so, are left alone.

        Args:
            nodes: text nodes and image nodes; never changed.
            show_progress: show a progress bar.
        """
        rows = self._rows(nodes)
        images = [row for row in rows.values() if isinstance(row, ImageNode)]
        if images:  # only then the index needs to know its id, which the images kept are noted by
            files = [row for row in images if row.node_id in self._digests and row.image_path]
            paths = [Path(str(row.image_path)) for row in files]
            self._note([path for path in paths if not is_made(path)])  # those are copied
        if any(map(self._images.concerns, images)):
            with self._images.inserting():
                self._write(self._by_collection(rows), show_progress=show_progress)
        else:
            self._images.tidy()
            self._write(self._by_collection(rows), show_progress=show_progress)

    def _write(self, rows: Mapping[CollectionName, list[TextNode]], *, show_progress: bool) -> None:
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
                if name != "text":
                    lost -= self._refused  # what is stored of their images stays
                if gone := sorted(store.existing_ids(sorted(lost))):
                    with self._images.deleting(gone) if name == "image" else nullcontext():
                        store.delete_nodes(node_ids=gone)
                # In one go, since a server's first read waits.
                digests = {} if name == "text" else self._digests
                unchanged, moved = store.compare(of_collection, digests)
                at_once = self._models[name].embed_batch_size * _PASSES_PER_WRITE
                for start in range(0, len(of_collection), at_once):
                    stop_if_given_up()
                    batch = of_collection[start : start + at_once]
                    new = [row for row in batch if row.node_id not in unchanged | moved]
                    self.report.unchanged += len(batch) - len(new)
                    new = [row for row in new if self._can_be_stored(name, row)]
                    vectors = store.get_vectors([r.node_id for r in batch if r.node_id in moved])
                    again = [
                        row.model_copy(update={"embedding": vectors[row.node_id].tolist()})
                        for row in batch
                        if row.node_id in vectors
                    ]
                    if again:
                        writes.append(writer.submit(self._add, name, again))
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

    def _rows(self, nodes: Sequence[BaseNode]) -> dict[str, TextNode]:
        """A row for each id; images that are files have absolute paths, and are read once."""
        rows: dict[str, TextNode] = {}
        last = {node.node_id: node for node in nodes}
        for node in nodes:
            stop_if_given_up()
            if last[node.node_id] is not node:
                self._skip(node, "the same id comes again; the last one is taken")
                continue
            try:
                row = as_row(node)
            except _BAD_INPUT as error:
                self._skip(node, error)
                continue
            if isinstance(row, ImageNode) and row.image_path and not row.image:
                folders = self._confine or getattr(row, "image_folders", None)
                row = row.model_copy(update={"image_path": str(Path(row.image_path).absolute())})
                if is_made(str(row.image_path)):
                    folders = None
                if folders is not None:
                    row = cast(ImageNode, confined(row, folders))
                try:
                    self._digests[row.node_id] = image_digest(row)
                except ImageError as error:
                    # The model says what it makes of a file that cannot be read; but it knows of no
                    # folders, so that it is not asked for a file that may lie outside of them.
                    if folders is not None:
                        self._refused.add(row.node_id)
                        self._skip_row(row, error)
            rows[row.node_id] = row
        return rows

    def _by_collection(self, rows: Mapping[str, TextNode]) -> dict[CollectionName, list[TextNode]]:
        """The rows of each collection, images in files."""
        texts: list[TextNode] = []
        images: list[TextNode] = []
        for node_id, made in rows.items():
            try:
                row = self._images.keep(made)
            except _BAD_INPUT as error:
                self._skip(made, error)
                continue
            if isinstance(made, ImageNode) and made.image and isinstance(row, ImageNode):
                self._digests[node_id] = image_digest(row)
            has_image = isinstance(row, ImageNode) and bool(row.image_path or row.image_url)
            if row.text.strip():
                texts.append(row)
            if has_image and node_id not in self._refused:
                images.append(row)
            if not (row.text.strip() or has_image):
                self._skip(row, "has neither a text nor an image")
        by_collection: dict[CollectionName, list[TextNode]] = {"text": texts, "image": images}
        if "image_query" in self._stores:
            by_collection["image_query"] = images
        return by_collection

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
        stop_if_given_up()
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

    def _add(self, name: CollectionName, rows: list[TextNode]) -> None:
        self._stores[name].add(rows, images={} if name == "text" else self._digests)

    def _store(self, name: CollectionName, rows: list[TextNode]) -> None:
        if not rows:
            return
        try:
            self._add(name, rows)
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
