"""The measurements of ``scale.py``."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from pymilvus import DataType, MilvusClient, MilvusException
from simulated import BLOCK, DIMENSION, SimulatedEmbedding, make_nodes, simulation

from llama_index_gap import DualIndex
from llama_index_gap.gap.arrays import IntArray, VectorArray
from llama_index_gap.modality import MODALITIES
from llama_index_gap.search.retriever import TOP_K
from llama_index_gap.store.collection import DEFAULT_INDEX
from llama_index_gap.store.rows import to_row

LEARNT = 300  # queries that each index learns from: about documents 0 to 299
EFS = (32, 64, 128, 256)
TIMEOUT = 300.0  # seconds for a call: the machine may be busy
WARM_UP = 20  # searches
SLOW_SEARCHES = 30  # of each kind that has no load test
UNCHANGED = 1_000  # rows
_ROW_BYTES = {"id": 64, "doc_id": 64, "text": 65_535}

Search = Callable[[int], object]


@dataclass(frozen=True)
class Place:
    """An index to measure.

    Attributes:
        uri: a file, or a server.
        name: the index' name.
        documents: the number of its documents, each with a text and an image.
    """

    uri: str
    name: str
    documents: int

    def open(self) -> DualIndex:
        """Open it."""
        return DualIndex(self.uri, self.name, SimulatedEmbedding(), timeout=TIMEOUT)


def client_memory() -> float:
    """The memory of this process, in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def seconds_of(action: Callable[[], object]) -> float:
    """The seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def summary(times: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds.

    Args:
        times: times in seconds.
    """
    values = 1e3 * np.array(times)
    return {f"p{each}": float(np.percentile(values, each)) for each in (50, 95)}


def under_load(search: Search, threads: int, seconds: float) -> dict[str, float]:
    """Search in parallel for some time: percentiles, searches per second, and so on.

    Args:
        search: gets the number of the search; no number comes twice.
        threads: number of threads that search.
        seconds: the duration; searches that have begun are finished.
    """
    numbers = itertools.count()  # its next() is atomic
    times: list[float] = []
    errors: list[BaseException] = []

    def work(until: float) -> None:
        try:
            while time.perf_counter() < until and not errors:
                times.append(seconds_of(partial(search, next(numbers))))
        except BaseException as error:
            errors.append(error)

    started, processor = time.perf_counter(), time.process_time()
    workers = [
        threading.Thread(target=work, args=(started + seconds,), name=f"search-{number}")
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    taken, processor = time.perf_counter() - started, time.process_time() - processor
    return {
        **summary(times),
        "searches": len(times),
        "per_second": len(times) / taken,
        "client_ms": 1e3 * processor / len(times),  # processor time
    }


def measure_searches(
    place: Place, queries: VectorArray, threads: Sequence[int], seconds: float
) -> dict[str, Any]:
    """Measure opening an index, its retriever under load, and other operations.

    Args:
        place: the index.
        queries: query vectors, shape (n, 512); none is repeated before all were used.
        threads: the numbers of threads to measure, one after the other.
        seconds: the duration for each number of threads.
    """
    before = client_memory()
    found: dict[str, Any] = {"loaded_in": seconds_of(lambda: place.open().close())}
    found["opened_in"] = seconds_of(lambda: place.open().close())
    offset = itertools.count(0, 100_000)

    def asks(**settings: Any) -> Search:
        retriever, start = index.as_retriever(**settings), next(offset)

        def ask(number: int) -> object:
            number = (start + number) % len(queries)
            return retriever.retrieve(
                QueryBundle(f"query {number}", embedding=queries[number].tolist())
            )

        return ask

    with place.open() as index:
        found["count"] = seconds_of(index.count)
        ours = asks()
        found["first"] = seconds_of(lambda: ours(-1))
        for number in range(WARM_UP):
            ours(-2 - number)
        found["threads"] = {str(number): under_load(asks(), number, seconds) for number in threads}
        found["client"] = client_memory()
        section = MetadataFilters(filters=[MetadataFilter(key="section", value="section 3")])
        for name, settings in {
            "plain": {"hubs": False, "normalize": "none", "combine": "max"},
            "complete": {"complete": True},
            "filtered": {"filters": section},
        }.items():
            search = asks(**settings)
            search(-1)
            found[name] = summary([seconds_of(partial(search, n)) for n in range(SLOW_SEARCHES)])
        nodes = make_nodes(0, min(place.documents, UNCHANGED // 2))
        started = time.perf_counter()
        report = index.insert_nodes(nodes)
        found["unchanged"] = time.perf_counter() - started
        if report.unchanged != len(nodes):
            raise RuntimeError(f"{place.name}: {report.summary()}")
    return found | {"client_before": before, "load": os.getloadavg()[0]}


def exact_hits(queries: VectorArray, sizes: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Exact nearest documents of each query, for indexes of several sizes.

    Args:
        queries: shape (n, 512).
        sizes: numbers of documents.

    Yields:
        A number of documents; by modality, the numbers of the 16 nearest, shape (n, 16).
    """
    empty = np.zeros((len(queries), 0))
    scores = dict.fromkeys(MODALITIES, empty)
    numbers: dict[str, IntArray] = dict.fromkeys(MODALITIES, empty.astype(np.int64))
    start = 0
    for stop in sorted(set(sizes)):
        while start < stop:
            end = min(stop, start + BLOCK - start % BLOCK)
            for modality in MODALITIES:
                rows = simulation().block(start // BLOCK)[modality]
                new = queries @ rows[start % BLOCK : start % BLOCK + end - start].T
                every = np.hstack([scores[modality], new])
                known = np.broadcast_to(np.arange(start, end), new.shape)
                every_number = np.hstack([numbers[modality], known])
                best = np.argsort(-every, axis=1)[:, :TOP_K]
                scores[modality] = np.take_along_axis(every, best, axis=1)
                numbers[modality] = np.take_along_axis(every_number, best, axis=1)
            start = end
        yield stop, {modality: numbers[modality].copy() for modality in MODALITIES}


def recall_of(
    client: MilvusClient,
    collection: str,
    queries: VectorArray,
    exact: IntArray,
    *,
    settings: Mapping[str, int],
    filter_by: str = "",
) -> dict[str, float]:
    """Recall@16 of raw searches, and their times.

    Args:
        client: a pymilvus client.
        collection: its row ids must begin with the number of their document.
        queries: shape (n, 512).
        exact: the documents to find, shape (n, 16) or narrower.
        settings: settings of the search.
        filter_by: a filter on the rows.
    """
    times, right = [], 0
    for vector, wanted in zip(queries, exact, strict=True):
        started = time.perf_counter()
        (hits,) = client.search(
            collection,
            data=[vector],
            anns_field="embedding",
            limit=TOP_K,
            filter=filter_by,
            search_params={"metric_type": "COSINE", "params": dict(settings)},
            consistency_level="Session",
            timeout=TIMEOUT,
        )
        times.append(time.perf_counter() - started)
        right += len({int(str(hit["id"]).split("#")[0]) for hit in hits} & set(wanted.tolist()))
    return {"recall": right / exact.size, **summary(times)}


def measure_recall(
    place: Place, queries: VectorArray, exact: Mapping[str, IntArray]
) -> dict[str, Any]:
    """Recall of both collections of an index at each ``ef``.

    Args:
        place: the index.
        queries: shape (n, 512).
        exact: the result of ``exact_hits``.
    """
    with place.open() as index:
        return {
            modality: {
                str(ef): recall_of(
                    index._stores[modality].client,
                    index.collection_name(modality),
                    queries,
                    exact[modality],
                    settings={"ef": ef},
                )
                for ef in EFS
            }
            for modality in MODALITIES
        } | {"load": os.getloadavg()[0]}


def measure_inserts(uri: str, documents: int, rounds: int = 2) -> dict[str, Any]:
    """Rows per second of our inserts and of raw ones, into new collections, in turns.

    Args:
        uri: a server.
        documents: number of documents in each round.
        rounds: number of rounds of each.
    """
    found: dict[str, Any] = {"ours": [], "raw": [], "rows": 2 * documents}
    for number in range(rounds):
        for way in ("ours", "raw") if number % 2 == 0 else ("raw", "ours"):
            inserts = our_inserts if way == "ours" else raw_inserts
            found[way].append(2 * documents / inserts(uri, documents))
    return found | {"load": os.getloadavg()[0]}


def our_inserts(uri: str, documents: int) -> float:
    """Seconds of ``insert_nodes``.

    Args:
        uri: a server.
        documents: number of documents.
    """
    nodes, model = make_nodes(0, documents), SimulatedEmbedding()
    with DualIndex(uri, "scale_inserts", model, overwrite=True, timeout=TIMEOUT) as index:
        taken = seconds_of(partial(index.insert_nodes, nodes))
        for store in index._stores.values():
            store.drop()
    return taken


def raw_inserts(uri: str, documents: int) -> float:
    """Seconds of pymilvus' ``insert``, a thousand rows at a time, made beforehand.

    Args:
        uri: a server.
        documents: number of documents, each with a text and an image.
    """
    client, names = MilvusClient(uri, timeout=TIMEOUT), [f"raw_{each}" for each in MODALITIES]
    for name in names:
        if client.has_collection(name):
            client.drop_collection(name)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        for column in _ROW_BYTES:
            schema.add_field(column, DataType.VARCHAR, max_length=65_535, is_primary=column == "id")
        make_collection(client, name, schema, DEFAULT_INDEX)
    taken = 0.0
    for start in range(0, documents, 1_000):
        stop = min(documents, start + 1_000)
        rows = [to_row(node, _ROW_BYTES) for node in make_nodes(start, stop)]
        for number, row in enumerate(rows):
            row["embedding"] = simulation().vector(MODALITIES[number % 2], start + number // 2)
        for number, name in enumerate(names):
            taken += seconds_of(partial(client.insert, name, rows[number::2]))
    for name in names:
        client.drop_collection(name)
    client.close()
    return taken


def make_collection(
    client: MilvusClient, name: str, schema: Any, index: Mapping[str, Any], **settings: Any
) -> None:
    """Make and load a collection with a vector index.

    Args:
        client: a pymilvus client.
        name: name of the collection.
        schema: all columns except the vectors.
        index: kind and settings of the index.
        **settings: settings of the collection.
    """
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIMENSION)
    parameters = client.prepare_index_params()
    given = dict(index)
    kind = given.pop("index_type")
    parameters.add_index("embedding", index_type=kind, metric_type="COSINE", params=given)
    client.create_collection(name, schema=schema, consistency_level="Session", **settings)
    client.create_index(name, parameters, sync=False)
    client.load_collection(name)


def build_type(
    uri: str, name: str, documents: int, index: Mapping[str, Any], keyed: bool
) -> dict[str, float]:
    """Build a collection of the texts' vectors in sixteen groups, and measure the time.

    Args:
        uri: a server.
        name: name of the collection.
        documents: number of documents.
        index: kind and settings of the index.
        keyed: whether the groups are partitions.
    """
    client = MilvusClient(uri, timeout=TIMEOUT)
    if client.has_collection(name):
        client.drop_collection(name)
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("group", DataType.INT64, is_partition_key=keyed)
    make_collection(client, name, schema, index, **({"num_partitions": GROUPS} if keyed else {}))
    taken = 0.0
    for start in range(0, documents, 2_500):
        rows = [
            {
                "id": number,
                "group": number % GROUPS,
                "embedding": simulation().vector("text", number),
            }
            for number in range(start, min(documents, start + 2_500))
        ]
        taken += seconds_of(partial(client.insert, name, rows))
    started = time.perf_counter()
    client.flush(name, timeout=TIMEOUT)
    while client.describe_index(name, "embedding").get("pending_index_rows", 0):
        if time.perf_counter() - started > MOST_SECONDS:
            raise RuntimeError(f"{name}: {index} is not built after {MOST_SECONDS:.0f} s")
        time.sleep(0.5)
    indexed = time.perf_counter() - started
    client.close()
    return {"documents": documents, "seconds": taken, "indexed_in": indexed}


GROUPS = 16
MOST_SECONDS = 1_800.0  # the longest wait for an index of another kind


def measure_type(
    uri: str,
    name: str,
    queries: VectorArray,
    exact: IntArray,
    *,
    settings: Sequence[Mapping[str, int]],
) -> dict[str, Any]:
    """Load only one collection, and search it with each setting.

    Args:
        uri: a server.
        name: name of the collection.
        queries: shape (n, 512).
        exact: the documents to find, shape (n, 16).
        settings: settings of the searches.
    """
    client = MilvusClient(uri, timeout=TIMEOUT)
    release_all(client)
    client.load_collection(name)
    found: dict[str, Any] = {}
    for setting in settings:
        words = ", ".join(f"{key}={value}" for key, value in setting.items())
        found[words] = recall_of(client, name, queries, exact, settings=setting)
    client.release_collection(name)
    client.close()
    return found | {"load": os.getloadavg()[0]}


def measure_groups(uri: str, name: str, queries: VectorArray) -> dict[str, Any]:
    """Measure searches in one of sixteen groups, selected by its number.

    Args:
        uri: a server.
        name: name of the collection.
        queries: shape (n, 512).
    """
    client = MilvusClient(uri, timeout=TIMEOUT)
    release_all(client)
    client.load_collection(name)
    exact = np.zeros((len(queries), 1), np.int64)
    found = recall_of(*(client, name, queries, exact), settings={"ef": 64}, filter_by="group == 3")
    client.release_collection(name)
    client.close()
    return {"p50": found["p50"], "p95": found["p95"]}


def why_no_replicas(uri: str, name: str) -> str:
    """The error of a server that is asked to load a collection twice; empty if it works.

    Args:
        uri: the server.
        name: name of a collection.
    """
    client = MilvusClient(uri, timeout=TIMEOUT)
    client.release_collection(name)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs the errors that it raises
    try:
        client.load_collection(name, replica_number=2, timeout=60)
    except MilvusException as error:
        return str(error.message)
    finally:
        client.release_collection(name)
        client.close()
    return ""


def release_all(client: MilvusClient) -> None:
    """Release everything that a server has in memory.

    Args:
        client: a pymilvus client.
    """
    for name in client.list_collections():
        client.release_collection(name)


def settled(server: int, seconds: float = 2.0) -> float:
    """The memory of a server in MiB, after it has stopped changing by more than a hundredth.

    Args:
        server: its process id.
        seconds: time between two readings.
    """
    process = psutil.Process(server)
    last = process.memory_info().rss
    for _ in range(20):
        time.sleep(seconds)
        before, last = last, process.memory_info().rss
        if abs(last - before) <= 0.01 * before:
            break
    return last / 2**20
