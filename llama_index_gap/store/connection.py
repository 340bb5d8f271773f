"""Connections to a Milvus server or a Milvus Lite file, and their errors."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from pymilvus import MilvusClient, MilvusException

from llama_index_gap.errors import GapError
from llama_index_gap.store.addresses import TIMEOUT_SECONDS, is_server, lite_path
from llama_index_gap.store.fair_lock import FairLock
from llama_index_gap.store.patience import patience

_CONNECT_SECONDS = 10.0
# Milvus Lite runs in this process: it may be slow, but it always answers.
_LITE_SECONDS = 900.0
_CONNECT_FAILED = 2
_LOST = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED),
    _CONNECT_FAILED,
)
# Without its own pool, gRPC would apply an earlier connection's waiting time before it tries an
# address again.
_OWN_POOL = {"grpc.use_local_subchannel_pool": 1}
# pymilvus pings every 10 s. Milvus Lite's server takes this for abuse, and gRPC then prints errors.
# A server in this process needs no pings; the largest time turns them off.
_NO_PINGS = {"grpc.keepalive_time_ms": 2**31 - 1, "grpc.keepalive_permit_without_calls": 0}
# Methods that may safely run twice: a server's upsert replaces a row by its id.
_REPEATABLE = frozenset(
    {
        *("search", "query", "has_collection", "describe_collection", "describe_index"),
        *("upsert", "delete", "flush", "load_collection", "alter_collection_properties"),
    }
)


FAILURES = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, OSError)
"""The errors that pymilvus raises if a database fails or refuses a request."""


class StoreError(GapError, RuntimeError):
    """A database cannot be opened, does not answer, or refuses a request."""


@dataclass
class _LiteFile:
    """A Milvus Lite file that this process holds open.

    Lite has one writer and is pure Python: a lock around each call costs nothing and makes it
    thread-safe. The lock is fair, so that searches take turns with a long insert.

    Attributes:
        lock: held during each call.
        users: how many connections there are.
        written: number of rows written to each collection since its last flush.
    """

    lock: FairLock = field(default_factory=FairLock)
    users: int = 0
    written: Counter[str] = field(default_factory=Counter)


_lite_files: dict[str, _LiteFile] = {}
_opening = threading.Lock()
# Servers that did not answer the last call of this process.
_silent: set[str] = set()
# How often this process has written to each collection of each database.
_writes: Counter[tuple[str, str]] = Counter()


class Connection:
    """A separate client for one database: closing it does not affect other connections.

    Args:
        uri: a Milvus Lite file, or the address of a server.
        token: for a server.
        timeout: seconds that a server may take to answer a call.

    Attributes:
        uri: as given.
        client: pymilvus' client.
        lite: whether the database is Milvus Lite; ``milvus-lite server`` has an http address.
        closed: whether ``close`` was called.
        lost: whether the last call did not reach the server; the next call then reconnects first.

    Raises:
        StoreError: another process has the file open, or the server does not answer.
    """

    def __init__(self, uri: str, token: str, timeout: float = TIMEOUT_SECONDS) -> None:
        self.uri, self._token, self._timeout = uri, token, timeout
        self.path = path = lite_path(uri)
        self._file: _LiteFile | None = None
        self.lost = False
        self._generation, self._reconnecting = 0, threading.Lock()
        seconds = _CONNECT_SECONDS if path else min(timeout, _CONNECT_SECONDS)
        client: MilvusClient | None = None
        with _opening if path else nullcontext(), caught_logs() as records:
            try:
                client = self._connect(seconds)
                version = str(client.get_server_version(timeout=seconds))
            except BaseException as error:
                if client is not None:
                    client.close()
                if path and path not in _lite_files:
                    _free_lite_file(path)
                if not isinstance(error, FAILURES):
                    raise
                raise StoreError(_why_not_open(uri, error, records, seconds)) from error
            if path:
                self._file = _lite_files.setdefault(path, _LiteFile())
                self._file.users += 1
        self.client = client
        self.closed = False
        self.lite = version.startswith("milvus_lite")

    def _connect(self, seconds: float) -> MilvusClient:
        options = _OWN_POOL | _NO_PINGS if self.path else _OWN_POOL
        return MilvusClient(
            self.uri, token=self._token, timeout=seconds, dedicated=True, grpc_options=options
        )

    def close(self) -> None:
        """Close it; closing the last connection to a Lite file frees it for other processes."""
        with _opening if self.path else nullcontext():
            if self.closed:
                return
            self.closed = True
            try:
                self.client.close()
            finally:
                if self.path and self._file is not None:
                    self._file.users -= 1
                    if self._file.users == 0:
                        del _lite_files[self.path]
                        _free_lite_file(self.path)

    def call(self, method: str, name: str, timeout: float | None, **arguments: Any) -> Any:
        """Call the client; if the server is lost, call again over a new connection.

        The call is repeated only if it may safely run twice, and only within the remaining time.
        The first call after a failure reconnects first.

        Args:
            method: of pymilvus' client.
            name: of the collection.
            timeout: seconds to wait; by default the connection's timeout. All calls of a search
                together take no longer than that, see ``one_search``.
            **arguments: of the method.
        """
        if timeout is None:
            timeout = _LITE_SECONDS if self.path else self._timeout
        if self.path:
            return getattr(self.client, method)(name, timeout=timeout, **arguments)
        asking = patience()
        if asking is None:
            return self._call_server(method, name, timeout, **arguments)
        lost = self.uri in _silent
        left = asking.left(self._timeout, lost=lost)
        if left <= 0:
            self.lost = self.lost or lost
            raise TimeoutError(
                f"no answer within {self._timeout:g} s"
                if lost
                else f"the whole search has waited {self._timeout:g} s for the server, "
                f"its timeout={self._timeout:g}"
            )
        with asking.waiting():
            return self._call_server(method, name, min(timeout, left), **arguments)

    def _call_server(self, method: str, name: str, timeout: float, **arguments: Any) -> Any:
        started = time.monotonic()
        deadline, generation = started + timeout, self._generation
        if self.lost:
            self._reconnect(generation, deadline)
            timeout = max(deadline - time.monotonic(), 0.001)
        try:
            answer = getattr(self.client, method)(name, timeout=timeout, **arguments)
        except FAILURES as error:
            if not _is_lost(error):
                raise
            self.lost = self.lost or self._generation == generation
            # A slow server that misses only the rest of a search's time does not count as silent.
            if not _is_late(error) or time.monotonic() - started >= self._timeout / 2:
                _silent.add(self.uri)
            repeatable = method in _REPEATABLE or (self.lite and method == "insert")
            if deadline <= time.monotonic() or not repeatable:
                raise
            self._reconnect(generation, deadline)
            left = max(deadline - time.monotonic(), 0.001)
            answer = getattr(self.client, method)(name, timeout=left, **arguments)
        _silent.discard(self.uri)
        return answer

    def _reconnect(self, generation: int, deadline: float) -> None:
        """Replace the client, unless another thread has done so since this generation."""
        if not self._reconnecting.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise TimeoutError("another thread did not reconnect in time")
        try:
            if self._generation != generation or self.closed:
                return
            seconds = max(deadline - time.monotonic(), 0.001)
            client = self._connect(min(seconds, _CONNECT_SECONDS))
            before, self.client = self.client, client
            self._generation, self.lost = generation + 1, False
            with suppress(*FAILURES):
                before.close()
        finally:
            self._reconnecting.release()

    @property
    def one_at_a_time(self) -> bool:
        """Whether calls wait for each other, so that threads gain nothing."""
        return self._file is not None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock a Lite file against the other threads of this process; a server needs no lock."""
        if self._file is None:
            yield
        else:
            with self._file.lock:
                yield

    def note_written(self, collection: str, rows: int = 0) -> None:
        """Record a write to a collection; called before the write, and again after it."""
        _writes[self.path or self.uri, collection] += 1
        if self._file is not None:
            self._file.written[collection] += rows

    def unflushed_rows(self, collection: str) -> int:
        """How many rows this process has written to a Lite file and not yet flushed."""
        return 0 if self._file is None else self._file.written[collection]

    def written(self, collection: str) -> int:
        """A number that changes whenever this process writes to a collection."""
        return _writes[self.path or self.uri, collection]

    def note_flushed(self, collection: str) -> None:
        """Record that all rows of a collection are flushed."""
        if self._file is not None:
            self._file.written.pop(collection, None)

    def may_be_unflushed(self, collection: str) -> bool:
        """Whether a collection may have rows that are only in Milvus Lite's log.

        Lite creates a log with the first row and deletes it with the flush. It flushes when it is
        closed. The log of a killed process stays, and Lite reads it when it opens the file again.
        """
        if self._file is None or self.path is None or collection in self._file.written:
            return True
        logs = list(Path(self.path).glob(f"**/{collection}/wal"))
        return not logs or any(any(folder.iterdir()) for folder in logs)

    def was_left_unflushed(self, collection: str) -> bool:
        """Whether a killed process left a log; Milvus Lite may then have its rows twice."""
        if self._file is None or self.path is None or collection in self._file.written:
            return False
        return any(Path(self.path).glob(f"**/{collection}/wal/*"))


def _free_lite_file(path: str) -> None:
    """Stop the engine that pymilvus started for a file; pymilvus never stops it."""
    if importlib.util.find_spec("milvus_lite") is not None:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(path)


# --- errors and their log records ----------------------------------------------------------------


class _LogCatcher(logging.Filter):
    """Catches the log records of a call, in the thread that makes the call."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        caught: list[logging.LogRecord] | None = getattr(self._local, "records", None)
        if caught is None:
            return True
        caught.append(record)
        return False

    @contextmanager
    def catching(self) -> Iterator[list[logging.LogRecord]]:
        outer = getattr(self._local, "records", None)
        records: list[logging.LogRecord] = []
        self._local.records = records
        try:
            yield records
        finally:
            self._local.records = outer


# pymilvus and Milvus Lite log a traceback for each failed request before they raise. This is only
# noise if we raise our own error or recover from the failure.
_log_catcher = _LogCatcher()
caught_logs = _log_catcher.catching
for _logger_name in (
    "milvus_lite.server_manager",
    "pymilvus.client.connection_manager",
    "pymilvus.client.grpc_handler",
    "pymilvus.decorators",
):
    logging.getLogger(_logger_name).addFilter(_log_catcher)


class _FailureCounter(logging.Filter):
    """Counts the failures in Milvus Lite's own threads, which only log them."""

    number = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.number += record.exc_info is not None
        return True


_failures = _FailureCounter()
logging.getLogger("milvus_lite.engine.collection").addFilter(_failures)


def background_failures() -> int:
    """How often Milvus Lite has failed to index flushed rows in this process."""
    return _failures.number


def one_line(error: BaseException | None) -> str:
    """The first line of an error's message."""
    message: object = error
    if isinstance(error, MilvusException):
        message = error.message
    elif isinstance(error, grpc.Call):
        message = f"{error.code().name}: {error.details()}"
    lines = str(message).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


def _code(error: Exception) -> Any:
    return error.code() if isinstance(error, grpc.Call) else getattr(error, "code", None)


def _is_lost(error: Exception) -> bool:
    """Whether a failure is due to the connection, not to the request."""
    if isinstance(error, grpc.FutureTimeoutError):
        return True
    # Another thread may have replaced the client.
    return _code(error) in _LOST or "closed channel" in str(error)


def _is_late(error: Exception) -> bool:
    """Whether a failure means only that no answer came in time."""
    return _code(error) is grpc.StatusCode.DEADLINE_EXCEEDED


def _why_not_open(
    uri: str, error: Exception, records: Iterable[logging.LogRecord], seconds: float
) -> str:
    if is_server(uri):
        return (
            f"{uri}: does not answer within {seconds:g} s ({one_line(error)}); "
            "is the server running, and is the token right?"
        )
    path = Path(uri)
    if not path.parent.is_dir():
        return f"{uri}: there is no folder {path.parent}; create it first"
    if importlib.util.find_spec("milvus_lite") is None:
        return f"{uri}: Milvus Lite is not installed; run: pip install milvus-lite"
    if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return (
            f"{uri}: this Milvus Lite is too old: it has neither properties nor HNSW; run: "
            "pip install 'milvus-lite>=3.2'"
        )
    causes = [record.exc_info[1] for record in records if record.exc_info]
    if any(type(cause).__name__ == "DataDirLockedError" for cause in causes):
        return (
            f"{uri}: is open in another process, and Milvus Lite allows one; close it there, or "
            f"share it: milvus-lite server --data-dir {uri} --host 127.0.0.1 --port 19530"
        )
    return f"{uri}: cannot be opened ({one_line(causes[-1] if causes else error)})"
