"""Keeps an index in step with a changing corpus."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode

from llama_index_gap.errors import InvalidValueError, names_nearest
from llama_index_gap.index.comparing import file_of
from llama_index_gap.index.learning import LearningIndex
from llama_index_gap.index.ledger import Is
from llama_index_gap.index.writing import IndexReport, Writing, as_nodes
from llama_index_gap.modality import CollectionName
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.readers.records import OF_IMAGE, Skipped
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.text import as_bytes
from llama_index_gap.threads import asynchronous

_MANY = 10
"""If at least this many vanish, and more than half of the corpus, it counts as a mistake."""
_SOURCES_READ = 20
_NAMED = 3


@dataclass
class SyncReport:
    """How a corpus has changed since the index was last filled from it.

    Attributes:
        new: ids of documents that the index did not have.
        changed: ids of documents with nodes that are written again or deleted.
        vanished: ids of documents that are no longer in the corpus, and are deleted.
        renamed: for each new document with exactly the content of a vanished one, the id of the
            vanished one.
        kept: documents and images that were not read but are not deleted, since they may only be
            unreadable at the moment.
        unchanged: the number of unchanged documents.
        others: the number of rows from other corpora or from none; they stay.
        dry_run: whether this is a plan, and nothing was written.
        written: what was written, and what was skipped and why.
        notes: other things that a user should know.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    kept: list[Skipped] = field(default_factory=list)
    unchanged: int = 0
    others: int = 0
    dry_run: bool = False
    written: IndexReport = field(default_factory=IndexReport)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """The counts in one line, with the reasons for the first three that are kept."""
        kept = ""
        if self.kept:
            whys = [f"{each.source}: {each.reason}" for each in self.kept[:_NAMED]]
            whys += ["…"] if len(self.kept) > _NAMED else []
            kept = f", {len(self.kept):,} kept ({'; '.join(whys)})"
        renamed = f" ({len(self.renamed):,} of them renamed)" if self.renamed else ""
        documents = (
            f"{len(self.new):,} new{renamed}, {len(self.changed):,} changed, "
            f"{len(self.vanished):,} vanished{kept}, {self.unchanged:,} unchanged documents"
        )
        return documents if self.dry_run else f"{documents}; {self.written.summary()}"


@dataclass(frozen=True)
class SyncSettings:
    """What a call may delete.

    Attributes:
        vanished: whether documents that are no longer in the corpus are deleted, or only counted.
        whole_index: whether everything that is not from this corpus is deleted too.
        delete_unreadable: whether documents that may only be unreadable are deleted too.
        delete_most: whether more than half of a corpus may be deleted.
        dry_run: whether nothing is written.
    """

    vanished: bool = True
    whole_index: bool = False
    delete_unreadable: bool = False
    delete_most: bool = False
    dry_run: bool = False


class Plan:
    """Decides what happens to the stored nodes of a corpus that was read again.

    Args:
        stores: the collections.
        writing: the call, which has compared all nodes, and may have written them.
        corpus: the corpus that was read; nodes without one form a corpus without a path.
        source: the name of the corpus, if it has one.
        settings: what may be deleted.

    Attributes:
        report: what is new, changed and vanished.
    """

    def __init__(
        self,
        stores: Mapping[CollectionName, MilvusStore],
        writing: Writing,
        corpus: Corpus,
        source: str | None,
        settings: SyncSettings,
    ) -> None:
        self._stores, self._ledger, self._corpus = stores, writing.ledger, corpus
        self._source, self._settings = source, settings
        self._moved: list[tuple[CollectionName, list[str]]] = []
        self.report = SyncReport(dry_run=settings.dry_run, written=writing.report)

    def deletes(self) -> set[str]:
        """The ids of the nodes to delete once all others are written.

        Raises:
            ValueError: most of the corpus would be deleted from the index.
        """
        gone = self._gone()
        if self._source is not None and not self._settings.dry_run:
            for name, ids in self._moved:
                self._stores[name].rename_source(ids, self._source)
        return gone

    def _gone(self) -> set[str]:
        self._take_over()
        rows = self._ledger.each("SELECT DISTINCT id FROM leftovers")
        leftovers = {node_id for (node_id,) in rows}
        unread = None if self._settings.delete_unreadable else _Unread(self._corpus)
        if unread is not None:
            leftovers -= self._unreadable_images(leftovers)
        gone = set(leftovers)
        for key, place, ids in self._vanished():
            if unread is not None and (reason := unread.why(key, place)):
                self.report.kept.append(Skipped(key, reason))
            elif self._settings.vanished:
                self.report.vanished.append(key)
                gone |= ids
            else:
                self.report.written.vanished += 1
        if self._settings.vanished:
            self._describe(leftovers)
            self.report.others = sum(
                store.count() - self._ledger.count(name) for name, store in self._stores.items()
            )
            self._check(gone - self._renamed(gone))
        return gone

    def _vanished(self) -> Iterator[tuple[str, str, set[str]]]:
        """Documents that are no longer in the corpus: key, file, and ids of their nodes."""
        rows = self._ledger.each(
            "SELECT key, place, id FROM vanished WHERE source = ? OR ? ORDER BY key",
            [None if self._source is None else as_bytes(self._source), self._settings.whole_index],
        )
        for key, of_document in groupby(rows, key=itemgetter(0)):
            nodes = list(of_document)
            place = next((place for _, place, _ in nodes if place), "")
            yield key, place, {node_id for _, _, node_id in nodes}

    def _describe(self, leftovers: set[str]) -> None:
        """Report which documents are new or changed, and how many are unchanged."""
        ledger = self._ledger
        changed = dict.fromkeys(ledger.keys_of(leftovers), Is.CHANGED)
        ledger.note_documents(changed)
        new = ledger.each("SELECT key FROM compared WHERE read AND NOT was ORDER BY key")
        self.report.new = [key for (key,) in new]
        found = ledger.each("SELECT key FROM compared WHERE changed AND given AND was ORDER BY key")
        self.report.changed = [key for (key,) in found]
        sql = "SELECT count(*) FROM compared WHERE read AND was AND NOT changed"
        ((self.report.unchanged,),) = ledger.ask(sql)

    def _renamed(self, gone: set[str]) -> set[str]:
        """Report the new documents with exactly the content of a vanished one.

        Returns:
            The ids of the nodes among ``gone`` whose vectors new nodes take over.
        """
        taken: set[str] = set()
        if not gone:
            return taken
        vanished = set(self.report.vanished)
        # For each new row, the stored rows whose vector it may take over.
        rows = self._ledger.each(
            "SELECT w.key, w.part, w.id, s.id, s.key FROM written AS w LEFT JOIN staying AS s"
            " ON s.part = w.part AND s.content = w.content ORDER BY w.key, s.id"
        )
        new = set(self.report.new) if vanished else set()
        for key, of_document in groupby(rows, key=itemgetter(0)):
            origins: dict[tuple[str, str], str | None] = {}
            for _, part, node_id, origin_id, origin in of_document:
                origins[part, node_id] = origin
                if origin_id in gone:
                    taken.add(origin_id)
            (origin, *others) = set(origins.values())
            if key in new and not others and origin in vanished:
                self.report.renamed[key] = str(origin)
        return taken

    def _take_over(self) -> None:
        """If the corpus was moved, count the nodes from its former path as nodes of this corpus."""
        if self._source is None:
            return
        ledger = self._ledger
        of_source = "SELECT 1 FROM stored WHERE source = ? LIMIT 1"
        is_new = not ledger.ask(of_source, [as_bytes(self._source)])
        sources = ledger.ask(
            "SELECT source, count(*), sum(same) FROM taken GROUP BY source ORDER BY source"
        )
        for source, taken, same in sources:
            for name, store in self._stores.items():
                ledger.load(name, store, source)
            ((documents,),) = ledger.ask(
                "SELECT count(DISTINCT key) FROM stored WHERE source = ?", [as_bytes(source)]
            )
            if 2 * same < documents or not _was(source, self._corpus.path):
                self.report.notes.append(
                    f"{taken:,} documents have the ids of documents written from {source}; they "
                    f"replace those, and now belong to {self._source}"
                )
                continue
            self.report.notes.append(f"treated as the corpus that was at {source} before")
            # Vanished nodes are renamed first. If the process is killed here, the next one must
            # still find the other nodes under the old name, to see that the corpus has moved.
            for name in self._stores:
                gone = ledger.ask(
                    "SELECT id FROM missing WHERE part = ? AND source = ? ORDER BY id",
                    [name, as_bytes(source)],
                )
                self._moved.append((name, [node_id for (node_id,) in gone]))
            ledger.many(
                "UPDATE stored SET source = ? WHERE source = ? AND (part, id) IN"
                " (SELECT part, id FROM missing)",
                [(as_bytes(self._source), as_bytes(source))],
            )
        # A user may pass another name than the one, often a path, that the documents were given.
        named = self._source != str(self._corpus.path) and self._settings.vanished
        if is_new and named and not self._moved and not self._settings.whole_index:
            self._note_other_sources(self._source)

    def _note_other_sources(self, unknown: str) -> None:
        """Note which sources the index knows, those with the nearest names first."""
        known = {each for store in self._stores.values() for each in store.sources(_SOURCES_READ)}
        if not known:
            return

        def likeness(name: str) -> float:
            parts = (name, PurePosixPath(name).name)
            return max(SequenceMatcher(None, unknown, part).ratio() for part in parts)

        nearest = sorted(sorted(known), key=likeness, reverse=True)
        named = [repr(each) for each in nearest[:_NAMED]] + ["…"] * (len(nearest) > _NAMED)
        self.report.notes.append(
            f"no document in this index comes from the source {unknown!r}, so none counts as "
            f"vanished; the index knows the sources {', '.join(named)}. If one of them is this "
            "corpus, pass its name as source= (--source)"
        )

    def _unreadable_images(self, leftovers: set[str]) -> set[str]:
        """Images that their document still shows, but that cannot be read at the moment."""
        skipped = defaultdict[str, dict[str, str]](dict)
        places = {place: key for key, place in self._corpus.troubled.items()}
        for skip in self._corpus.skipped:
            place, _, path = skip.source.partition(OF_IMAGE)
            if path and place in places and not (skip.on_purpose or skip.by_rule):
                skipped[places[place]][PurePosixPath(unquote(path)).name] = skip.reason
        found = set()
        images = self._ledger.documents_of("image", leftovers) if skipped else {}
        for node_id, document in sorted(images.items()):
            # Readers name an image by its path below the corpus' folder, or below its root.
            name = re.sub(r"~\d+$", "", node_id.removeprefix(f"{document}#image-"))
            reason = skipped[document].get(PurePosixPath(name).name) if name != node_id else None
            if reason is not None and not _is_gone(name, self._corpus):
                found.add(node_id)
                self.report.kept.append(Skipped(f"{document}{OF_IMAGE}{name}", reason))
        return found

    def _check(self, gone: set[str]) -> None:
        """Raise an error, or note in a plan, if most of the corpus would be deleted."""
        report, images = self.report, self._ledger.count("image")
        vanished = set(report.vanished) - set(report.renamed.values())
        documents = len(report.vanished) + len(report.changed) + report.unchanged
        for count, total, kind in (
            (len(vanished), documents, "documents"),
            (len(self._ledger.there("image", gone)), images, "images"),
        ):
            if count < _MANY or 2 * count <= total or self._settings.delete_most:
                continue
            reason = (
                f"{count:,} of the {total:,} {kind} that the index has from {self._source} are "
                "missing; is the folder not mounted, or the wrong one? To delete them, pass "
                "delete_most=True (--delete-most)"
            )
            if not self._settings.dry_run:
                raise InvalidValueError(f"{reason}. Nothing was written")
            self.report.notes.append(reason)


class SyncedIndex(LearningIndex, ABC):
    """The part of ``DualIndex`` that keeps it in step with a corpus."""

    @abstractmethod
    def _bring_in(
        self,
        corpus: Corpus,
        *,
        source: str | None,
        settings: SyncSettings,
        show_progress: bool,
        strict: bool,
    ) -> SyncReport:
        """Write whole documents, and delete what the settings allow."""

    @names_nearest
    def sync(
        self,
        corpus: Corpus | Iterable[BaseNode],
        *,
        source: str | None = None,
        dry_run: bool = False,
        whole_index: bool = False,
        delete_unreadable: bool = False,
        delete_most: bool = False,
        splitter: NodeParser | None = None,
        show_progress: bool = False,
        strict: bool = False,
    ) -> SyncReport:
        """Bring the index in step with a corpus: embed what is new or changed, delete what is gone.

        Only documents that were written from the same corpus are deleted; those of other corpora
        stay. Everything new is written before anything is deleted. If a call is killed, the same
        call completes it. A renamed document keeps its vectors.

        Args:
            corpus: the result of ``read_corpus``, or any iterable of nodes or LlamaIndex documents,
                with all documents. All are read before anything is written; new and changed ones
                wait in a temporary file.
            source: the name of the corpus; by default its path. Required if there is no path.
            dry_run: write nothing, and report what would be done.
            whole_index: also delete everything else in the index, so that it holds only this
                corpus.
            delete_unreadable: also delete documents and images that may only be unreadable at the
                moment.
            delete_most: allow deleting more than half of the documents, or of the images, even if
                these are 10 or more.
            splitter: splits the texts of LlamaIndex documents; by default into 512 tokens.
            show_progress: show progress bars.
            strict: raise at the first node that would be skipped.

        Returns:
            What is new, changed, vanished and kept.

        Raises:
            ValueError: the corpus has no documents or no name, or most of it would be deleted;
                nothing was written.
            EmbeddingError: a model fails; what was written stays, and the same call continues.
        """
        settings = SyncSettings(
            whole_index=whole_index,
            delete_unreadable=delete_unreadable,
            delete_most=delete_most,
            dry_run=dry_run,
        )
        if not isinstance(corpus, Corpus):
            corpus = Corpus(as_nodes(corpus, splitter), [])
        if source is None and corpus.path is None:
            raise InvalidValueError(
                "sync of nodes that were not read from a path needs source=, a name for the "
                "corpus, by which the index recognises its nodes"
            )
        return self._bring_in(
            corpus,
            source=source,
            settings=settings,
            show_progress=show_progress,
            strict=strict,
        )

    async_sync = asynchronous(sync)


class _Unread:
    """The parts of a corpus that could not be read, by document and by file."""

    def __init__(self, corpus: Corpus) -> None:
        self._places = corpus.troubled
        self._of_read: dict[str, str] = {}  # for documents whose ids are known
        self._files: dict[str, str] = {}  # for files whose documents are unknown
        read = set(self._places.values())
        for skip in corpus.skipped:
            if skip.on_purpose or skip.by_rule:
                continue
            reason = f"{skip.source}: {skip.reason}"
            place = skip.source.partition(OF_IMAGE)[0]
            if skip.source in read or place in read:
                self._of_read[skip.source if skip.source in read else place] = reason
            else:
                self._files[file_of(skip.source)] = reason

    def why(self, key: str, place: str) -> str:
        """Why a document may still exist although it was not read; empty if it does not."""
        if key in self._places:
            return self._of_read.get(self._places[key], "")
        # An index from before places were stored knows only the ids of documents.
        for file in (place or key, *map(str, PurePosixPath(place).parents)):
            if file in self._files:
                return self._files[file]
        return ""


def _is_gone(name: str, corpus: Corpus) -> bool:
    """Whether the file of an image was deleted: its folder exists, but the file does not."""
    path = corpus.path
    beside = path.parent if path is not None and path.is_file() else path
    folders = [folder for folder in (beside, corpus.root) if folder is not None]
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    files = [folder / name for folder in folders]
    return any(file.parent.is_dir() for file in files) and not any(map(os.path.lexists, files))


def _was(source: str, path: Path | None) -> bool:
    """Whether a corpus may have moved here from the path that an index names as its source."""
    # The index may be someone else's: never touch a path that names a server.
    if path is None or not Path(source).is_absolute() or source.startswith(("//", "\\\\")):
        return False
    try:
        return not Path(source).exists() or Path(source).samefile(path)
    except (OSError, ValueError):
        return False
