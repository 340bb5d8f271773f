"""Measures the memory for putting a corpus of any length into an index.

    python benchmarks/streaming.py [--rows 10000 200000] [--server] [--steps insert sync …]

Each measurement runs in a separate process. The table shows the process's peak (VmHWM) above its
memory after all imports and after opening the index. Half of the nodes are texts of 600 characters,
half are images with a URL. A vector has 64 numbers from the hash of its input, which costs almost
nothing.

- ``insert``: ``insert_nodes`` with a generator of nodes.
- ``again``: the same, into the index that ``insert`` made, which has all nodes.
- ``sync``: ``sync`` with the generator, into an empty index.
- ``resync``: the same, into the index that ``sync`` made.
- ``bare``: the same rows, put into two collections with pymilvus alone, in windows of 1,000. This
  is Milvus' own share. On Milvus Lite the database is in the process; on a server it is not.
  ``--server`` starts one (Milvus 2.3.5).
- ``read``: ``read_corpus`` on a JSONL file of as many records, node by node.
- ``index``: ``refresh_ref_docs`` with that file.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = ("bare", "insert", "again", "sync", "resync", "read", "index")
DIM, AT_ONCE = 64, 1_000


def peak() -> int:
    """The peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def text_of(number: int) -> str:
    return f"Article {number} says something that no other one says. " * 11


def nodes_of(rows: int) -> Iterator[Any]:
    from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode

    for number in range(rows // 2):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{number}")}
        yield TextNode(id_=f"d{number}#text", text=text_of(number), relationships=source)
        url = f"https://example.org/{number}.png"
        yield ImageNode(id_=f"d{number}#image", image_url=url, relationships=source)


def vector_of(content: str) -> list[float]:
    import numpy as np

    seed = hashlib.shake_256(content.encode()).digest(4 * DIM)
    return [float(x) for x in np.frombuffer(seed, np.int32) / 2**31]


def model() -> Any:
    from llama_index.core.embeddings import MultiModalEmbedding

    class Free(MultiModalEmbedding):
        """Vectors from a hash of the text or of the image's name."""

        model_name: str = "free"

        def _get_text_embedding(self, text: str) -> list[float]:
            return vector_of(text)

        def _get_image_embedding(self, img_file_path: Any) -> list[float]:
            return vector_of(str(img_file_path))

        _get_query_embedding = _get_text_embedding

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return vector_of(query)

        async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
            return vector_of(str(img_file_path))

    return Free(embed_batch_size=64)


def put_bare(uri: str, rows: int) -> None:
    """Insert the same rows with pymilvus alone."""
    from llama_index_gap.store.milvus import MilvusStore
    from llama_index_gap.store.rows import VECTOR_FIELD, to_row

    names = {"text": f"bare_{rows}_text", "image": f"bare_{rows}_image"}
    stores = {part: MilvusStore(uri=uri, collection_name=c, dim=DIM) for part, c in names.items()}
    clients = {part: store.client for part, store in stores.items()}
    lengths = stores["text"].collection.max_lengths
    nodes = nodes_of(rows)
    while some := list(itertools.islice(nodes, AT_ONCE)):
        for part, name in names.items():
            kind = "TextNode" if part == "text" else "ImageNode"
            data = [
                to_row(node, lengths) | {VECTOR_FIELD: vector_of(node.node_id)}
                for node in some
                if node.class_name() == kind
            ]
            clients[part].insert(name, data)
    for part, name in names.items():
        clients[part].release_collection(name)
        clients[part].flush(name)
        clients[part].load_collection(name)
    for store in stores.values():
        store.close()


def write_records(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"id": f"d{number}", "text": text_of(number)}) + "\n")


def measure(step: str, uri: str, rows: int, folder: Path) -> dict[str, float]:
    """Seconds and bytes of a step, measured in this process."""
    from llama_index_gap import DualIndex, read_corpus

    # Do all imports and one-time work before memory is read.
    embed_model, records = model(), folder / f"{rows}.jsonl"
    with DualIndex(str(folder / "warm.db"), embed_model=embed_model, overwrite=True) as warm:
        warm.sync(nodes_of(200), source="warm")
        warm.insert_nodes(nodes_of(200))
    if step in {"read", "index"} and not records.exists():
        write_records(records, rows)
    name = "synced" if step in {"sync", "resync"} else "read" if step == "index" else "inserted"
    name += f"_{rows}"
    fresh = step in {"insert", "sync", "index"}
    before, started, used = peak(), time.perf_counter(), time.process_time()
    if step == "bare":
        put_bare(uri, rows)
    elif step == "read":
        corpus = read_corpus(records)
        assert sum(1 for _ in corpus) == len(corpus) >= rows
    else:
        with DualIndex(uri, name, embed_model=embed_model, overwrite=fresh) as index:
            if step == "index":
                index.refresh_ref_docs(read_corpus(records))
            elif step in {"sync", "resync"}:
                index.sync(nodes_of(rows), source="benchmark")
            else:
                index.insert_nodes(nodes_of(rows))
            assert sum(index.count().values()) == rows
    return {
        "bytes": peak() - before,
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - used,
    }


def in_process(step: str, uri: str, rows: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", step, "--uri", uri]
    command += ["--folder", str(folder), "--rows", str(rows)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    found: dict[str, float] = json.loads(shown.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument(
        "--server", action="store_true", help="use a Milvus server instead of Milvus Lite"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.uri, asked.rows[0], asked.folder)))
        return
    where = "a Milvus server" if asked.server else "Milvus Lite"
    print(f"Megabytes above the start, with {where}; clock seconds, processor seconds")
    print(f"{'step':<10}" + "".join(f"{rows:>28,}" for rows in asked.rows))
    with tempfile.TemporaryDirectory() as work, ExitStack() as started:
        server = None
        if asked.server:
            sys.path.insert(0, str(ROOT / "tests" / "support"))
            from milvus_server import milvus_server

            server = started.enter_context(milvus_server(Path(work) / "server"))
        for step in asked.steps:
            print(f"{step:<10}", end="", flush=True)
            for rows in asked.rows:
                folder = Path(work) / str(rows)
                folder.mkdir(exist_ok=True)
                lite = folder / ("bare.db" if step == "bare" else f"{step.removeprefix('re')}.db")
                if step == "again":
                    lite = folder / "insert.db"
                found = in_process(step, server or str(lite), rows, folder)
                took = f"{found['seconds']:,.0f} s, {found['processor']:,.0f} s"
                print(f"{found['bytes'] / 1e6:>12,.0f} MB {took:>12}", end="", flush=True)
            print()


if __name__ == "__main__":
    main()
