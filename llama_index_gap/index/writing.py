"""What goes into an index: nodes as rows, embedded and written beside each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from tqdm import tqdm

from llama_index_gap.embedding.dual_encoder import warn_once_of_cuts
from llama_index_gap.errors import EXPECTED_ERRORS, EmbeddingError, InvalidValueError
from llama_index_gap.images.folders import ImageFolders, is_made
from llama_index_gap.images.opening import ImageError, image_digest
from llama_index_gap.index.comparing import (
    Compared,
    Comparison,
    Origin,
    compare,
    documents_of,
    vectors_there,
)
from llama_index_gap.index.fitting import Fitted
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.index.vectors import RowEmbedder
from llama_index_gap.modality import CollectionName
from llama_index_gap.nodes import as_row, confined, texts_of_bytes
from llama_index_gap.readers.records import Skipped
from llama_index_gap.readers.splitting import default_splitter
from llama_index_gap.store.collection import IDS_PER_MESSAGE, batches
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import CONTENT_KEY
from llama_index_gap.text import is_blank
from llama_index_gap.threads import stop_if_given_up

_NOWHERE = Origin()
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
        deleted: rows of what documents no longer have, and of documents that vanished.
        vanished: documents that the index has from the same corpus, and that are not in it any
            more; only ``sync`` deletes them.
        skipped: what was left out, with its reason.
        cut_texts: texts that are longer than the model reads, and were cut into parts that fit.
        cut_into: how many parts these became.
        too_long: texts that cannot be cut so, such as captions: the model read their beginning.
    """

    text_rows: int = 0
    image_rows: int = 0
    image_query_rows: int = 0
    unchanged: int = 0
    deleted: int = 0
    vanished: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    cut_texts: int = 0
    cut_into: int = 0
    too_long: int = 0

    def note_cuts(self, fitted: Fitted) -> None:
        """Take over what was cut to fit the model."""
        self.cut_texts, self.cut_into = fitted.cut, fitted.parts
        self.too_long = fitted.too_long

    def summary(self) -> str:
        """The counts in one line."""
        cut = (
            f"; {self.cut_texts:,} texts were cut into {self.cut_into:,} that fit the model"
            if self.cut_texts
            else ""
        )
        too_long = (
            f"; of {self.too_long:,} texts the model reads only the beginning"
            if self.too_long
            else ""
        )
        again = f"{self.image_query_rows:,} for image queries, " if self.image_query_rows else ""
        gone = f"{self.deleted:,} deleted, " if self.deleted else ""
        return (
            f"{self.text_rows:,} texts and {self.image_rows:,} images written, {again}{gone}"
            f"{self.unchanged:,} unchanged, {len(self.skipped):,} skipped{cut}{too_long}"
        )


Deletes: TypeAlias = Callable[[Comparison], Iterable[str]]


class Writing:
    """One call that puts nodes in: what is new is embedded while what is embedded is written.

    Args:
        stores: the collections.
        models: the model of each.
        images: where images that come as base64 are kept.
        note: is told which images' files are about to be inserted.
        confine: where they must lie; anywhere if it is None.
        strict: raise at the first node that would be skipped.
        whole: whether all nodes of their documents are given.
        origin: where they come from.
        everything: whether they are compared with all that is stored.

    Attributes:
        report: what was written, and what was skipped and why.
        given: ids of the nodes that were given, but for those that hold nothing.
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
        whole: bool = False,
        origin: Origin = _NOWHERE,
        everything: bool = False,
    ) -> None:
        self._stores, self._models, self._images = stores, models, images
        self._note, self._confine, self._strict = note, confine, strict
        self._whole, self._origin, self._everything = whole, origin, everything
        # By node id, what an image's vector is made from, and what its file looked like then.
        self._digests: dict[str, str] = {}
        self._stamps: dict[str, tuple[int, ...] | None] = {}
        self._refused: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._labels: dict[CollectionName, dict[str, dict[str, str]]] = {}
        self.report = IndexReport()
        self.given: set[str] = set()

    def write(
        self, nodes: Sequence[BaseNode], *, show_progress: bool, deletes: Deletes | None = None
    ) -> None:
        """Write nodes; those that are there already, just so, are left alone.

        Args:
            nodes: text nodes and image nodes; never changed.
            show_progress: show progress bars.
            deletes: says which stored nodes are deleted once all others are written; by default
                those that whole documents no longer have. It may raise: nothing is written then.

        Raises:
            EmbeddingError: a model fails; what was written stays.
        """
        rows = self._rows(nodes)
        images = [row for row in rows.values() if isinstance(row, ImageNode)]
        if images:  # only then the index needs to know its id, which the images kept are noted by
            files = [row for row in images if row.node_id in self._digests and row.image_path]
            paths = [Path(str(row.image_path)) for row in files]
            self._note([path for path in paths if not is_made(path)])  # those are copied
        keeps = any(map(self._images.concerns, images))
        if not keeps:
            self._images.tidy()
        with self._images.inserting() if keeps else nullcontext():
            compared = self._compared(self._by_collection(rows, self._images.keep))
            gone = sorted({*(deletes or self.leftovers)(compared)})
            try:
                self._write(compared, show_progress=show_progress)
            except EmbeddingError as error:
                raise EmbeddingError(
                    f"{error}; before that: {self.report.summary()}. This stays, and the same call "
                    "or command goes on from there"
                ) from error
            self._delete(compared, gone, show_progress=show_progress)
        for store in self._stores.values():
            store.finish()

    def compare(self, nodes: Sequence[BaseNode]) -> Comparison:
        """Compare nodes with what is stored, as ``write`` does, and write nothing."""
        return self._compared(self._by_collection(self._rows(nodes), self._images.kept_as))

    def leftovers(self, compared: Comparison) -> set[str]:
        """The stored nodes that whole documents no longer have."""
        documents = documents_of(compared)
        return {
            node_id
            for each in compared.values()
            for node_id, row in each.stored.items()
            if self._whole and node_id not in self.given and row.document in documents
        }

    def vectors_there(self, name: CollectionName, compared: Compared) -> dict[str, str]:
        """Of rows that are not there just so, which node's stored vector is theirs, by node id."""
        return vectors_there(name, compared, self._digests)

    def _compared(self, rows: Mapping[CollectionName, list[TextNode]]) -> Comparison:
        compared = compare(
            self._stores,
            rows,
            self._digests,
            origin=self._origin,
            whole=self._whole,
            everything=self._everything,
        )
        self._labels = {name: each.labels for name, each in compared.items()}
        return compared

    def _write(self, compared: Comparison, *, show_progress: bool) -> None:
        total = sum(len(each.rows) for each in compared.values())
        writes: deque[Future[None]] = deque()
        with (
            warn_once_of_cuts(self._models["text"]),
            tqdm(total=total, desc="Indexing", unit="node", disable=not show_progress) as bar,
            ThreadPoolExecutor(1, "milvus") as writer,
        ):
            for name, each in compared.items():
                store, model = self._stores[name], self._models[name]
                embedder = RowEmbedder(name, model, int(store.dim or 0), self._skip_row)
                there = self.vectors_there(name, each)
                # So many for each of a model's processes, where it has some.
                passes = _PASSES_PER_WRITE * max(1, getattr(model, "processes", 0))
                at_once = model.embed_batch_size * passes
                for start in range(0, len(each.rows), at_once):
                    stop_if_given_up()
                    batch = each.rows[start : start + at_once]
                    others = [row for row in batch if row.node_id not in each.unchanged]
                    vectors = store.get_vectors(
                        [there[row.node_id] for row in others if row.node_id in there]
                    )
                    known = [
                        row.model_copy(update={"embedding": vectors[there[row.node_id]].tolist()})
                        for row in others
                        if there.get(row.node_id) in vectors
                    ]
                    again = [row for row in known if row.node_id in each.relabelled]
                    self.report.unchanged += len(batch) - len(others) + len(again)
                    if again:
                        writes.append(writer.submit(self._add, name, again))
                    done = {row.node_id for row in known}
                    new = [row for row in others if row.node_id not in done]
                    new = [row for row in new if self._can_be_stored(name, row)]
                    new = self._as_read(name, embedder.embed(new)) if new else []
                    new += [row for row in known if row.node_id not in each.relabelled]
                    if new:
                        writes.append(writer.submit(self._store, name, new))
                    if len(writes) > _WRITES_AHEAD:
                        writes.popleft().result()
                    bar.update(len(batch))
            while writes:
                writes.popleft().result()

    def _delete(self, compared: Comparison, gone: Sequence[str], *, show_progress: bool) -> None:
        """Delete nodes, and the rows of those that have lost their text or their image."""
        ids = {name: {*gone, *each.lost} for name, each in compared.items()}
        for name in ids.keys() - {"text"}:
            ids[name] -= self._refused  # what is stored of their images stays
        ids = {name: each & compared[name].stored.keys() for name, each in ids.items()}
        if not (total := sum(map(len, ids.values()))):
            return
        bar = tqdm(total=total, desc="Deleting", unit="row", disable=not show_progress)
        with bar, self._images.deleting(ids["image"]):
            for name, of_collection in ids.items():
                for batch in batches(sorted(of_collection), IDS_PER_MESSAGE, len):
                    stop_if_given_up()
                    self._stores[name].delete_nodes(node_ids=batch)
                    self.report.deleted += len(batch)
                    bar.update(len(batch))

    def _as_read(self, name: CollectionName, rows: list[TextNode]) -> list[TextNode]:
        """Embedded rows; of an image whose file was replaced meanwhile, nobody knows which it was.

        Its row gets no digest, so that the next call embeds it anew.
        """
        if name != "text":
            for row in rows:
                node_id = row.node_id
                if node_id in self._stamps and _stamp(row) != self._stamps[node_id]:
                    self._digests.pop(node_id, None)
                    self._labels[name][node_id].pop(CONTENT_KEY, None)
        return rows

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
        self.given = set(last)
        of_bytes = texts_of_bytes(nodes)
        for node in nodes:
            stop_if_given_up()
            if last[node.node_id] is not node:
                self._skip(node, "the same id comes again; the last one is taken")
                continue
            if node.node_id in of_bytes:
                self._skip(node, of_bytes[node.node_id])
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
                    self._stamps[row.node_id] = _stamp(row)
                    self._digests[row.node_id] = image_digest(row)
                except ImageError as error:
                    # The model says what it makes of a file that cannot be read; but it knows of no
                    # folders, so that it is not asked for a file that may lie outside of them.
                    if folders is not None:
                        self._refused.add(row.node_id)
                        self._skip_row(row, error)
            rows[row.node_id] = row
        return rows

    def _by_collection(
        self, rows: Mapping[str, TextNode], keep: Callable[[TextNode], TextNode]
    ) -> dict[CollectionName, list[TextNode]]:
        """The rows of each collection, images in files."""
        texts: list[TextNode] = []
        images: list[TextNode] = []
        for node_id, made in rows.items():
            try:
                row = keep(made)
            except _BAD_INPUT as error:
                self._skip(made, error)
                continue
            if isinstance(made, ImageNode) and made.image and isinstance(row, ImageNode):
                self._digests[node_id] = image_digest(made)
            if row is not made:  # what is kept goes by its content, and is replaced by nobody
                self._stamps.pop(node_id, None)
            has_image = isinstance(row, ImageNode) and bool(row.image_path or row.image_url)
            if not is_blank(row.text):
                texts.append(row)
            if has_image and node_id not in self._refused:
                images.append(row)
            if is_blank(row.text) and not has_image:
                self.given.discard(node_id)
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

    def _add(self, name: CollectionName, rows: list[TextNode]) -> None:
        digests = {} if name == "text" else self._digests
        self._stores[name].add(rows, images=digests, labels=self._labels[name])

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


def _stamp(row: TextNode) -> tuple[int, ...] | None:
    """Changes whenever the file of an image is replaced or written to; None where it is gone."""
    try:
        stat = Path(str(getattr(row, "image_path", ""))).stat()
    except (OSError, ValueError):
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


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
