"""Tests many searches at once, during inserts, and on servers that are killed, stopped or slow.

    python benchmarks/under_load.py [--searches 1 8 200] [--timeout 10] [--server]
    python benchmarks/under_load.py --lite [--against FOLDER] [--rows 10000]

The first form asks an index of 1,000 documents (2,000 nodes, vectors of 64 numbers that cost
nothing to compute) many questions at once: from threads, from tasks of one event loop, from tasks
of two, and from event loops within event loops; first alone, then while other documents are
inserted one by one. Answers are compared with the answers to single questions. Inserts change the
background sample, and so the order of some hits. During inserts, every second question therefore
asks for raw scores, and only these answers are compared.

Then the same index is used while its server is killed (and restarted on its port), stopped
(SIGSTOP, then SIGCONT), gone, dropping each connection, half open (it accepts everything and
answers nothing) or far away (each answer comes a second later). The table shows how long calls
take, how many fail, whether the same objects work again afterwards, and how many rows of
acknowledged inserts are lost. The server is Milvus Lite in a separate process, or, with
``--server``, Milvus 2.3.5; a proxy stands between it and the index.

``--lite`` measures how long single searches of a Milvus Lite file with 2,000 rows of 512 numbers
wait while ``--rows`` rows are inserted and flushed. ``--against`` names the checkout of another
commit, which does the same in turns, in separate processes.

The exit code is 1 if an answer differs, a row is lost, or an index does not work again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_gap import DualIndex, DualIndexRetriever, MilvusStore, StoreError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "support"))
DOCUMENTS, DIMENSIONS, LITE_DIMENSIONS, BATCH = 1_000, 64, 512, 400
RUNS, BEFORE_S, FAR_S, PATIENCE_S = 3, 0.5, 1.0, 120.0


class Free(MultiModalEmbedding):
    """Vectors from a hash of the input; for later inserts, one that is far from all others."""

    model_name: str = "free"

    def _get_text_embedding(self, text: str) -> list[float]:
        if text.startswith("later"):
            return [0.0] * (DIMENSIONS - 1) + [1.0]
        numbers = np.random.default_rng(list(text.encode())).normal(size=DIMENSIONS - 1)
        return [*numbers.tolist(), 0.0]

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_text_embedding(Path(img_file_path).name)

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)


def document(name: str) -> list[TextNode]:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)}
    return [
        TextNode(id_=f"{name}#text", text=name, relationships=source),
        ImageNode(id_=f"{name}#image", image_path=f"{name}.png", relationships=source),
    ]


class Inserts:
    """Inserts documents one after the other while a block runs.

    Attributes:
        acknowledged: ids of nodes whose insert returned.
    """

    def __init__(self, index: DualIndex) -> None:
        self._index, self._number = index, 0
        self.acknowledged: list[str] = []

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        stop = threading.Event()

        def insert() -> None:
            while not stop.is_set():
                self._number += 1
                nodes = document(f"later {self._number}")
                try:
                    self._index.insert_nodes(nodes)
                except StoreError:
                    continue  # not acknowledged
                self.acknowledged += [node.node_id for node in nodes]

        inserting = threading.Thread(target=insert)
        inserting.start()
        try:
            yield
        finally:
            stop.set()
            inserting.join()

    def lost(self) -> int:
        found = {node.node_id for node in self._index.get_nodes(self.acknowledged)}
        return len(set(self.acknowledged) - found)


# --- searches at once ----------------------------------------------------------------------------


Answers: TypeAlias = Sequence[frozenset[str]]


class Asked:
    """Questions that are asked at once, to the retrievers in turn.

    Attributes:
        seconds: the time of each question.
        errors: the errors of the questions that failed.
        wrong: number of answers that differ.
        threads: the most threads besides those that ask.
    """

    def __init__(self, *retrievers: tuple[DualIndexRetriever, Answers | None]) -> None:
        self._retrievers = retrievers
        self.seconds: list[float] = []
        self.errors: list[Exception] = []
        self.wrong = self.threads = 0

    def ask(self, way: str, questions: int) -> Asked:
        stop, before = threading.Event(), threading.active_count()

        def watch() -> None:
            while not stop.wait(0.02):
                own = questions if way == "threads" else 0
                self.threads = max(self.threads, threading.active_count() - before - 1 - own)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            WAYS[way](self, range(questions))
        finally:
            stop.set()
            watching.join()
        return self

    def _note(self, number: int, started: float, answer: Any) -> None:
        self.seconds.append(time.perf_counter() - started)
        if isinstance(answer, Exception):
            self.errors.append(answer)
        elif (right := self._of(number)[1]) is not None:
            self.wrong += ids(answer) != right[number]

    def _of(self, number: int) -> tuple[DualIndexRetriever, Answers | None]:
        return self._retrievers[number % len(self._retrievers)]

    def by_threads(self, numbers: range) -> None:
        ready = threading.Barrier(len(numbers))

        def one(number: int) -> None:
            ready.wait()
            started = time.perf_counter()
            try:
                answer: Any = self._of(number)[0].retrieve(question(number))
            except Exception as error:
                answer = error
            self._note(number, started, answer)

        threads = [threading.Thread(target=one, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def by_tasks(self, numbers: Sequence[int], *, within: bool = False) -> None:
        async def one(number: int) -> None:
            started = time.perf_counter()
            ask = self._of(number)[0].aretrieve
            try:
                if within:
                    answer: Any = await asyncio.to_thread(
                        lambda: asyncio.run(ask(question(number)))
                    )
                else:
                    answer = await ask(question(number))
            except Exception as error:
                answer = error
            self._note(number, started, answer)

        async def every() -> None:
            await asyncio.gather(*map(one, numbers))

        asyncio.run(every())

    def by_two_loops(self, numbers: range) -> None:
        halves = [numbers[::2], numbers[1::2]]
        threads = [threading.Thread(target=self.by_tasks, args=(half,)) for half in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


WAYS: dict[str, Callable[[Asked, range], None]] = {
    "threads": Asked.by_threads,
    "tasks": Asked.by_tasks,
    "two loops": Asked.by_two_loops,
    "loops in a loop": lambda asked, numbers: asked.by_tasks(numbers, within=True),
}


def question(number: int) -> str:
    return f"question {number}"


def raw_of(index: DualIndex) -> DualIndexRetriever:
    return index.as_retriever(hubs=False, normalize="none", combine="max")


def ids(found: Sequence[Any]) -> frozenset[str]:
    return frozenset(hit.node_id for hit in found)


def answers(retriever: DualIndexRetriever, questions: int) -> Answers:
    """The answers to single questions, one after the other."""
    return [ids(retriever.retrieve(question(number))) for number in range(questions)]


def row(cells: Sequence[str], widths: Sequence[int]) -> None:
    texts = [f"{cells[0]:<{widths[0]}}"]
    texts += [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True)]
    print("  ".join(texts), flush=True)


def times(asked: Asked) -> list[str]:
    return [
        f"{1e3 * statistics.median(asked.seconds):,.0f}",
        f"{1e3 * max(asked.seconds):,.0f}",
        str(len(asked.errors)),
        str(asked.wrong),
    ]


def at_once(index: DualIndex, searches: Sequence[int], right: Answers) -> int:
    """Ask in all ways, alone and during inserts; return the number of wrong or missing answers.

    Args:
        index: the index to ask.
        searches: numbers of searches at once.
        right: the right answers by raw scores.
    """
    usual, raw, inserts, faults = index.as_retriever(), raw_of(index), Inserts(index), 0
    widths = (17, 8, 9, 8, 11, 7, 7, 8)
    row(("", "at once", "inserts", "p50, ms", "longest, ms", "errors", "differ", "threads"), widths)
    for way in WAYS:
        now = answers(usual, max(searches))
        for inserting in (False, True):
            for questions in searches:
                asked = Asked((usual, None), (raw, right)) if inserting else Asked((usual, now))
                with inserts.meanwhile() if inserting else ExitStack():
                    asked.ask(way, questions)
                told = "meanwhile" if inserting else "none"
                cells = (way, str(questions), told, *times(asked), f"+{asked.threads}")
                row(cells, widths)
                faults += len(asked.errors) + asked.wrong
    lost = inserts.lost()
    print(f"{lost} of {len(inserts.acknowledged):,} rows inserted meanwhile are lost\n")
    return faults + lost


# --- a server in trouble -------------------------------------------------------------------------


class RealServer:
    """A server of Milvus 2.3.5, with the methods of ``LiteServer``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, ExitStack()
        self.start()

    def start(self) -> None:
        from milvus_server import milvus_process

        self._folder.mkdir(exist_ok=True)
        address, server = self._running.enter_context(milvus_process(self._folder))
        self.port, self._process = int(address.rpartition(":")[2]), server.server_proc

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._running.close()

    def stop(self) -> None:
        os.kill(self._process.pid, 19)

    def go_on(self) -> None:
        os.kill(self._process.pid, 18)

    def __enter__(self) -> RealServer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._running.close()


def troubles(server: Any, proxy: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each trouble of a server, how to begin and end it."""

    def setting(**values: Any) -> Callable[[], None]:
        return lambda: vars(proxy).update(values)

    return {
        "killed": (server.kill, lambda: (server.start(), proxy.lead_to(server.port))),
        "stopped": (server.stop, server.go_on),
        "gone": (proxy.go, proxy.listen),
        "drops": (lambda: (setting(drops=True)(), proxy.hang_up()), setting(drops=False)),
        "half open": (proxy.freeze, proxy.thaw),
        "far away": (setting(delay=FAR_S), setting(delay=0.0)),
    }


def in_trouble(
    index: DualIndex,
    happens: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]],
    searches: Sequence[int],
    right: Answers,
) -> int:
    """Try every trouble; return the number of lost rows, wrong answers and broken indexes."""
    usual, raw, faults = index.as_retriever(), raw_of(index), 0
    widths = (11, 9, 8, 8, 11, 7, 7, 9, 9, 9)
    heads = ("it is", "asked by", "at once", "p50, ms", "longest, ms", "errors", "differ")
    row((*heads, "back in s", "inserted", "lost rows"), widths)
    for name, (begin, end) in happens.items():
        for way in ("threads", "tasks"):
            for questions in searches:
                asked, inserts = Asked((usual, None), (raw, right)), Inserts(index)
                with inserts.meanwhile():
                    asked.ask(way, min(questions, 8))
                    begin()
                    try:
                        asked = Asked((usual, None), (raw, right)).ask(way, questions)
                    finally:
                        end()
                back = seconds_until(lambda: bool(usual.retrieve(question(0))))
                lost = inserts.lost()
                shown = "never" if back is None else f"{back:.1f}"
                more = (shown, str(len(inserts.acknowledged)), str(lost))
                row((name, way, str(questions), *times(asked), *more), widths)
                faults += lost + asked.wrong + (back is None)
                if asked.errors and questions == max(searches) and way == "threads":
                    print(f"    {asked.errors[-1]}")
    return faults


def seconds_until(works: Callable[[], bool]) -> float | None:
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE_S:
        try:
            if works():
                return time.monotonic() - started
        except StoreError as error:
            last = error
        time.sleep(0.1)
    print(f"    {last}")
    return None


# --- waits on Milvus Lite ------------------------------------------------------------------------


def lite_waits(rows: int) -> dict[str, list[float]]:
    """Milliseconds of the median and the longest search, by phase."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(32, LITE_DIMENSIONS))

    def nodes(name: str, number: int) -> list[TextNode]:
        vectors = (rng.normal(size=(number, 32)) @ basis).astype(np.float32)
        return [
            TextNode(id_=f"{name} {i}", text="a text of some length " * 10, embedding=v.tolist())
            for i, v in enumerate(vectors)
        ]

    with tempfile.TemporaryDirectory() as folder:
        store = MilvusStore(uri=f"{folder}/x.db", collection_name="c", dim=LITE_DIMENSIONS)
        store.add(nodes("old", 2_000))
        store.finish()
        new, queries = nodes("new", rows), nodes("query", 100)
        taken: list[tuple[float, float]] = []
        stop, phases = threading.Event(), {}

        def search() -> None:
            while not stop.is_set():
                for query in queries:
                    began = time.perf_counter()
                    store.query_hits(VectorStoreQuery(query.embedding, similarity_top_k=16))
                    taken.append((began, time.perf_counter()))
                    if stop.is_set():
                        return

        searching = threading.Thread(target=search)
        searching.start()
        for phase, work in {
            "nothing": lambda: time.sleep(BEFORE_S),
            "inserted": lambda: [store.add(new[at : at + BATCH]) for at in range(0, rows, BATCH)],
            "flushed and indexed": store.finish,
        }.items():
            began = time.perf_counter()
            work()
            phases[phase] = (began, time.perf_counter())
        stop.set()
        searching.join()
        store.close()
    waits: dict[str, list[float]] = {}
    for phase, (began, ended) in phases.items():
        of_phase = [1e3 * (b - a) for a, b in taken if a < ended and b > began]
        waits[phase] = [statistics.median(of_phase), max(of_phase), ended - began]
    return waits


def show_lite_waits(rows: int, against: Path | None) -> None:
    checkouts = {"here": ROOT} | ({"against": against.resolve()} if against else {})
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in checkouts}
    for _ in range(RUNS):
        for name, checkout in checkouts.items():
            shown = subprocess.run(
                [sys.executable, __file__, "--measure", "--rows", str(rows)],
                env={**os.environ, "PYTHONPATH": str(checkout)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                cwd=checkout,
            )
            found[name].append(json.loads(shown.stdout.splitlines()[-1]))
    widths = (9, 21, 8, 8, 11)
    row(("commit", f"{rows:,} rows meanwhile", "in s", "p50, ms", "longest, ms"), widths)
    for name, runs in found.items():
        for phase in runs[0]:
            p50, longest, seconds = np.median([run[phase] for run in runs], axis=0)
            row((name, phase, f"{seconds:.1f}", f"{p50:,.0f}", f"{longest:,.0f}"), widths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, nargs="+", default=[1, 8, 200])
    parser.add_argument(
        "--timeout", type=float, default=10.0, help="time-out of the index in trouble"
    )
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument(
        "--server", action="store_true", help="use Milvus 2.3.5 instead of Milvus Lite"
    )
    parser.add_argument("--trouble", nargs="*", help="only these troubles: killed, stopped, …")
    parser.add_argument("--lite", action="store_true", help="only the waits on a Lite file")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(lite_waits(options.rows)))
        return
    if options.lite:
        show_lite_waits(options.rows, options.against)
        return
    from lite_server import LiteServer
    from lossy_proxy import lossy_proxy

    faults = 0
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_DATA_HOME"] = work
        folder = Path(work) / "server.db"
        made: Any = RealServer(folder) if options.server else LiteServer(folder)
        with made as server, lossy_proxy(server.port) as proxy:
            # An exact index: another kind may answer differently after its segments are merged.
            exact = {"index_config": {"index_type": "FLAT"}}
            settings = {"embed_model": Free(), "storage_dir": Path(work) / "images", **exact}
            with DualIndex(proxy.address, **settings, timeout=60) as index:
                for number in range(0, options.documents, 100):
                    numbers = range(number, min(number + 100, options.documents))
                    index.insert_nodes([n for each in numbers for n in document(f"d{each}")])
                right = answers(raw_of(index), max(options.searches))
                if options.trouble is None:
                    faults += at_once(index, options.searches, right)
            with DualIndex(proxy.address, **settings, timeout=options.timeout) as index:
                happens = troubles(server, proxy)
                happens = {name: happens[name] for name in options.trouble or happens}
                faults += in_trouble(index, happens, options.searches, right)
    print(f"{faults} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
