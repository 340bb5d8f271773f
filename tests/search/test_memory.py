"""Searches leak no memory: the tests count objects, which no allocator hides."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from paths import PARITY
from recording import articles

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank

TIMES = 30

Ask = Callable[[DualIndex, str], object]


@pytest.fixture(scope="module")
def index(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualIndex]:
    nodes = articles(tmp_path_factory.mktemp("images"))[0]
    uri = str(tmp_path_factory.mktemp("memory") / "gap.db")
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as opened:
        opened.insert_nodes(nodes)
        opened.learn_queries([f"query {number}" for number in range(30)])
        yield opened


def in_threads(index: DualIndex, text: str) -> object:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(index.search, [f"{text} {number}" for number in range(4)]))


def reranking() -> Ask:
    reranker = MultiModalRerank(model=str(PARITY / "jina_m0_tiny"), top_n=2)
    return lambda index, text: index.search(text, reranker=reranker)


def with_tool() -> Ask:
    tools: list[object] = []

    def ask(index: DualIndex, text: str) -> object:
        if not tools:
            tools.append(index.as_retriever(complete=True).as_tool())
        return tools[0](query=text)  # type: ignore[operator]

    return ask


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda index, text: index.search(text),
        lambda: lambda index, text: asyncio.run(index.asearch(text)),
        lambda: in_threads,
        with_tool,
        reranking,
    ],
    ids=["search", "event loops", "threads", "tool", "rerank"],
)
def test_objects_do_not_add_up(
    index: DualIndex, make: Callable[[], Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tool keeps the nodes that it returned, so that an agent can name them: 1,000, here 5.
    monkeypatch.setattr("llama_index_gap.agents.tool._REMEMBERED", 5)
    ask, numbers = make(), count()

    def after(times: int) -> tuple[int, int]:
        for _ in range(times):
            ask(index, f"a query {next(numbers)}")
        gc.collect()
        return len(gc.get_objects()), threading.active_count()

    after(TIMES)  # fills caches
    before, threads = after(TIMES)
    then, threads_then = after(TIMES)

    # The CallbackManager of a model, which is LlamaIndex's, keeps a list for each embedding.
    assert then - before <= TIMES
    assert threads_then <= threads
