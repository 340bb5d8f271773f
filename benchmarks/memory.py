"""Checks that memory stays flat over thousands of searches, reranks and event loops.

    python benchmarks/memory.py [--searches 5000] [--reranks 500] [--articles 300] [--quick]

It uses the demo's newsroom with its tiny models on Milvus Lite, with both corrections (hubs, and a
sample of queries that the index has learnt). Each way of asking is repeated with a new query each
time. After each tenth, garbage is collected, and resident memory (Linux) and the number of Python
objects are read. The first tenth is not compared, since caches fill and libraries load. After it, a
leak of one object or 1 kB per search would show as thousands of objects or as megabytes.
``--quick`` is for tests.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RERANKER = ROOT / "llama_index_gap" / "demo" / "reranker"
THREADS = 8


def resident() -> float:
    """Megabytes in use, after the C library has returned its free memory."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ways(
    index: Any, queries: list[str], images: list[Path], searches: int, reranks: int
) -> dict[str, tuple[int, Callable[[int], None]]]:
    """Ways of asking: the number of times, and a function that asks so many times."""
    from llama_index_gap import MultiModalRerank

    numbers = count()

    def text() -> str:
        number = next(numbers)
        return f"{queries[number % len(queries)]} {number}"

    def in_threads(times: int) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda _: index.search(text()), range(times)))

    def each(ask: Callable[[], object]) -> Callable[[int], None]:
        def repeat(times: int) -> None:
            for _ in range(times):
                ask()

        return repeat

    reranker = MultiModalRerank(model=str(RERANKER), top_n=5)
    tool = index.as_retriever(complete=True).as_tool()
    return {
        "texts": (searches, each(lambda: index.search(text()))),
        f"texts, {THREADS} threads": (searches, in_threads),
        "images": (searches, each(lambda: index.search(image=images[next(numbers) % len(images)]))),
        "an event loop each": (reranks, each(lambda: asyncio.run(index.asearch(text())))),
        "an agent's tool": (reranks, each(lambda: tool(query=text()))),
        "reranked": (reranks, each(lambda: index.search(text(), reranker=reranker))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=5_000)
    parser.add_argument("--reranks", type=int, default=500)
    parser.add_argument("--articles", type=int, default=300)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.searches = options.reranks = 10
        options.articles = 100

    from llama_index_gap import DualIndex

    with tempfile.TemporaryDirectory() as work:
        articles = ["--articles", str(options.articles), "--queries", "4"]
        run = "from llama_index_gap.cli.app import main; main()"
        command = [sys.executable, "-c", run, "demo", "--folder", f"{work}/demo", *articles]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        queries = Path(work, "demo", "queries.txt").read_text(encoding="utf-8").splitlines()
        images = sorted(Path(work, "demo", "newsroom", "images").iterdir())
        print(
            f"{'':<20}{'times':>7}  {'MB after each tenth':<52}{'MB more':>8}{'objects more':>14}"
        )
        with DualIndex(f"{work}/demo/newsroom.db") as index:
            asked = ways(index, queries, images, options.searches, options.reranks)
            for name, (times, ask) in asked.items():
                tenths, objects = [], []
                for _ in range(10):
                    ask(times // 10)
                    gc.collect()
                    tenths.append(resident())
                    objects.append(len(gc.get_objects()))
                shown = " ".join(f"{each:.0f}" for each in tenths)
                print(
                    f"{name:<20}{times:>7,}  {shown:<52}{tenths[-1] - tenths[0]:>8.1f}"
                    f"{objects[-1] - objects[0]:>14,}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
