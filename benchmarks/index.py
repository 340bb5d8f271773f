"""Measures opening an index, inserting nodes that it already has, and completing documents.

    python benchmarks/index.py [--against FOLDER] [--rows 10000]

``--against`` names the checkout of another commit, such as from ``git worktree add FOLDER COMMIT``:
both measure the same in separate processes, in turns, and the table shows the ratio. The index is
on Milvus Lite, with vectors of 64 numbers that cost nothing to compute; figures are medians of 5
runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RUNS, QUERIES = 5, 20
STEPS = {
    "open": "open an index from disk",
    "unchanged": "insert unchanged nodes",
    "sync": "sync an unchanged corpus",
    "plain": "a retrieval",
    "complete": "a retrieval, complete=True",
}


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Seconds of each step, measured in this process."""
    import numpy as np
    from llama_index.core.embeddings import MultiModalEmbedding
    from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode

    from llama_index_gap import DualIndex

    class Free(MultiModalEmbedding):
        """Vectors from a hash of the text or of the image's name."""

        model_name: str = "free"

        def _get_text_embedding(self, text: str) -> list[float]:
            return list(np.random.default_rng(list(text.encode())).normal(size=64))

        def _get_image_embedding(self, img_file_path: Any) -> list[float]:
            return self._get_text_embedding(str(img_file_path))

        _get_query_embedding = _get_text_embedding

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
            return self._get_text_embedding(str(img_file_path))

    nodes: list[TextNode] = []
    for number in range(rows // 2):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{number}")}
        words = {"id_": f"d{number}#text", "text": f"article {number}", "relationships": source}
        image = {"id_": f"d{number}#image", "image_path": f"/{number}.png", "relationships": source}
        nodes += [TextNode(**words), ImageNode(**image)]
    uri, taken = str(folder / "gap.db"), dict[str, float]()

    def timed(step: str, started: float) -> None:
        taken[step] = time.perf_counter() - started

    if not Path(uri).exists():
        with DualIndex(uri, embed_model=Free()) as index:
            index.insert_nodes(nodes)
        return taken
    DualIndex(uri, embed_model=Free()).close()  # the first index in a process imports the client
    started = time.perf_counter()
    with DualIndex(uri, embed_model=Free()) as index:
        timed("open", started)
        started = time.perf_counter()
        report = index.insert_nodes(nodes)
        timed("unchanged", started)
        assert report.unchanged == len(nodes), report.summary()
        if hasattr(index, "sync"):  # older commits lack it
            index.sync(nodes, source="benchmark")
            started = time.perf_counter()
            index.sync(nodes, source="benchmark")
            timed("sync", started)
        for step, complete in (("plain", False), ("complete", True)):
            retriever = index.as_retriever(complete=complete)
            retriever.retrieve("a first query, which draws the samples")
            started = time.perf_counter()
            for number in range(QUERIES):
                retriever.retrieve(f"query {number}")
            timed(step, started)
            taken[step] /= QUERIES
    return taken


def in_process(checkout: Path, folder: Path, rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(folder), "--rows", str(rows)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    shown = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=checkout
    )
    found: dict[str, float] = json.loads(shown.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.rows)))
        return
    checkouts = {
        "here": ROOT,
        **({"against": options.against.resolve()} if options.against else {}),
    }
    with tempfile.TemporaryDirectory() as work:
        for name in checkouts:
            (Path(work) / name).mkdir()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
        for run in range(RUNS + 1):  # the first run makes the index
            for name, checkout in checkouts.items():
                taken = in_process(checkout, Path(work) / name, options.rows)
                if run:
                    found[name].append(taken)
    print(f"{options.rows:,} rows, milliseconds" + "".join(f"{name:>12}" for name in checkouts))
    for step, words in STEPS.items():
        values = [  # an older commit lacks sync
            1e3 * median(taken.get(step, math.nan) for taken in each) for each in found.values()
        ]
        ratio = f"   ×{values[0] / values[1]:.2f}" if len(values) > 1 else ""
        print(f"{words:<26}" + "".join(f"{value:>12.1f}" for value in values) + ratio)


if __name__ == "__main__":
    main()
