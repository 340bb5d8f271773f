"""How an index grows: from ten thousand rows to a million, on Milvus 2.3.5 and on Milvus Lite.

    python benchmarks/scale.py --data FOLDER [--again] [--write-docs]

FOLDER keeps the databases (some 15 GB for a million rows), and in ``record.json`` what was done and
measured: a run that was killed goes on where it ended. ``--again`` measures anew what is there and
inserts nothing. ``--write-docs`` puts the tables and the plot into docs/scaling.md.

An index of n rows has n/2 documents, each a text node of some 400 characters and an image node;
their vectors, and those of the queries, are simulated (``simulated.py``), so that no model's time
is in any figure. It has learnt from 300 queries, and its retriever is the default one: 16 + 16
nodes, hubs and spreads corrected. Client and server share the machine.

1. Inserts through ``DualIndex.insert_nodes``, 10,000 nodes at a time, beside raw pymilvus inserts;
   what they take of processors, client and server together; and how long the index takes after the
   last one. ``--again`` repeats the comparison only.
2. Memory of the server with nothing but the index loaded, and of a client after its searches.
3. The whole retriever by 1, 8 and 32 threads; Milvus Lite by 1. No query comes twice.
4. What else may depend on the number of rows: opening, counting, the first search, which draws the
   background, filters, ``complete=True``, inserting nodes that are there.
5. Recall@16 of raw searches at several ``ef`` against comparing with all.
6. Kinds of index: texts' vectors alone, in a collection of one column more, which is loaded alone.
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

LOOKS, PAUSE = 120.0, 5.0  # seconds of a look at an index that is being built; and after it
QUERIES, OF_RECALL = 4_000, 300
INSERTED = 5_000  # documents, to compare with raw inserts
PROBES = tuple({"nprobe": number} for number in (8, 32, 128))
# Kind of index, its settings, and those of its searches.
TYPES: dict[str, tuple[dict[str, Any], tuple[dict[str, int], ...]]] = {
    "FLAT": ({"index_type": "FLAT"}, ({},)),
    "HNSW": (
        {"index_type": "HNSW", "M": 16, "efConstruction": 200},
        tuple({"ef": ef} for ef in measures.EFS),
    ),
    "IVF_FLAT": ({"index_type": "IVF_FLAT", "nlist": 1024}, PROBES),
    "IVF_SQ8": ({"index_type": "IVF_SQ8", "nlist": 1024}, PROBES),
    "IVF_PQ": ({"index_type": "IVF_PQ", "nlist": 1024, "m": 64, "nbits": 8}, PROBES),
    # with_raw_data is true by itself; whoever names it, 2.3.5 builds the index again and again.
    "SCANN": (
        {"index_type": "SCANN", "nlist": 1024},
        tuple({**each, "reorder_k": 128} for each in PROBES),
    ),
}
LARGE_TYPES = ("IVF_SQ8",)  # these also for as many vectors as the largest index has texts
KEYED = "HNSW, groups are partitions"
MEASURED = ("inserts", "search", "recall", "memory", "type", "groups", "replicas")


class Record:
    """What was done and measured so far, in a file, so that a later run goes on from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def put(self, key: str, value: Any) -> None:
        """Keep a value at once.

        Args:
            key: what it says, where, and of how many rows, with slashes between.
            value: as JSON knows it.
        """
        self.values[key] = value
        self._write()

    def forget_measures(self) -> None:
        """Forget what ``--again`` measures anew."""
        self.values = {
            key: value
            for key, value in self.values.items()
            if key.split("/", maxsplit=1)[0] not in MEASURED
        }
        self._write()

    def lacks(self, key: str) -> bool:
        """Whether something is still to be done; says so if it is."""
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
    """Call a function in a process of its own, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def fill(
    place: Place, record: Record, key: str, *, patience: float, server: int | None = None
) -> None:
    """Insert documents, from the first that is missing; wait for the index; learn from queries."""
    done = record.values.get(key, {"documents": 0, "seconds": 0.0, "processor": 0.0})
    if "learnt" in done:
        return
    processes = [psutil.Process(), *([psutil.Process(server)] if server else [])]
    with place.open() as index:
        while done["documents"] < place.documents:
            start = done["documents"]
            stop = min(place.documents, start + BLOCK - start % BLOCK)
            simulation().block(start // BLOCK)  # so that making it is not measured
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
    """Wait for an index; after so many seconds go on, and say so."""
    flush = True if "://" in store.uri else None
    started = time.monotonic()
    while time.monotonic() < started + patience:
        try:
            return store.finish(flush=flush, timeout=LOOKS)
        except StoreError as error:  # a server that was killed first looks for its old self, too
            say(str(error).splitlines()[0][:200])
            time.sleep(PAUSE)
    say(f"{store.collection}: goes on while it is still being indexed")
    return None


def processor_of(processes: Sequence[psutil.Process]) -> float:
    """Seconds that processors have worked for some processes."""
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def queries_of(folder: Path) -> np.ndarray:
    """Queries about the documents after those that were learnt from; made once."""
    path = folder / "queries.npy"
    if not path.exists():
        rows = [simulation().query(LEARNT + number) for number in range(QUERIES)]
        np.save(path, np.array(rows))
    return np.load(path)


def exact_of(folder: Path, queries: np.ndarray, sizes: list[int]) -> dict[int, dict[str, Any]]:
    """The nearest documents of the first queries in indexes of so many documents; made once."""
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
    """Searches, memory and recall of one index."""
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
    """Kinds of index, and what groups of rows cost that are or are not partitions."""
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
    """All that is measured on a server, which is started for it."""
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
    """A server with its own settings, not the tests' impatient ones; its address and process."""
    with milvus_process(folder, {}) as (uri, server):
        pid = server.server_proc.pid
        say(f"a server at {uri}, process {pid}")
        wait_for(uri)
        yield uri, pid


def wait_for(uri: str) -> None:
    """Wait until a server loads what it holds: one that was killed first looks for its old self."""
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
    """The same, as far as it makes sense, on Milvus Lite."""
    place = Place(str(options.data / "lite.db"), "scale", options.lite_rows // 2)
    fill(place, record, f"lite/{options.lite_rows}/insert", patience=options.patience)
    few = queries_of(options.data)[: options.queries]
    exact = exact_of(options.data, few, [place.documents])[place.documents]
    measure_index(place, options, record, exact=exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder for all that is made")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument(
        "--write-docs", type=Path, nargs="?", const=PAGE, help="renew docs/scaling.md, or this page"
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--lite-rows", type=int, default=100_000, help="0 for none")
    parser.add_argument("--type-documents", type=int, default=100_000, help="0 for none")
    parser.add_argument("--patience", type=float, default=7_200, help="seconds for each index")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8, help="of searching, each time")
    parser.add_argument("--queries", type=int, default=OF_RECALL, help="that recall is taken of")
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
