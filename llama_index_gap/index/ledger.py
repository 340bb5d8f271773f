"""Facts about nodes that a call no longer holds in memory, in a temporary file."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any, get_args

from llama_index.core.schema import BaseNode, TextNode

from llama_index_gap.index.windows import WINDOW
from llama_index_gap.modality import CollectionName
from llama_index_gap.pickling import why_not_sent_whole
from llama_index_gap.store.collection import IDS_PER_MESSAGE, batches
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.store.rows import CONTENT_KEY, LABEL_KEYS, PLACE_KEY, SOURCE_KEY, StoredRow
from llama_index_gap.text import as_bytes
from llama_index_gap.threads import stop_if_given_up

# "key" is the key of a node's document: "document", or the node's own id if that is empty.
# "stale" rows were written after they were read. "asked" holds the ids of the current query. In
# "known", 1 is Is.GIVEN, 2 is Is.READ, and so on.
_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16000;
CREATE TABLE asked (id BLOB);
CREATE TABLE given (id BLOB PRIMARY KEY, again INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE documents (key BLOB PRIMARY KEY, place BLOB, known INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE stored (
    part TEXT, id BLOB, key BLOB, document BLOB, fingerprint TEXT, source BLOB, place BLOB,
    content TEXT, stale INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (part, id)
) WITHOUT ROWID;
CREATE INDEX stored_by_key ON stored (key);
CREATE INDEX stored_by_content ON stored (part, content) WHERE content IS NOT NULL;
CREATE TABLE written (part TEXT, id BLOB, key BLOB, content TEXT, PRIMARY KEY (part, id))
    WITHOUT ROWID;
CREATE TABLE taken (source BLOB, key BLOB, same INTEGER, PRIMARY KEY (source, key)) WITHOUT ROWID;
CREATE TABLE waiting (number INTEGER PRIMARY KEY, nodes BLOB);
CREATE VIEW missing AS SELECT * FROM stored AS s
    WHERE NOT EXISTS (SELECT 1 FROM documents AS d WHERE d.key = s.key AND d.known & 1);
CREATE VIEW vanished AS SELECT * FROM missing AS s
    WHERE NOT EXISTS (SELECT 1 FROM given AS g WHERE g.id = s.id);
CREATE VIEW leftovers AS SELECT * FROM stored AS s
    WHERE EXISTS (SELECT 1 FROM documents AS d WHERE d.key = s.document AND d.known & 4)
    AND NOT EXISTS (SELECT 1 FROM given AS g WHERE g.id = s.id);
CREATE VIEW compared AS SELECT key, known & 1 AS given, known & 2 AS read, known & 8 AS changed,
    EXISTS (SELECT 1 FROM stored AS s WHERE s.key = d.key) AS was FROM documents AS d;
CREATE VIEW staying AS SELECT * FROM stored AS s WHERE NOT stale AND content IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM written AS w WHERE w.part = s.part AND w.id = s.id);
"""


class Is(IntFlag):
    """Facts about a document."""

    GIVEN = 1
    """Some of its nodes were given."""
    READ = 2
    """At least one of them became a row."""
    WHOLE = 4
    """A row names it as its source document, so all its nodes are given."""
    CHANGED = 8
    """Some of its rows are written again or deleted."""


@dataclass
class Ledger:
    """Ids and digests of given and stored nodes, in a file that is deleted with the ledger.

    Attributes:
        complete: the collections whose stored rows are all known.
    """

    complete: set[CollectionName] = field(default_factory=set)

    def __post_init__(self) -> None:
        # "" is a temporary database: SQLite spills what outgrows its cache into a file that is
        # already deleted. The call may run in another thread than the one that waits for it.
        self._db = sqlite3.connect("", check_same_thread=False)
        self._db.executescript(_TABLES)
        self._again = False
        self._places: list[tuple[bytes, bytes]] = []
        self._waiting: list[BaseNode] = []
        self._kept: list[list[BaseNode]] = []

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def ask(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The result of an SQL query, with bytes decoded to texts.

        Args:
            sql: the query.
            values: the parameters; all texts but ``part`` must be passed as bytes.
        """
        self._note_places()
        return [tuple(map(_text, row)) for row in self._db.execute(sql, values)]

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """As ``ask``, row by row; the tables must not change meanwhile.

        Args:
            sql: the query.
            values: the parameters.
        """
        self._note_places()
        with closing(self._db.cursor()) as rows:
            for row in rows.execute(sql, values):
                yield tuple(map(_text, row))

    def many(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement that changes the tables, once for each set of values.

        Args:
            sql: the statement.
            values: the sets of parameters.
        """
        self._db.executemany(sql, values)

    # --- what is given ---------------------------------------------------------------------------

    def give(self, ids: Iterable[str]) -> set[str]:
        """Note ids of nodes, and return those that were given before.

        Args:
            ids: distinct ids.
        """
        self._ask_about(ids)
        again = {each for (each,) in self.ask("SELECT id FROM given WHERE id IN asked")}
        self._db.execute("INSERT OR IGNORE INTO given (id) SELECT id FROM asked")
        if again:
            self._again = True
            self._ask_about(again)
            self._db.execute("UPDATE given SET again = 1 WHERE id IN asked")
        return again

    def given_any(self) -> bool:
        """Whether any node was given."""
        return bool(self.ask("SELECT 1 FROM documents WHERE known & 1 LIMIT 1"))

    def given_among(self, ids: Iterable[str]) -> set[str]:
        """The ids among these that were given."""
        self._ask_about(ids)
        return {each for (each,) in self.ask("SELECT id FROM given WHERE id IN asked")}

    def given_again(self, ids: Iterable[str]) -> set[str]:
        """The ids among these that were given more than once, in different windows."""
        if not self._again:
            return set()
        self._ask_about(ids)
        return {each for (each,) in self.ask("SELECT id FROM given WHERE again AND id IN asked")}

    def place(self, key: str, place: str) -> None:
        """Note the place of a document.

        Args:
            key: the key of the document.
            place: the file of the corpus that contains it.
        """
        self._places.append((as_bytes(key), as_bytes(place)))

    def places(self, keys: Iterable[str]) -> dict[str, str]:
        """The places of documents, if noted.

        Args:
            keys: the keys of the documents.
        """
        self._ask_about(keys)
        return dict(
            self.ask("SELECT key, place FROM documents WHERE place NOTNULL AND key IN asked")
        )

    def note_documents(self, documents: Mapping[str, Is]) -> None:
        """Add facts about documents to those already known.

        Args:
            documents: the facts, by key.
        """
        self._note_places()
        self.many(
            "INSERT INTO documents (key, known) VALUES (?, ?)"
            " ON CONFLICT (key) DO UPDATE SET known = known | excluded.known",
            ((as_bytes(key), int(known)) for key, known in documents.items()),
        )

    def _note_places(self) -> None:
        noted, self._places = self._places, []
        self.many(
            "INSERT INTO documents (key, place, known) VALUES (?, ?, 0)"
            " ON CONFLICT (key) DO UPDATE SET place = coalesce(place, excluded.place)",
            noted,
        )

    # --- what is stored --------------------------------------------------------------------------

    def load(
        self,
        part: CollectionName,
        store: MilvusStore,
        source: str | None,
        *,
        but: Callable[[str], bool] | None = None,
    ) -> None:
        """Note the stored rows of a corpus.

        Args:
            part: the collection.
            store: the store of the collection.
            source: the name of the corpus; None for all stored rows.
            but: whether to leave out a document; by default none is left out.
        """
        for page in store.pages_from(source):
            stop_if_given_up()
            rows = page
            if but is not None:
                rows = {key: row for key, row in page.items() if not but(row.document or key)}
            self._note_stored(part, rows)

    def count(self, part: CollectionName) -> int:
        """The number of stored rows that are known."""
        ((known,),) = self.ask("SELECT count(*) FROM stored WHERE part = ?", [part])
        return int(known)

    def stored(
        self,
        part: CollectionName,
        store: MilvusStore,
        ids: Iterable[str],
        images: Mapping[str, str],
        documents: Sequence[str] = (),
        *,
        keep: bool,
    ) -> dict[str, StoredRow]:
        """The stored rows of nodes, by id; those not yet known are read from the store.

        Args:
            part: the collection.
            store: the store of the collection.
            ids: ids of the nodes.
            images: digests of images by id, as ``MilvusStore.stored_rows`` takes them.
            documents: documents whose other nodes are noted too.
            keep: whether to note what was read.
        """
        wanted = dict.fromkeys(ids)
        found: dict[str, StoredRow] = {}
        stale: set[str] = set()
        if keep:
            self._ask_about(wanted)
            for row in self.ask(
                "SELECT stale, id, document, fingerprint, source, place, content FROM stored"
                " WHERE part = ? AND id IN asked",
                [part],
            ):
                if row[0]:
                    stale.add(row[1])
                else:
                    found[row[1]] = _stored_row(row[2:])
        fresh = stale | self.given_again(wanted)
        if part in self.complete:
            asked = store.stored_rows(sorted(fresh), images=images) if fresh else {}
        else:
            unknown = sorted(fresh | wanted.keys() - found.keys())
            asked = store.stored_rows(unknown, images=images) if unknown else {}
            others: set[str] = set()
            for some_documents in batches(documents, IDS_PER_MESSAGE, len):
                others |= set(store.ids_of_documents(some_documents)) - found.keys() - asked.keys()
            if keep:
                self._note_stored(part, {k: v for k, v in asked.items() if k not in fresh})
                self._note_stored(part, store.stored_rows(sorted(others)) if others else {})
        return found | asked

    def _note_stored(self, part: CollectionName, rows: Mapping[str, StoredRow]) -> None:
        self.many(
            "INSERT OR IGNORE INTO stored (part, id, key, document, fingerprint, source, place,"
            " content) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    part,
                    as_bytes(node_id),
                    as_bytes(row.document or node_id),
                    as_bytes(row.document),
                    row.fingerprint,
                    *(_bytes_or_none(row.labels.get(key)) for key in (SOURCE_KEY, PLACE_KEY)),
                    row.labels.get(CONTENT_KEY),
                )
                for node_id, row in rows.items()
            ),
        )

    def of_contents(self, part: CollectionName, contents: Iterable[str]) -> dict[str, str]:
        """For each content, a node whose stored vector was made from it, and stays.

        Args:
            part: the collection.
            contents: digests of contents, as rows store them.
        """
        sql = "SELECT content, id FROM staying WHERE part = ? AND content = ?"
        each = (self.ask(f"{sql} LIMIT 1", [part, content]) for content in contents)
        return {content: node_id for found in each for content, node_id in found}

    def note_written(
        self, part: CollectionName, rows: Iterable[TextNode], contents: Mapping[str, str]
    ) -> None:
        """Note new and changed rows.

        Args:
            part: the collection.
            rows: rows that are or will be written.
            contents: digests of the contents that their vectors are made from, by node id.
        """
        self.many(
            "INSERT OR REPLACE INTO written (part, id, key, content) VALUES (?, ?, ?, ?)",
            (
                (
                    part,
                    as_bytes(row.node_id),
                    as_bytes(row.ref_doc_id or row.node_id),
                    contents.get(row.node_id) or None,
                )
                for row in rows
            ),
        )

    def note_stale(self, part: CollectionName, ids: Iterable[str]) -> None:
        """Note that what is known of stored rows is out of date.

        Args:
            part: the collection.
            ids: ids of the rows.
        """
        self.many(
            "UPDATE stored SET stale = 1 WHERE part = ? AND id = ?",
            ((part, as_bytes(each)) for each in ids),
        )

    def there(self, part: CollectionName, ids: Iterable[str]) -> set[str]:
        """The ids among these that have a stored row.

        Args:
            part: the collection.
            ids: ids of nodes.
        """
        self._ask_about(ids)
        rows = self.ask("SELECT id FROM stored WHERE part = ? AND id IN asked", [part])
        return {node_id for (node_id,) in rows}

    def note_taken(self, taken: Iterable[tuple[str, str, bool]]) -> None:
        """Note documents with rows that were written from another corpus before.

        Args:
            taken: the name of that corpus, the key of the document, and whether one of its rows is
                unchanged.
        """
        self.many(
            "INSERT INTO taken (source, key, same) VALUES (?, ?, ?)"
            " ON CONFLICT (source, key) DO UPDATE SET same = same | excluded.same",
            ((as_bytes(source), as_bytes(key), int(same)) for source, key, same in taken),
        )

    def keys_of(self, ids: Iterable[str]) -> set[str]:
        """The keys of the documents that stored nodes belong to.

        Args:
            ids: ids of the nodes.
        """
        self._ask_about(ids)
        sql = "SELECT key FROM stored WHERE part = ? AND id IN asked"
        return {key for part in get_args(CollectionName) for (key,) in self.ask(sql, [part])}

    def documents_of(self, part: CollectionName, ids: Iterable[str]) -> dict[str, str]:
        """The source document of each stored node, by node id; empty if it has none.

        Args:
            part: the collection.
            ids: ids of the nodes.
        """
        self._ask_about(ids)
        sql = "SELECT id, document FROM stored WHERE part = ? AND id IN asked"
        return dict(self.ask(sql, [part]))

    # --- what waits ------------------------------------------------------------------------------

    def wait(self, nodes: Iterable[BaseNode]) -> None:
        """Put nodes aside until they are written.

        Args:
            nodes: the nodes, kept in order; those that cannot be pickled stay in memory.
        """
        for node in nodes:
            self._waiting.append(node)
            if len(self._waiting) == WINDOW:
                self._put_aside()

    def _put_aside(self) -> None:
        waiting, self._waiting = self._waiting, []
        pickled = None
        if why_not_sent_whole(waiting) is None:
            pickled = pickle.dumps(waiting, pickle.HIGHEST_PROTOCOL)
        else:
            self._kept.append(waiting)
        self._db.execute("INSERT INTO waiting (nodes) VALUES (?)", [pickled])

    def how_many_wait(self) -> int:
        """The number of nodes that were put aside."""
        ((lists,),) = self.ask("SELECT count(*) FROM waiting")
        return int(lists) * WINDOW + len(self._waiting)

    def waiting(self) -> Iterator[list[BaseNode]]:
        """The nodes that were put aside, in lists of bounded length."""
        kept = iter(self._kept)
        with closing(self._db.cursor()) as rows:
            rows.execute("SELECT nodes FROM waiting ORDER BY number")
            for (pickled,) in rows:
                # Safe: this process wrote it, into a file that nobody else can open.
                yield pickle.loads(pickled) if pickled is not None else next(kept)  # noqa: S301
        if self._waiting:
            yield self._waiting

    def _ask_about(self, ids: Iterable[str]) -> None:
        """Make these the ids of the next query."""
        self._db.execute("DELETE FROM asked")
        self.many("INSERT INTO asked VALUES (?)", ([as_bytes(each)] for each in ids))


def _bytes_or_none(text: str | None) -> bytes | None:
    return None if text is None else as_bytes(text)


def _text(value: Any) -> Any:
    return value.decode(errors="surrogatepass") if isinstance(value, bytes) else value


def _stored_row(row: Sequence[Any]) -> StoredRow:
    document, known, *labels = row
    named = zip(LABEL_KEYS, labels, strict=True)
    return StoredRow(document, known, {key: value for key, value in named if value is not None})
