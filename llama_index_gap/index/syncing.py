"""Keeping an index in step with a corpus that changes."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode

from llama_index_gap.errors import InvalidValueError, names_nearest
from llama_index_gap.index.comparing import Comparison, file_of
from llama_index_gap.index.learning import LearningIndex
from llama_index_gap.index.writing import IndexReport, Writing, as_nodes
from llama_index_gap.modality import CollectionName
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.readers.records import Skipped
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import PLACE_KEY, SOURCE_KEY
from llama_index_gap.threads import asynchronous

_IMAGE = ", image "
_MANY = 10
"""From so many on, more than half of a corpus that vanish are looked upon as a mistake."""


@dataclass
class SyncReport:
    """What has become of a corpus since an index was filled from it.

    Attributes:
        new: ids of documents that the index did not have.
        changed: ids of documents of which anything is written anew, or deleted.
        vanished: ids of documents that are no longer in the corpus, and are deleted.
        renamed: of each new document that has just what a vanished one had, the id of that one.
        kept: documents and images that are not deleted although nothing of them was read: perhaps
            they cannot be read at the moment.
        unchanged: how many documents are as they were.
        others: how many rows of the index are of other corpora, or of none; they stay.
        dry_run: whether this is a plan, and nothing was written.
        written: what was written, and what was skipped and why.
        notes: what else a user should know.
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
        """The counts in one line."""
        kept = f", {len(self.kept):,} kept" if self.kept else ""
        renamed = f" ({len(self.renamed):,} of them renamed)" if self.renamed else ""
        documents = (
            f"{len(self.new):,} new{renamed}, {len(self.changed):,} changed, "
            f"{len(self.vanished):,} vanished{kept}, {self.unchanged:,} unchanged documents"
        )
        return documents if self.dry_run else f"{documents}; {self.written.summary()}"


@dataclass(frozen=True)
class SyncSettings:
    """What may be deleted.

    Attributes:
        vanished: whether documents that are no longer in the corpus are deleted, or only counted.
        whole_index: whether the index holds this corpus alone.
        delete_unreadable: whether that holds for what may only be unreadable, too.
        delete_most: whether more than half of a corpus may go.
        dry_run: whether nothing is written.
    """

    vanished: bool = True
    whole_index: bool = False
    delete_unreadable: bool = False
    delete_most: bool = False
    dry_run: bool = False


class Plan:
    """What becomes of the stored nodes of a corpus that was read again.

    Args:
        stores: the collections.
        writing: what compares and writes.
        corpus: what was read; nodes that no corpus was read for are one without a path.
        source: the name of the corpus; None if nobody has named it.
        settings: what may be deleted.

    Attributes:
        report: what is new, changed, vanished.
    """

    def __init__(
        self,
        stores: Mapping[CollectionName, MilvusStore],
        writing: Writing,
        corpus: Corpus,
        source: str | None,
        settings: SyncSettings,
    ) -> None:
        self._stores, self._writing, self._corpus = stores, writing, corpus
        self._source, self._settings = source, settings
        self._moved: list[tuple[CollectionName, list[str]]] = []
        self.report = SyncReport(dry_run=settings.dry_run, written=writing.report)

    def deletes(self, compared: Comparison) -> set[str]:
        """The ids of the nodes that go once all others are written.

        Raises:
            ValueError: most of what the index has of the corpus would go.
        """
        gone = self._gone(compared)
        if self._source is not None and not self._settings.dry_run:
            for name, ids in self._moved:
                self._stores[name].rename_source(ids, self._source)
        return gone

    def _gone(self, compared: Comparison) -> set[str]:
        given = {node.ref_doc_id or node.node_id for node in self._corpus.nodes}
        self._take_over(compared, given)
        vanished: defaultdict[str, set[str]] = defaultdict(set)
        for each in compared.values():
            for node_id, row in each.stored.items():
                ours = self._source is not None and row.labels.get(SOURCE_KEY) == self._source
                if ours or self._settings.whole_index:
                    key = row.document or node_id
                    if key not in given and node_id not in self._writing.given:
                        vanished[key].add(node_id)
        leftovers = self._writing.leftovers(compared)
        if not self._settings.delete_unreadable:
            unread = _Unread(self._corpus)
            leftovers -= self._unreadable_images(compared, leftovers)
            for key in sorted(vanished):
                if reason := unread.why(key, _place(compared, vanished[key])):
                    self.report.kept.append(Skipped(key, reason))
                    del vanished[key]
        self._describe(compared, given, leftovers)
        self.report.vanished = sorted(vanished)
        rows = {name: store.count() for name, store in self._stores.items()}
        self.report.others = sum(rows[name] - len(each.stored) for name, each in compared.items())
        if not self._settings.vanished:
            self.report.written.vanished = len(vanished)
            self.report.vanished = []
            return leftovers
        gone = leftovers.union(*vanished.values())
        self._check(compared, gone - self._renamed(compared))
        return gone

    def _describe(self, compared: Comparison, given: set[str], leftovers: set[str]) -> None:
        """Say which documents are new, changed and unchanged."""
        known: set[str] = set()
        changed: set[str] = set()
        read: set[str] = set()
        for each in compared.values():
            known |= {row.document or node_id for node_id, row in each.stored.items()}
            for node_id in (leftovers | each.lost) & each.stored.keys():
                changed.add(each.stored[node_id].document or node_id)
            same = each.unchanged | each.relabelled
            for row in each.rows:
                read.add(row.ref_doc_id or row.node_id)
                if row.node_id not in same:
                    changed.add(row.ref_doc_id or row.node_id)
        self.report.new = sorted(read - known)
        self.report.changed = sorted(changed & given & known)
        self.report.unchanged = len(read & known - changed)

    def _renamed(self, compared: Comparison) -> set[str]:
        """Say which new documents have just what a vanished one had.

        Returns:
            The ids of the stored nodes whose vectors new ones take.
        """
        new, origins = set(self.report.new), defaultdict[str, set[str | None]](set)
        taken: set[str] = set()
        for name, each in compared.items():
            there = self._writing.vectors_there(name, each)
            taken.update(there.values())
            for row in each.rows:
                key = row.ref_doc_id or row.node_id
                if key in new:
                    origin = there.get(row.node_id)
                    row_there = each.stored.get(origin) if origin else None
                    origins[key].add((row_there.document or origin) if row_there else None)
        for key, found in sorted(origins.items()):
            origin = next(iter(found))
            if len(found) == 1 and origin is not None and origin in self.report.vanished:
                self.report.renamed[key] = origin
        return taken

    def _take_over(self, compared: Comparison, given: set[str]) -> None:
        """Take what was written from the place that the corpus had before for this corpus."""
        if self._source is None:
            return
        taken: defaultdict[str, set[str]] = defaultdict(set)
        same: defaultdict[str, set[str]] = defaultdict(set)
        for each in compared.values():
            for row in each.rows:
                known = each.stored.get(row.node_id)
                source = known.labels.get(SOURCE_KEY) if known else None
                if source not in (None, self._source):
                    key = row.ref_doc_id or row.node_id
                    taken[str(source)].add(key)
                    if row.node_id in each.relabelled:
                        same[str(source)].add(key)
        for source in sorted(taken):
            rows = {name: self._stores[name].rows_from(source) for name in compared}
            documents = {
                row.document or node_id for each in rows.values() for node_id, row in each.items()
            }
            if 2 * len(same[source]) < len(documents) or not _was(source, self._corpus.path):
                self.report.notes.append(
                    f"{len(taken[source]):,} documents have ids of documents that were written "
                    f"from {source}; they replace those, and count as of {self._source} now"
                )
                continue
            self.report.notes.append(f"taken for the corpus that was at {source}")
            for name, there in rows.items():
                # Those that vanished come first: who is killed here must find the others where they
                # were, to see again that the corpus has moved.
                gone = [key for key, row in there.items() if (row.document or key) not in given]
                self._moved.append((name, gone))
                for key in gone:
                    labels = {**there[key].labels, SOURCE_KEY: self._source}
                    compared[name].stored[key] = replace(there[key], labels=labels)

    def _unreadable_images(self, compared: Comparison, leftovers: set[str]) -> set[str]:
        """Images that a document still shows, and that cannot be read at the moment."""
        skipped = defaultdict[str, dict[str, str]](dict)
        places = {place: key for key, place in self._corpus.places.items()}
        for skip in self._corpus.skipped:
            place, _, path = skip.source.partition(_IMAGE)
            if path and place in places and not (skip.on_purpose or skip.by_rule):
                skipped[places[place]][PurePosixPath(unquote(path)).name] = skip.reason
        found = set()
        images = compared["image"].stored
        for node_id in sorted(leftovers & images.keys()):
            document = images[node_id].document
            # As a reader names it: by the place of the file below the corpus' folder, or its root.
            name = re.sub(r"~\d+$", "", node_id.removeprefix(f"{document}#image-"))
            reason = skipped[document].get(PurePosixPath(name).name) if name != node_id else None
            if reason is not None and not _is_gone(name, self._corpus):
                found.add(node_id)
                self.report.kept.append(Skipped(f"{document}, image {name}", reason))
        return found

    def _check(self, compared: Comparison, gone: set[str]) -> None:
        """Refuse, or say in a plan, that most of a corpus would go."""
        report, images = self.report, compared["image"].stored
        vanished = set(report.vanished) - set(report.renamed.values())
        documents = len(report.vanished) + len(report.changed) + report.unchanged
        for count, of, what in (
            (len(vanished), documents, "documents"),
            (len(gone & images.keys()), len(images), "images"),
        ):
            if count < _MANY or 2 * count <= of or self._settings.delete_most:
                continue
            reason = (
                f"{count:,} of the {of:,} {what} that the index has from {self._source} are not "
                "there; is a folder not mounted, or another one meant? If they are to go, pass "
                "delete_most=True (--delete-most)"
            )
            if not self._settings.dry_run:
                raise InvalidValueError(f"{reason}. Nothing was written")
            self.report.notes.append(reason)


class SyncedIndex(LearningIndex, ABC):
    """The part of ``DualIndex`` that keeps in step with a corpus."""

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
        corpus: Corpus | Sequence[BaseNode],
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
        """Bring the index in step with a corpus: what is new or changed is embedded, the rest goes.

        What goes is what was written from the same corpus before and is no longer in it; documents
        of other corpora stay. All that is new is written before anything is deleted, and what was
        killed is completed by the same call. A document that only has another name keeps its
        vectors.

        Args:
            corpus: what ``read_corpus`` gives, or nodes or LlamaIndex documents: all there are.
            source: names the corpus; by default its path. Needed where no path was read.
            dry_run: write nothing, and say what would be done.
            whole_index: delete whatever else the index holds, too: it is to hold this corpus alone.
            delete_unreadable: delete, too, what may only be unreadable at the moment.
            delete_most: let more than half of the documents, or of the images, vanish where these
                are 10 or more.
            splitter: cuts the texts of LlamaIndex documents; into 512 tokens by default.
            show_progress: show progress bars.
            strict: raise at the first node that would be skipped.

        Returns:
            What is new, changed, vanished and kept.

        Raises:
            ValueError: the corpus holds no document, has no name, or most of it would vanish;
                nothing was written.
            EmbeddingError: a model fails; what was written stays, and another call goes on.
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
                "sync of nodes that were read from no path: pass source=, a name for the corpus, "
                "so that the index knows what it has of it"
            )
        if not corpus.nodes:
            raise InvalidValueError(
                "sync of a corpus that holds no document would empty the index; if that is meant, "
                "call clear(), or delete_ref_doc() for each document"
            )
        return self._bring_in(
            corpus,
            source=source,
            settings=settings,
            show_progress=show_progress,
            strict=strict,
        )

    async_sync = asynchronous(sync)


def _place(compared: Comparison, node_ids: set[str]) -> str:
    """The file that a document stood in, as its rows say; empty if they do not."""
    for each in compared.values():
        for node_id in sorted(node_ids & each.stored.keys()):
            if place := each.stored[node_id].labels.get(PLACE_KEY):
                return place
    return ""


class _Unread:
    """What of a corpus could not be read, by where it stands."""

    def __init__(self, corpus: Corpus) -> None:
        self._places = corpus.places
        self._of_read: dict[str, str] = {}  # about documents whose ids are known
        self._files: dict[str, str] = {}  # nobody knows of which documents
        read = set(corpus.places.values())
        for skip in corpus.skipped:
            if skip.on_purpose or skip.by_rule:
                continue
            reason = f"{skip.source}: {skip.reason}"
            place = skip.source.partition(_IMAGE)[0]
            if skip.source in read or place in read:
                self._of_read[skip.source if skip.source in read else place] = reason
            else:
                self._files[file_of(skip.source)] = reason

    def why(self, key: str, place: str) -> str:
        """Why a document may be there, and only not have been read; empty if it is not."""
        if key in self._places:
            return self._of_read.get(self._places[key], "")
        # An index that is older than the places of documents knows their ids only.
        for file in (place or key, *map(str, PurePosixPath(place).parents)):
            if file in self._files:
                return self._files[file]
        return ""


def _is_gone(name: str, corpus: Corpus) -> bool:
    """Whether an image's file was deleted: its folder is there, and it is not."""
    path = corpus.path
    beside = path.parent if path is not None and path.is_file() else path
    folders = [folder for folder in (beside, corpus.root) if folder is not None]
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    files = [folder / name for folder in folders]
    return any(file.parent.is_dir() for file in files) and not any(map(os.path.lexists, files))


def _was(source: str, path: Path | None) -> bool:
    """Whether a corpus may have been at this place, as an index says, before it was moved."""
    # A path that names a server is not looked at, whoever wrote it.
    if path is None or not Path(source).is_absolute() or source.startswith(("//", "\\\\")):
        return False
    try:
        return not Path(source).exists() or Path(source).samefile(path)
    except (OSError, ValueError):
        return False
