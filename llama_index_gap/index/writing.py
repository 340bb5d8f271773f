"""Writes nodes into an index: makes rows of them, and embeds and writes these in parallel."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

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

from llama_index_gap.embedding.dual_encoder import warn_once_of_cuts
from llama_index_gap.errors import EXPECTED_ERRORS, EmbeddingError, InvalidValueError
from llama_index_gap.images.folders import ImageFolders, is_made
from llama_index_gap.images.opening import ImageError, image_digest
from llama_index_gap.index.comparing import (
    Compared,
    Comparison,
    compare,
    contents_there,
    vectors_there,
)
from llama_index_gap.index.fitting import Fitted
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.index.ledger import Is, Ledger
from llama_index_gap.index.vectors import RowEmbedder
from llama_index_gap.index.windows import WINDOW
from llama_index_gap.modality import CollectionName
from llama_index_gap.nodes import as_row, confined, document_key, each_node, texts_of_bytes
from llama_index_gap.progress import Progress
from llama_index_gap.readers.records import Skipped
from llama_index_gap.readers.splitting import default_splitter
from llama_index_gap.store.collection import IDS_PER_MESSAGE, batches
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import CONTENT_KEY, SOURCE_KEY
from llama_index_gap.text import is_blank
from llama_index_gap.threads import stop_if_given_up

DOUBLE = "a later node has the same id and replaces it"
"""The reason why all but the last of several nodes with the same id are skipped."""
_PASSES_PER_WRITE = 4
_WRITES_AHEAD = 2
# Metadata may be nested too deep to be read or written.
_BAD_INPUT = (*EXPECTED_ERRORS, RecursionError)


@dataclass
class IndexReport:
    """What a call put into an index, and what it skipped.

    Attributes:
        text_rows: rows written to the text collection.
        image_rows: rows written to the image collection.
        image_query_rows: rows written to the collection for image queries, if there is one.
        unchanged: rows that were already stored exactly as given. If only the path of an image has
            changed, because its folder was moved, the row is updated and keeps its vector.
        deleted: rows of nodes that their documents no longer have, and of vanished documents.
        vanished: documents that the index has from the same corpus, but that are no longer in the
            corpus; only ``sync`` deletes them.
        skipped: what was left out, with the reasons.
        cut_texts: texts that were too long for the model, and were split into parts that fit.
        cut_into: the number of these parts.
        too_long: texts that were too long but cannot be split, such as captions; the model read
            only their beginning.
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
        """Add the counts of texts that were split to fit the model."""
        self.cut_texts += fitted.cut
        self.cut_into += fitted.parts
        self.too_long += fitted.too_long

    def summary(self) -> str:
        """The counts in one line."""
        cut = (
            f"; {self.cut_texts:,} texts were split into {self.cut_into:,} that fit the model"
            if self.cut_texts
            else ""
        )
        too_long = (
            f"; the model read only the beginning of {self.too_long:,} texts"
            if self.too_long
            else ""
        )
        extra = f"{self.image_query_rows:,} for image queries, " if self.image_query_rows else ""
        gone = f"{self.deleted:,} deleted, " if self.deleted else ""
        return (
            f"{self.text_rows:,} texts and {self.image_rows:,} images written, {extra}{gone}"
            f"{self.unchanged:,} unchanged, {len(self.skipped):,} skipped{cut}{too_long}"
        )


class Writing:
    """A call that inserts nodes, one window at a time.

    It embeds new rows while it writes embedded ones. The ledger holds the facts about earlier
    windows.

    Args:
        stores: the collections.
        models: the model of each collection.
        images: the storage for images that come as base64.
        note: receives the paths of image files that are about to be inserted.
        confine: the folders that must contain these files; None allows any folder.
        strict: raise at the first node that would be skipped.
        whole: whether all nodes of their documents are given.
        source: the name of the corpus of the nodes; None keeps the stored name of each node.

    Attributes:
        report: what was written, and what was skipped and why.
        ledger: which nodes were given, and which are stored.
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
        source: str | None = None,
    ) -> None:
        self._stores, self._models, self._images = stores, models, images
        self._note_files, self._confine, self._strict = note, confine, strict
        self._whole, self._source = whole, source
        # For the nodes of a window, by id: the digest of the image, and the stamp of its file when
        # the digest was taken.
        self._digests: dict[str, str] = {}
        self._stamps: dict[str, tuple[int, ...] | None] = {}
        self._labels: dict[CollectionName, dict[str, dict[str, str]]] = {}
        self._refused: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._binary: dict[str, str] = {}
        self._lost: dict[CollectionName, set[str]] = {name: set() for name in stores}
        self._images_looked_after = False
        self.report = IndexReport()
        self.ledger = Ledger()
        self._counted = False

    def read_stored(self, source: str | None) -> None:
        """Note the stored rows of a corpus, or all stored rows.

        Args:
            source: the name of the corpus; None for all rows.
        """
        self._counted = True
        for name, store in self._stores.items():
            self.ledger.load(name, store, source)
            if self.ledger.count(name) == store.count():
                self.ledger.complete.add(name)

    @contextmanager
    def running(self, total: int | None, *, show_progress: bool, doing: str) -> Iterator[None]:
        """The context in which windows are written or compared.

        Args:
            total: the number of nodes, for the progress bar; None if unknown.
            show_progress: show a progress bar.
            doing: the title of the progress bar.
        """
        with (
            warn_once_of_cuts(self._models["text"]),
            Progress(total=total, desc=doing, unit="node", disable=not show_progress) as self._bar,
            ThreadPoolExecutor(1, "milvus") as self._writer,
        ):
            yield

    def finish(self) -> None:
        """Make the written rows searchable at full speed."""
        for store in self._stores.values():
            store.finish()

    def write(self, nodes: Sequence[BaseNode], *, looked_at: bool = False) -> Comparison:
        """Write the nodes of a window that are not yet stored exactly as given.

        Args:
            nodes: text nodes and image nodes; never changed.
            looked_at: whether ``look`` has already compared all nodes of the call.

        Raises:
            EmbeddingError: a model fails; what was written stays.
        """
        binary = len(self._binary)
        rows = self._rows(nodes, tell_of_doubles=not looked_at)
        if len(self._binary) > binary:
            self._take_back(list(self._binary.items())[binary:])
        images = [row for row in rows.values() if isinstance(row, ImageNode)]
        if images:  # only then does the index need its id, under which its images are noted
            files = [row for row in images if row.node_id in self._digests and row.image_path]
            paths = [Path(str(row.image_path)) for row in files]
            self._note_files([path for path in paths if not is_made(path)])  # made ones are copied
        keeps = any(map(self._images.concerns, images))
        if not keeps and not self._images_looked_after:
            self._images.tidy()
        self._images_looked_after = True
        with self._images.inserting() if keeps else nullcontext():
            compared = self._compared(nodes, rows, self._images.keep, looked_at=looked_at)
            if not looked_at:
                self._let_wait(nodes, self._from_elsewhere(compared), compared)
            try:
                self._write(compared, len(nodes))
            except EmbeddingError as error:
                raise EmbeddingError(
                    f"{error}; before that: {self.report.summary()}. This stays; the same call or "
                    "command continues from there"
                ) from error
        return compared

    def look(self, nodes: Sequence[BaseNode]) -> Comparison:
        """Compare the nodes of a window with the stored rows, as ``write`` does; write nothing."""
        rows = self._rows(nodes, tell_of_doubles=True)
        compared = self._compared(nodes, rows, self._images.kept_as, looked_at=False)
        self._bar.update(len(nodes))
        return compared

    def put_aside(self, nodes: Sequence[BaseNode], compared: Comparison) -> None:
        """Put aside the nodes that ``write`` would write; count the rows of the others.

        Args:
            nodes: the nodes of a window.
            compared: the result of ``look``.
        """
        wanted = self.ledger.given_again(node.node_id for node in nodes)
        for each in compared.values():
            wanted |= each.contents.keys() | each.lost
        self.ledger.wait({n.node_id: n for n in nodes if n.node_id in wanted}.values())
        self.report.unchanged += sum(
            row.node_id not in wanted for each in compared.values() for row in each.rows
        )

    def vectors_there(self, name: CollectionName, compared: Compared) -> dict[str, str]:
        """For new and changed rows, the node whose stored vector can be reused, by node id."""
        if self._whole:
            return vectors_there(compared, partial(self.ledger.of_contents, name))
        reusable = contents_there(compared)
        return vectors_there(compared, lambda _: reusable)

    def _compared(
        self,
        nodes: Sequence[BaseNode],
        rows: Mapping[str, TextNode],
        keep: Callable[[TextNode], TextNode],
        *,
        looked_at: bool,
    ) -> Comparison:
        by_collection, empty = self._by_collection(rows, keep)
        if not looked_at:
            ids = dict.fromkeys(node.node_id for node in nodes if node.node_id not in empty)
            again = self.ledger.give(ids)
            for node in nodes if again else ():
                if node.node_id in again:
                    again.discard(node.node_id)
                    self._skip(node, DOUBLE)
        if not self._counted and len(nodes) >= WINDOW:  # not worth it for fewer
            self._counted = True
            self.ledger.complete |= {n for n, store in self._stores.items() if not store.count()}
        compared = compare(
            self._stores,
            by_collection,
            self._digests,
            ledger=self.ledger,
            source=self._source,
            whole=self._whole,
        )
        if self._whole and not looked_at:
            self._note_documents(nodes, compared)
        self._labels = {name: each.labels for name, each in compared.items()}
        for name, each in compared.items():
            self._lost[name] |= each.lost
            if self._lost[name]:
                self._lost[name] -= {row.node_id for row in each.rows}
        return compared

    def _from_elsewhere(self, compared: Comparison) -> set[str]:
        """The nodes that are stored as nodes of another corpus, or of this one's former path."""
        if self._source is None:
            return set()
        return {
            row.node_id
            for each in compared.values()
            for row in each.rows
            if row.node_id in each.stored
            and each.stored[row.node_id].labels.get(SOURCE_KEY) not in (None, self._source)
        }

    def _let_wait(self, nodes: Sequence[BaseNode], waiting: set[str], compared: Comparison) -> None:
        """Put nodes aside, so that after a kill the next call still sees that they moved here."""
        if not waiting:
            return
        self.ledger.wait({n.node_id: n for n in nodes if n.node_id in waiting}.values())
        for each in compared.values():
            each.rows = [row for row in each.rows if row.node_id not in waiting]
            for node_id in waiting:
                each.contents.pop(node_id, None)

    def _note_documents(self, nodes: Sequence[BaseNode], compared: Comparison) -> None:
        """Note in the ledger what happens to the documents of a window."""
        known: defaultdict[str, Is] = defaultdict(lambda: Is.GIVEN)
        for node in nodes:
            known[document_key(node, "document")] |= Is.GIVEN
        elsewhere = self._from_elsewhere(compared)
        taken: set[tuple[str, str, bool]] = set()
        for name, each in compared.items():
            same = each.unchanged | each.relabelled
            for row in each.rows:
                key = document_key(row, "document")
                known[key] |= Is.READ | (Is.WHOLE if row.ref_doc_id else Is(0))
                if row.node_id not in same:
                    known[key] |= Is.CHANGED
                if row.node_id in elsewhere and row.node_id in each.stored:
                    source = each.stored[row.node_id].labels.get(SOURCE_KEY)
                    taken.add((str(source), key, row.node_id in each.relabelled))
            written = [row for row in each.rows if row.node_id in each.contents]
            self.ledger.note_written(name, written, each.contents)
        changed = [
            each.stored[node_id].document or node_id
            for each in compared.values()
            for node_id in each.lost
        ]
        self.ledger.note_documents(known)
        self.ledger.note_documents(dict.fromkeys(changed, Is.CHANGED))
        self.ledger.note_taken(taken)

    def _write(self, compared: Comparison, nodes: int) -> None:
        writes: deque[Future[None]] = deque()
        total = sum(len(each.rows) for each in compared.values())
        before, rows = self._bar.n, 0
        try:
            for name, each in compared.items():
                store, model = self._stores[name], self._models[name]
                embedder = RowEmbedder(name, model, int(store.dim or 0), self._skip_row)
                reusable = self.vectors_there(name, each)
                # If the model has several processes, each gets this many passes.
                passes = _PASSES_PER_WRITE * max(1, getattr(model, "processes", 0))
                at_once = model.embed_batch_size * passes
                for start in range(0, len(each.rows), at_once):
                    stop_if_given_up()
                    batch = each.rows[start : start + at_once]
                    others = [row for row in batch if row.node_id not in each.unchanged]
                    vectors = store.get_vectors(
                        [reusable[row.node_id] for row in others if row.node_id in reusable]
                    )
                    known = [
                        row.model_copy(
                            update={"embedding": vectors[reusable[row.node_id]].tolist()}
                        )
                        for row in others
                        if reusable.get(row.node_id) in vectors
                    ]
                    again = [row for row in known if row.node_id in each.relabelled]
                    self.report.unchanged += len(batch) - len(others) + len(again)
                    if again:
                        writes.append(self._writer.submit(self._add, name, again))
                    done = {row.node_id for row in known}
                    new = [row for row in others if row.node_id not in done]
                    new = [row for row in new if self._can_be_stored(name, row)]
                    new = self._as_read(name, embedder.embed(new)) if new else []
                    new += [row for row in known if row.node_id not in each.relabelled]
                    if new:
                        writes.append(self._writer.submit(self._store, name, new))
                    if len(writes) > _WRITES_AHEAD:
                        writes.popleft().result()
                    rows += len(batch)
                    self._bar.update(before + nodes * rows // total - self._bar.n)
        finally:
            wait(writes)  # if the model fails, first finish writing what is embedded
        while writes:
            writes.popleft().result()
        self._bar.update(before + nodes - self._bar.n)
        if self._whole:
            for name, each in compared.items():
                self.ledger.note_stale(name, each.contents)

    def delete(self, gone: Iterable[str] = (), *, show_progress: bool) -> None:
        """Delete nodes, and the text or image rows of given nodes that lost their text or image.

        Args:
            gone: ids of stored nodes to delete.
            show_progress: show a progress bar.
        """
        ids = self.deletes(gone)
        if not (total := sum(map(len, ids.values()))):
            return
        bar = Progress(total=total, desc="Deleting", unit="row", disable=not show_progress)
        with bar, self._images.deleting(ids["image"]):
            for name, of_collection in ids.items():
                for batch in batches(sorted(of_collection), IDS_PER_MESSAGE, len):
                    stop_if_given_up()
                    self._stores[name].delete_nodes(node_ids=batch)
                    self.report.deleted += len(batch)
                    bar.update(len(batch))

    def deletes(self, gone: Iterable[str] = ()) -> dict[CollectionName, set[str]]:
        """The ids of the rows that ``delete`` would delete from each collection.

        Args:
            gone: ids of stored nodes to delete.
        """
        gone = sorted(gone)
        ids = {name: {*self._lost[name], *self.ledger.there(name, gone)} for name in self._stores}
        for name in ids.keys() - {"text"}:
            ids[name] -= self._refused  # the stored rows of unreadable images stay
        return ids

    def _as_read(self, name: CollectionName, rows: list[TextNode]) -> list[TextNode]:
        """The embedded rows, without digests of images whose file was replaced meanwhile.

        The model may have read either file. Without a digest, the next call embeds the row again.
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
        """Skip a node, and report it only once for all collections."""
        reason = str(error)
        if isinstance(error, RecursionError):
            reason = "its metadata is nested too deep; flatten it"
        if (row.node_id, reason) not in self._told:
            self._told.add((row.node_id, reason))
            self._skip(row, reason)

    def _rows(self, nodes: Sequence[BaseNode], *, tell_of_doubles: bool) -> dict[str, TextNode]:
        """A row for each id. Image files get absolute paths, and are read once."""
        self._digests, self._stamps = {}, {}
        rows: dict[str, TextNode] = {}
        last = {node.node_id: node for node in nodes}
        of_bytes = texts_of_bytes(nodes, self._binary)
        for node in nodes:
            stop_if_given_up()
            if last[node.node_id] is not node:
                if tell_of_doubles:
                    self._skip(node, DOUBLE)
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
                    # The model reports files that it cannot read. But it knows nothing of allowed
                    # folders, so it must not see a file that may lie outside them.
                    if folders is not None:
                        self._refused.add(row.node_id)
                        self._skip_row(row, error)
            rows[row.node_id] = row
        return rows

    def _take_back(self, binary: Sequence[tuple[str, str]]) -> None:
        """Delete the rows that earlier windows wrote for documents that proved to be binary."""
        for key, reason in binary:
            for name, store in self._stores.items():
                here = self.ledger.given_among(store.ids_of_documents([key]))
                for batch in batches(sorted(here), IDS_PER_MESSAGE, len):
                    store.delete_nodes(node_ids=batch)
                    self.report.deleted += len(batch)
                    if name == "text":
                        self.report.skipped += [Skipped(f"node {each}", reason) for each in batch]

    def _by_collection(
        self, rows: Mapping[str, TextNode], keep: Callable[[TextNode], TextNode]
    ) -> tuple[dict[CollectionName, list[TextNode]], set[str]]:
        """The rows of each collection, with images kept as files, and the ids of empty nodes."""
        texts: list[TextNode] = []
        images: list[TextNode] = []
        empty: set[str] = set()
        for node_id, made in rows.items():
            try:
                row = keep(made)
            except _BAD_INPUT as error:
                self._skip(made, error)
                continue
            if isinstance(made, ImageNode) and made.image and isinstance(row, ImageNode):
                self._digests[node_id] = image_digest(made)
            if row is not made:  # a kept image is named by its content, so nobody replaces it
                self._stamps.pop(node_id, None)
            has_image = isinstance(row, ImageNode) and bool(row.image_path or row.image_url)
            if not is_blank(row.text):
                texts.append(row)
            if has_image and node_id not in self._refused:
                images.append(row)
            if is_blank(row.text) and not has_image:
                empty.add(node_id)
                self._skip(row, "has neither a text nor an image")
        by_collection: dict[CollectionName, list[TextNode]] = {"text": texts, "image": images}
        if "image_query" in self._stores:
            by_collection["image_query"] = images
        return by_collection, empty

    def _can_be_stored(self, name: CollectionName, row: TextNode) -> bool:
        """Whether the store accepts a row; one that it rejects is skipped before embedding."""
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
        except (InvalidValueError, RecursionError) as error:  # raised before anything is written
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
    """A stamp that changes when an image file is replaced or modified; None if it is gone."""
    try:
        stat = Path(str(getattr(row, "image_path", ""))).stat()
    except (OSError, ValueError):
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def as_nodes(documents: Iterable[BaseNode], splitter: NodeParser | None) -> Iterator[BaseNode]:
    """LlamaIndex documents as nodes: texts split, images unchanged; nodes stay nodes.

    Args:
        documents: documents and nodes, taken lazily.
        splitter: splits the texts; by default into 512 tokens.
    """
    for document in each_node(documents):
        if not isinstance(document, Document):
            yield document
        elif document.image_resource is not None:
            row = as_row(document)
            own_id = f"{document.node_id}#image"
            source = RelatedNodeInfo(node_id=document.node_id, node_type=ObjectType.DOCUMENT)
            relationships = {NodeRelationship.SOURCE: source}
            yield row.model_copy(update={"id_": own_id, "relationships": relationships})
        else:
            splitter = splitter or default_splitter()  # loads a tokenizer, so only where needed
            stable = splitter.model_copy(update={"id_func": lambda i, doc: f"{doc.id_}#text-{i}"})
            yield from stable.get_nodes_from_documents([document])
