"""Many searches at once, on a Lite file during writes and on a server that is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate import PATIENCE_S, Gate
from hashed import Hashed
from index_nodes import finished, of_document
from lite_server import LiteServer
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from lossy_proxy import LossyProxy
from milvus_lite.storage.segment import Segment
from pymilvus import MilvusClient

from llama_index_gap import DualIndex, MilvusStore, StoreError
from llama_index_gap.index.backgrounds import Backgrounds
from llama_index_gap.store.patience import one_search

MANY = 200
LONG_S, SHORT_S = 29.0, 0.5


def nodes(*numbers: int) -> list[TextNode]:
    return [
        TextNode(id_=f"n{number}", text=f"text {number}", relationships=of_document(f"d{number}"))
        for number in numbers
    ]


def set_timeout(index: DualIndex, seconds: float) -> None:
    """Give a slow machine more time where the server answers."""
    for collection in index.collections().values():
        collection.store.collection.connection._timeout = seconds


# --- a Lite file ---------------------------------------------------------------------------------


def rows(*numbers: int) -> list[TextNode]:
    vectors = np.random.default_rng(0).normal(size=(100, 4))
    return [TextNode(id_=f"{n}", text="a", embedding=vectors[n].tolist()) for n in numbers]


def test_an_index_is_built_while_it_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier, the file was locked until the index was built: half a minute for 10,000 rows."""
    build, gate = Segment.build_or_load_index, Gate()

    def gated(*args: Any) -> None:
        gate.pass_through()
        build(*args)

    with MilvusStore(uri=tmp_path / "x.db", collection_name="c", dim=4) as store:
        store.add(rows(*range(20)))
        monkeypatch.setattr(Segment, "build_or_load_index", gated)
        with ThreadPoolExecutor(2) as pool:
            finishing = pool.submit(store.finish)
            try:
                assert gate.reached.wait(PATIENCE_S)
                query = VectorStoreQuery(rows(7)[0].embedding, similarity_top_k=1)
                assert pool.submit(store.query, query).result(PATIENCE_S).ids == ["7"]
                assert pool.submit(store.add, rows(21)).result(PATIENCE_S) == ["21"]
                assert not finishing.done()
            finally:
                gate.opened.set()
            finishing.result(PATIENCE_S)
        assert len(list(tmp_path.rglob("*.idx"))) == len(list(tmp_path.rglob("*.parquet"))) == 1
        assert store.count() == 21


def test_an_index_that_cannot_be_built_is_an_error_and_not_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise OSError("no room on the disk")

    with MilvusStore(uri=tmp_path / "x.db", collection_name="c", dim=4) as store:
        store.add(rows(1, 2))
        with monkeypatch.context() as patched:
            patched.setattr(Segment, "build_or_load_index", no_room)
            with pytest.raises(StoreError, match="no room on the disk"):
                store.finish()
        store.finish()
        assert store.count() == 2


def test_half_an_index_that_a_killed_process_left_is_built_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier, the collection could not be opened any more."""
    with MilvusStore(uri=tmp_path / "x.db", collection_name="c", dim=4) as store:
        store.add(rows(*range(50)))
        store.finish()
    (file,) = tmp_path.rglob("*.idx")
    file.write_bytes(file.read_bytes()[:1000])
    with MilvusStore(uri=tmp_path / "x.db", collection_name="c") as store:
        query = VectorStoreQuery(rows(7)[0].embedding, similarity_top_k=1)
        assert store.query(query).ids == ["7"]
        assert store.count() == 50
    assert "its index cannot be read and is rebuilt" in caplog.text
    assert file.stat().st_size > 1000


def test_a_search_has_many_rows_flushed_that_would_be_compared_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_gap.store.searching.MOST_UNFLUSHED", 5)
    flushed = finished(monkeypatch)
    query = VectorStoreQuery([1.0, 0.0, 0.0, 0.0], similarity_top_k=9)
    with MilvusStore(uri=tmp_path / "x.db", collection_name="c", dim=4) as store:
        store.add(rows(*range(5)))
        assert len(store.query(query).ids or []) == 5
        assert flushed == []
        store.add(rows(5))
        assert len(store.query(query).ids or []) == 6
        assert len(store.query(query).ids or []) == 6
        assert flushed == ["c"]
        store.finish()
        assert flushed == ["c"]
        assert len(list(tmp_path.rglob("*.idx"))) == 1


def test_a_background_is_drawn_once_for_searches_that_were_called_for_before(
    tmp_path: Path,
) -> None:
    with DualIndex(str(tmp_path / "x.db"), embed_model=Hashed()) as index:
        index.insert_nodes(nodes(1, 2))

        def drawn() -> int | None:
            found = index.collections()["text"].background("text")
            assert found is not None
            return found.size

        with one_search():
            assert drawn() == 2
            index.insert_nodes(nodes(3))
            assert drawn() == 2  # it was drawn after this search was requested
        with one_search():
            assert drawn() == 3


# --- a server that is lost -----------------------------------------------------------------------


@pytest.fixture
def index(proxy: LossyProxy, tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(
        proxy.address, embed_model=Hashed(), storage_dir=tmp_path / "i", timeout=LONG_S
    ) as opened:
        opened.insert_nodes(nodes(*range(20)))
        yield opened


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls to the database."""
    told: list[str] = []

    def counted(ask: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **arguments: (told.append(ask.__name__), ask(*args, **arguments))[1]

    for name in ("search", "query"):
        monkeypatch.setattr(MilvusClient, name, counted(getattr(MilvusClient, name)))
    return told


async def all_at_once(ask: Callable[[str], Any], number: int = MANY) -> list[Any]:
    return await asyncio.gather(
        *(ask(f"text {n % 20}") for n in range(number)), return_exceptions=True
    )


def keys(found: Any) -> Any:
    return found if isinstance(found, BaseException) else [hit.node_id for hit in found]


def by_threads(ask: Callable[[str], Any], number: int = MANY) -> list[Any]:
    ready = threading.Barrier(number)

    def one(question: int) -> Any:
        ready.wait(PATIENCE_S)
        try:
            return ask(f"text {question % 20}")
        except StoreError as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


@pytest.mark.parametrize("way", ["threads", "tasks", "two loops", "loops in a loop"])
def test_many_at_once_find_what_one_after_the_other_find(index: DualIndex, way: str) -> None:
    retriever = index.as_retriever(hubs=False)
    right = [keys(retriever.retrieve(f"text {n}")) for n in range(20)]
    before = threading.active_count()

    async def within(text: str) -> Any:
        return await asyncio.to_thread(lambda: asyncio.run(retriever.aretrieve(text)))

    match way:
        case "threads":
            found = by_threads(retriever.retrieve)
        case "tasks":
            found = asyncio.run(all_at_once(retriever.aretrieve))
        case "two loops":
            with ThreadPoolExecutor(2) as pool:
                runs = [
                    pool.submit(lambda: asyncio.run(all_at_once(retriever.aretrieve, 20)))
                    for _ in range(2)
                ]
                found = [each for run in runs for each in run.result(2 * PATIENCE_S)]
        case _:
            found = asyncio.run(all_at_once(within, 40))
    assert [keys(each) for each in found] == right * (len(found) // 20)
    assert threading.active_count() - before <= 40  # 32 search legs, for any number of searches


@pytest.mark.parametrize("way", ["threads", "tasks"])
def test_searches_that_wait_while_a_server_is_lost_end_with_the_first(
    index: DualIndex, proxy: LossyProxy, calls: list[str], way: str
) -> None:
    """Earlier, each task that got a free thread waited for the whole timeout: 200 took minutes."""
    retriever = index.as_retriever(hubs=False)
    engine = index.as_query_engine(MockLLM(), multimodal=False)
    right = keys(retriever.retrieve("text 3"))
    set_timeout(index, SHORT_S)
    proxy.freeze()
    calls.clear()

    if way == "threads":
        found = by_threads(retriever.retrieve, 40)
    else:
        found = asyncio.run(all_at_once(retriever.aretrieve))

    assert {type(each) for each in found} == {StoreError}
    assert all("is the server running? timeout= says how long" in str(each) for each in found)
    if way == "tasks":
        assert len(calls) < MANY / 2
    proxy.thaw()
    set_timeout(index, LONG_S)
    assert keys(retriever.retrieve("text 3")) == right
    assert len(index.search("text 3")) > 0
    assert engine.query("text 3").source_nodes


def test_a_search_of_many_calls_waits_no_longer_than_one(
    index: DualIndex, proxy: LossyProxy, calls: list[str]
) -> None:
    """Each answer comes in time, but all of them together do not."""
    retriever = index.as_retriever(complete=True, hubs=False)
    retriever.retrieve("text 1")
    proxy.delay = 1.0
    set_timeout(index, 2.5)
    index._backgrounds.forget()
    calls.clear()

    with pytest.raises(StoreError, match=r"timeout="):
        retriever.retrieve("text 2")
    assert len(calls) <= 8  # of more than that, one after the other
    proxy.delay = 0.0
    set_timeout(index, LONG_S)
    assert keys(retriever.retrieve("text 2"))


def test_a_server_that_is_killed_and_started_again_is_found_and_has_lost_nothing(
    tmp_path: Path,
) -> None:
    with LiteServer(tmp_path / "server.db") as server:
        settings: dict[str, Any] = {"embed_model": Hashed(), "timeout": LONG_S}
        with DualIndex(server.address, storage_dir=tmp_path / "i", **settings) as index:
            retriever = index.as_retriever(hubs=False)
            index.insert_nodes(nodes(*range(20)))
            acknowledged: list[int] = []
            killed, gate = threading.Event(), Gate(at=3)

            def insert() -> None:
                for number in range(20, 40):
                    try:
                        index.insert_nodes(nodes(number))
                    except StoreError:
                        assert killed.is_set()
                        return
                    acknowledged.append(number)
                    gate.pass_through()

            with ThreadPoolExecutor(1) as pool:
                inserting = pool.submit(insert)
                assert gate.reached.wait(PATIENCE_S)
                set_timeout(index, SHORT_S)
                killed.set()
                server.kill()
                gate.opened.set()
                with pytest.raises(StoreError, match="is the server running"):
                    retriever.retrieve("text 3")
                inserting.result(PATIENCE_S)
            server.start()
            set_timeout(index, LONG_S)
            assert "n3" in keys(retriever.retrieve("text 3"))
            there = {node.node_id for node in index.get_nodes([f"n{n}" for n in range(40)])}
            assert {f"n{n}" for n in [*range(20), *acknowledged]} <= there


def test_looking_for_changes_is_not_repeated_for_each_search(
    index: DualIndex, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look calls a server twice, and searches would do this one after the other."""
    monkeypatch.setattr("llama_index_gap.store.reading.STATE_SECONDS", 0.0)
    looks: list[object] = []
    look = Backgrounds._forget_what_changed
    monkeypatch.setattr(
        Backgrounds, "_forget_what_changed", lambda self: (looks.append(self), look(self))[1]
    )
    with one_search():
        for _ in range(5):
            index.collections()["text"].background("text")
        asked = calls.count("query")
        index.collections()["image"].background("text")
        assert len(looks) == 6
        assert asked <= 5  # two counts, and the calls of a first sample
