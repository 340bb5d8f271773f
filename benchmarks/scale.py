"""How an index grows: from ten thousand rows to a million.

    python benchmarks/scale.py --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from llama_index_gap import DualIndex

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
from milvus_server import milvus_process  # noqa: E402
from simulated import BLOCK, SimulatedEmbedding, make_nodes  # noqa: E402

MEGABYTE = 1e6


class Record:
    """What was done and measured so far, in a file, so that a later run goes on from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(self.values, indent=1, ensure_ascii=False))
        beside.replace(self._path)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def fill(index: DualIndex, documents: int, record: Record, key: str) -> None:
    """Insert documents, from the first that is missing, and wait until they are indexed."""
    done = record.values.get(key, {"documents": 0, "seconds": 0.0})
    while done["documents"] < documents:
        start = done["documents"]
        stop = min(documents, start + BLOCK - start % BLOCK)
        SimulatedEmbedding().get_text_embedding(str(start))  # makes the vectors
        nodes = make_nodes(start, stop)
        started = time.perf_counter()
        report = index.insert_nodes(nodes)
        taken = time.perf_counter() - started
        done = {**done, "documents": stop, "seconds": done["seconds"] + taken}
        record.put(key, done)
        rate = 2 * (stop - start) / taken
        left = done["seconds"] / stop * (documents - stop) / 60
        say(
            f"{key}: {2 * stop:,} of {2 * documents:,} rows, {rate:,.0f}/s, "
            f"{left:.0f} minutes left; {report.unchanged:,} were there"
        )
    if "indexed_in" not in done:
        started = time.perf_counter()
        for store in index._stores.values():
            store.finish(flush=True)
        record.put(key, done | {"indexed_in": time.perf_counter() - started})
        say(f"{key}: indexed in {record.values[key]['indexed_in']:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    record = Record(options.data / "record.json")
    with milvus_process(options.data / "server", {}) as (uri, server):
        process = psutil.Process(server.server_proc.pid)
        for rows in options.rows:
            with DualIndex(uri, f"scale_{rows}", SimulatedEmbedding(), timeout=300) as index:
                fill(index, rows // 2, record, f"server/{rows}/insert")
            memory = process.memory_info().rss / MEGABYTE
            say(f"server: {memory:,.0f} MB")


if __name__ == "__main__":
    main()
