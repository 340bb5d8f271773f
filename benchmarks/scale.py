"""Measures an index from ten thousand rows to a million, on Milvus 2.3.5 and on Milvus Lite.

    python benchmarks/scale.py --data FOLDER [--again] [--write-docs]

FOLDER keeps the databases (some 15 GB for a million rows). Its ``record.json`` holds all steps and
measurements, so that a killed run continues where it ended. ``--again`` measures existing indexes
again and inserts nothing. ``--write-docs`` puts the tables and the plot into docs/scaling.md.

An index of n rows has n/2 documents, each with a text node of some 400 characters and an image
node. The vectors of nodes and queries are simulated (``simulated.py``), so that no figure contains
a model's time. The index has learnt from 300 queries, and its retriever is the default one: 16 + 16
nodes, with both corrections. Client and server share the machine.

1. Inserts through ``DualIndex.insert_nodes``, 10,000 nodes at a time, compared with raw pymilvus
   inserts; processor time of client and server together; time until the index is finished after the
   last insert. ``--again`` repeats only the comparison.
2. Memory of the server with only the index loaded, and of a client after its searches.
3. The whole retriever with 1, 8 and 32 threads; Milvus Lite with 1. No query comes twice.
4. Other operations that may depend on the number of rows: opening, counting, the first search
   (which draws the background), filters, ``complete=True``, inserting unchanged nodes.
5. Recall@16 of raw searches at several values of ``ef``, against an exact search.
6. Kinds of index: only the texts' vectors, in a collection with one more column, loaded alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pymilvus import MilvusClient, MilvusException

from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
import scale_measures as measures  # noqa: E402
from milvus_server import milvus_process  # noqa: E402
from scale_measures import LEARNT, Place  # noqa: E402
from scale_tables import PAGE, print_tables, write_docs  # noqa: E402
from simulated import BLOCK, make_nodes, simulation  # noqa: E402

LOOKS, PAUSE = 120.0, 5.0  # seconds of one wait for an index, and between two waits
QUERIES, OF_RECALL = 4_000, 300
INSERTED = 5_000  # documents for the comparison with raw inserts
PROBES = tuple({"nprobe": number} for number in (8, 32, 128))
# Kind of index, its settings, and the settings of its searches.
TYPES: dict[str, tuple[dict[str, Any], tuple[dict[str, int], ...]]] = {
    "FLAT": ({"index_type": "FLAT"}, ({},)),
    "HNSW": (
        {"index_type": "HNSW", "M": 16, "efConstruction": 200},
        tuple({"ef": ef} for ef in measures.EFS),
    ),
    "IVF_FLAT": ({"index_type": "IVF_FLAT", "nlist": 1024}, PROBES),
    "IVF_SQ8": ({"index_type": "IVF_SQ8", "nlist": 1024}, PROBES),
    "IVF_PQ": ({"index_type": "IVF_PQ", "nlist": 1024, "m": 64, "nbits": 8}, PROBES),
    # with_raw_data is true by default; if it is given, 2.3.5 builds the index again and again.
    "SCANN": (
        {"index_type": "SCANN", "nlist": 1024},
        tuple({**each, "reorder_k": 128} for each in PROBES),
    ),
}
LARGE_TYPES = ("IVF_SQ8",)  # also measured with as many vectors as the largest index has texts
KEYED = "HNSW, groups are partitions"
MEASURED = ("inserts", "search", "recall", "memory", "type", "groups", "replicas")


class Record:
    """Steps and measurements so far, in a file, so that a later run continues from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def put(self, key: str, value: Any) -> None:
        """Save a value at once.

        Args:
            key: the measurement, the place and the number of rows, separated by slashes.
            value: any JSON value.
        """
        self.values[key] = value
        self._write()

    def forget_measures(self) -> None:
        """Forget the values that ``--again`` measures again."""
        self.values = {
            key: value
            for key, value in self.values.items()
            if key.split("/", maxsplit=1)[0] not in MEASURED
        }
        self._write()

    def lacks(self, key: str) -> bool:
        """Whether a step is missing; if so, report that it begins."""
        if key not in self.values:
            say(key)
        return key not in self.values

    def _write(self) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(self.values, indent=1, ensure_ascii=False) + "\n")
        beside.replace(self._path)


def say(text: str) -> None:
    """Show progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a separate process, with separate memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def fill(
    place: Place, record: Record, key: str, *, patience: float, server: int | None = None
) -> None:
    """Insert the missing documents, wait for the index, and learn from queries."""
    done = record.values.get(key, {"documents": 0, "seconds": 0.0, "processor": 0.0})
    if "learnt" in done:
        return
    processes = [psutil.Process(), *([psutil.Process(server)] if server else [])]
    with place.open() as index:
        while done["documents"] < place.documents:
            start = done["documents"]
            stop = min(place.documents, start + BLOCK - start % BLOCK)
            simulation().block(start // BLOCK)  # make it before the clock starts
            nodes = make_nodes(start, stop)
            before = processor_of(processes)
            taken = measures.seconds_of(partial(index.insert_nodes, nodes))
            done = {
                "documents": stop,
                "seconds": done["seconds"] + taken,
                "processor": done["processor"] + processor_of(processes) - before,
            }
            record.put(key, done)
            left = done["seconds"] / stop * (place.documents - stop) / 60
            say(
                f"{key}: {2 * stop:,} of {2 * place.documents:,} rows, "
                f"{len(nodes) / taken:,.0f}/s, {left:.0f} minutes left"
            )
        if "indexed_in" not in done:
            taken = sum(
                measures.seconds_of(partial(finish, store, patience))
                for store in index._stores.values()
            )
            done = {**done, "indexed_in": taken}
            record.put(key, done)
            say(f"{key}: indexed in {taken:.0f} s")
        report = index.learn_queries(f"query {number}" for number in range(LEARNT))
        record.put(key, {**done, "learnt": report.texts})


def finish(store: MilvusStore, patience: float) -> None:
    """Wait for an index; continue after ``patience`` seconds, and report that."""
    flush = True if "://" in store.uri else None
    started = time.monotonic()
    while time.monotonic() < started + patience:
        try:
            return store.finish(flush=flush, timeout=LOOKS)
        except StoreError as error:  # a killed server first waits for its old session
            say(str(error).splitlines()[0][:200])
            time.sleep(PAUSE)
    say(f"{store.collection}: continuing before its index is finished")
    return None


def processor_of(processes: Sequence[psutil.Process]) -> float:
    """Processor seconds of some processes."""
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def queries_of(folder: Path) -> np.ndarray:
    """Queries about documents that the learnt queries are not about; made once."""
    path = folder / "queries.npy"
    if not path.exists():
        rows = [simulation().query(LEARNT + number) for number in range(QUERIES)]
        np.save(path, np.array(rows))
    return np.load(path)


def exact_of(folder: Path, queries: np.ndarray, sizes: list[int]) -> dict[int, dict[str, Any]]:
    """The nearest documents of the first queries, for each size of index; computed once."""
    paths = {size: folder / f"exact_{size}.npz" for size in sizes}
    if not all(path.exists() for path in paths.values()):
        say(f"comparing {len(queries)} queries with up to {max(sizes):,} texts and images")
        for size, found in measures.exact_hits(queries, sizes):
            np.savez(paths[size], **found)
    return {size: dict(np.load(path)) for size, path in paths.items()}


def measure_index(
    place: Place,
    options: argparse.Namespace,
    record: Record,
    *,
    exact: Mapping[str, Any],
    server: int | None = None,
) -> None:
    """Measure searches, memory and recall of one index."""
    name = f"{'lite' if server is None else 'server'}/{2 * place.documents}"
    queries = queries_of(options.data)
    if record.lacks(f"search/{name}"):
        before = None
        if server is not None:
            measures.release_all(client := MilvusClient(place.uri, timeout=measures.TIMEOUT))
            client.close()
            before = measures.settled(server)
        threads = options.threads if server is not None else [1]
        found = apart(measures.measure_searches, place, queries, threads, options.seconds)
        if server is not None:
            record.put(f"memory/{name}", {"before": before, "with": measures.settled(server)})
        record.put(f"search/{name}", found)
    if record.lacks(f"recall/{name}"):
        few = queries[: options.queries]
        record.put(f"recall/{name}", measures.measure_recall(place, few, exact))


def measure_types(uri: str, options: argparse.Namespace, record: Record) -> None:
    """Measure kinds of index, and groups of rows with and without partitions."""
    usual, largest = options.type_documents, max(options.rows) // 2
    sizes = {kind: [usual, largest] if kind in LARGE_TYPES else [usual] for kind in TYPES}
    queries = queries_of(options.data)[: options.queries]
    exact = exact_of(options.data, queries, [each for sized in sizes.values() for each in sized])
    made = {**TYPES, KEYED: (TYPES["HNSW"][0], ())}
    for kind, (index, searches) in made.items():
        for documents in sizes.get(kind, [usual]):
            key = f"{kind}/{documents}"
            collection = f"type_{''.join(filter(str.isalnum, key))}"
            if record.lacks(f"built/{key}"):
                built = (uri, collection, documents, index, kind == KEYED)
                record.put(f"built/{key}", measures.build_type(*built))
            if searches and record.lacks(f"type/{key}"):
                right = exact[documents]["text"]
                found = measures.measure_type(*(uri, collection, queries, right), settings=searches)
                record.put(f"type/{key}", found)
            if kind in ("HNSW", KEYED) and record.lacks(f"groups/{key}"):
                record.put(f"groups/{key}", measures.measure_groups(uri, collection, queries))
            if kind == "HNSW" and record.lacks("replicas"):
                record.put("replicas", measures.why_no_replicas(uri, collection))


def on_server(options: argparse.Namespace, record: Record) -> None:
    """Start a server, and measure on it."""
    with server_in(options.data / "server") as (uri, server):
        places = {rows: Place(uri, f"scale_{rows}", rows // 2) for rows in options.rows}
        for rows, place in places.items():
            fill(place, record, f"server/{rows}/insert", patience=options.patience, server=server)
        if record.lacks("inserts"):
            record.put("inserts", measures.measure_inserts(uri, INSERTED))
        few = queries_of(options.data)[: options.queries]
        exact = exact_of(options.data, few, [place.documents for place in places.values()])
        for place in places.values():
            measure_index(place, options, record, exact=exact[place.documents], server=server)
        if options.type_documents:
            measure_types(uri, options, record)


@contextmanager
def server_in(folder: Path) -> Iterator[tuple[str, int]]:
    """Start a server with patient settings, unlike the tests'; yields its address and process."""
    with milvus_process(folder, {}) as (uri, server):
        pid = server.server_proc.pid
        say(f"a server at {uri}, process {pid}")
        wait_for(uri)
        yield uri, pid


def wait_for(uri: str) -> None:
    """Wait until a server loads its data: a killed server first waits for its old session."""
    client = MilvusClient(uri, timeout=measures.TIMEOUT)
    for name in client.list_collections()[:1]:
        for last in [False] * 20 + [True]:
            try:
                client.load_collection(name)
                break
            except MilvusException:
                if last:
                    raise
                time.sleep(PAUSE)
    client.close()


def on_lite(options: argparse.Namespace, record: Record) -> None:
    """Measure on Milvus Lite, as far as it makes sense."""
    place = Place(str(options.data / "lite.db"), "scale", options.lite_rows // 2)
    fill(place, record, f"lite/{options.lite_rows}/insert", patience=options.patience)
    few = queries_of(options.data)[: options.queries]
    exact = exact_of(options.data, few, [place.documents])[place.documents]
    measure_index(place, options, record, exact=exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder for databases and measurements"
    )
    parser.add_argument("--again", action="store_true", help="measure existing indexes again")
    parser.add_argument(
        "--write-docs",
        type=Path,
        nargs="?",
        const=PAGE,
        help="update docs/scaling.md, or this page",
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--lite-rows", type=int, default=100_000, help="0 for none")
    parser.add_argument("--type-documents", type=int, default=100_000, help="0 for none")
    parser.add_argument("--patience", type=float, default=7_200, help="seconds for each index")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8, help="duration of each load test")
    parser.add_argument(
        "--queries", type=int, default=OF_RECALL, help="number of queries for recall"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and stop the server
    options.data.mkdir(parents=True, exist_ok=True)
    record = Record(options.data / "record.json")
    if options.again:
        record.forget_measures()
    if options.rows:
        on_server(options, record)
    if options.lite_rows:
        on_lite(options, record)
    record.put("machine", {"cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")})
    print_tables(record.values)
    if options.write_docs:
        write_docs(record.values, options.write_docs)


if __name__ == "__main__":
    main()
