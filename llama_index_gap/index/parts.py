"""Lets several processes fill one index, each with parts of the documents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import gethostname
from tempfile import NamedTemporaryFile
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, ImageNode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.images.folders import is_made
from llama_index_gap.index.comparing import file_of
from llama_index_gap.index.fitting import fit_nodes, parts_left
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.index.indexed_images import IndexedImages
from llama_index_gap.index.syncing import Plan, SyncedIndex, SyncSettings
from llama_index_gap.index.versions import IndexAddress
from llama_index_gap.index.writing import IndexReport, Writing
from llama_index_gap.modality import CollectionName
from llama_index_gap.nodes import as_row
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.readers.records import Skipped
from llama_index_gap.store.milvus import MilvusStore


@dataclass(frozen=True)
class Part:
    """Some of the nodes to insert, for one of several processes.

    Attributes:
        nodes: text nodes and image nodes.
        root: the folder that all images were read below; None if unknown.
        path: the file or folder of the corpus, if any.
        source: the name of the corpus, for ``sync``; None if there is no corpus.
        places: the file of the corpus that contains each of these documents, by document id.
        skipped: what was skipped when these documents were read.
        sign: if any node contains its image, a file from ``sign_in_storage`` in the folder of the
            index's stored images.
        whole: whether these are all nodes of their documents, so that other stored nodes of them
            are deleted.
        scattered: documents that also have nodes in other parts; none of their nodes are deleted.
        strict: whether the first node that would be skipped stops the call.
    """

    nodes: list[BaseNode]
    root: Path | None = None
    path: Path | None = None
    source: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    sign: str | None = None
    whole: bool = False
    scattered: frozenset[str] = frozenset()
    strict: bool = False


@dataclass(frozen=True)
class Begun:
    """What a process was about to do with a part after comparing it with the index.

    Attributes:
        unchanged: the number of unchanged rows in each collection.
        deletes: the number of rows to delete.
    """

    unchanged: dict[CollectionName, int]
    deletes: int


class PartlyFilledIndex(SyncedIndex):
    """The part of ``DualIndex`` that lets several processes fill it."""

    name: str
    address: IndexAddress
    version: int
    embed_model: BaseEmbedding
    image_embed_model: MultiModalEmbedding
    image_query_embed_model: MultiModalEmbedding | None
    _stores: dict[CollectionName, MilvusStore]
    _images: ImageStorage
    _indexed: IndexedImages
    _opened_with: dict[str, Any]

    @abstractmethod
    def _writing(self, root: Path | None, **settings: Any) -> Writing:
        """A call that inserts nodes."""

    @abstractmethod
    def delete_nodes(self, node_ids: Iterable[str]) -> None:
        """Delete nodes from all collections."""

    def opening(self) -> dict[str, Any]:
        """The arguments that open this index in another process, including its models.

        Folders are absolute paths, so that they mean the same in all processes.
        """
        same: BaseEmbedding = self.image_embed_model
        return {
            **self._opened_with,
            "uri": self.address.uri,
            "name": self.name,
            "embed_model": self.embed_model,
            "image_embed_model": None if same is self.embed_model else same,
            "image_query_embed_model": self.image_query_embed_model,
            "storage_dir": self.address.storage,
            "image_root": self._indexed.named,
        }

    def note_images(self, nodes: Iterable[BaseNode], root: Path | None) -> None:
        """Note the folders of images that other processes will insert, and the id of the index.

        If each process created an id, they would not agree on one.

        Args:
            nodes: image nodes and others.
            root: the folder that all of them were read below; by default the folder of each image.
        """
        images = [image for image in map(image_of, nodes) if image is not None]
        if images:
            paths = [Path(each.image_path) for each in images if each.image_path and not each.image]
            self._indexed.note([path.absolute() for path in paths if not is_made(path)], root)

    @contextmanager
    def sign_in_storage(self) -> Iterator[str]:
        """Keep a file in the folder of the index's stored images while the block runs.

        A process that does not see the file does not share the folder.
        """
        self._images.folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(prefix=".gap-", suffix=".partial", dir=self._images.folder) as sign:
            yield sign.name

    def write_part(self, part: Part, begin: Callable[[Begun], Begun]) -> IndexReport:
        """Write a part, as ``insert_nodes`` or ``refresh_ref_docs`` writes all nodes.

        Args:
            part: the nodes, which are never changed.
            begin: receives what is about to be done, before anything is written. It returns what
                the first process to begin this part was about to do, so that rows which a killed
                process wrote count as written.

        Raises:
            ValueError: this machine does not share the folder of the index's stored images.
            EmbeddingError: a model fails; what was written stays.
        """
        if part.sign is not None and not Path(part.sign).is_file():
            raise InvalidValueError(
                f"{self._images.folder}: the machine {gethostname()} does not share this folder, "
                "where the index keeps images that come as base64 or from PDF files; open the "
                "index with storage_dir= on storage that all machines share"
            )
        writing = self._writing(part.root, strict=part.strict, whole=part.whole, source=part.source)
        with closing(writing.ledger) as ledger:
            for document, place in part.places.items():
                ledger.place(document, file_of(place))
            running = partial(writing.running, None, show_progress=False, doing="Indexing")
            with running():
                now, gone = self._look_at(part, writing)
            first = begin(now)
            with running():
                for window in ledger.waiting():
                    writing.write(window, looked_at=True)
            writing.delete(gone, show_progress=False)
        report = writing.report
        for name, unchanged in now.unchanged.items():
            again = unchanged - first.unchanged[name]
            written = f"{name}_rows"
            setattr(report, written, getattr(report, written) + again)
            report.unchanged -= again
        report.deleted += first.deletes - now.deletes
        return report

    def _look_at(self, part: Part, writing: Writing) -> tuple[Begun, set[str]]:
        """Compare a part with the index; returns what to do, and the ids of nodes to delete."""
        fitted = fit_nodes(part.nodes, self.embed_model)
        writing.report.note_cuts(fitted)
        if not part.whole:
            stale = parts_left(part.nodes, fitted, self._stores["text"].existing_ids)
            if stale:
                self.delete_nodes(stale)
        compared = writing.look(fitted.nodes)
        writing.put_aside(fitted.nodes, compared)
        corpus = Corpus(fitted.nodes, part.skipped, part.root, part.path, part.places)
        # Without a source, the plan ignores the rest of the corpus.
        gone = Plan(self._stores, writing, corpus, None, SyncSettings(vanished=False)).deletes()
        for name in self._stores if part.scattered else ():
            documents = writing.ledger.documents_of(name, gone)
            gone -= {each for each, document in documents.items() if document in part.scattered}
        unchanged = {name: len(each.unchanged | each.relabelled) for name, each in compared.items()}
        return Begun(unchanged, sum(map(len, writing.deletes(gone).values()))), gone

    def end_parts(self, corpus: Corpus, source: str | None, given: Callable[[str], bool]) -> int:
        """Finish the work of several processes, once all of them are done.

        Args:
            corpus: the corpus that was read; its nodes are not used.
            source: the name of the corpus; None if there is no corpus.
            given: whether a document was given, by its id.

        Returns:
            How many documents from the same corpus the index has that were not given.
        """
        self._images.tidy()
        if source is None:
            return 0
        writing = self._writing(corpus.root, strict=False, whole=True, source=source)
        with closing(writing.ledger) as ledger:
            for name, store in self._stores.items():
                ledger.load(name, store, source, but=given)
            settings = SyncSettings(vanished=False)
            Plan(self._stores, writing, corpus, source, settings).deletes()  # only counts here
        return writing.report.vanished


def image_of(node: BaseNode) -> ImageNode | None:
    """A node of any class as the image node to store; None if it has no image."""
    row: BaseNode = node
    if not isinstance(node, ImageNode) and getattr(node, "image_resource", None) is not None:
        row = as_row(node)
    if isinstance(row, ImageNode) and (row.image or row.image_path or row.image_url):
        return row
    return None
