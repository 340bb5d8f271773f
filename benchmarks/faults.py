"""Checks that an index is complete again after its writer was killed and run once more.

    python benchmarks/faults.py [--kills 20] [--documents 200] [--seed 0] [--server]

A process indexes documents, deletes half of the documents of an index, or syncs an index with a
corpus that was moved and edited, on Milvus Lite. It is killed (kill -9) at a random moment: up to
20 ms after a step that is drawn at random. A step is a call of the database or the storing of an
image. Then the same process runs again, and ids, nodes, vectors and images are compared with those
of an undisturbed run. With ``--server``, a Milvus server (2.3.5) is started, killed in the middle
of a write and restarted, three times. Each document has a text and an image; every tenth document
shares the image of the one before. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from PIL import Image

from llama_index_gap import DualIndex, StoreError
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.store.connection import Connection

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

DIMENSIONS, AFTER_SECONDS, SERVER_KILLS, PATIENCE = 64, 0.02, 3, 300
COLUMNS = ("lost rows", "foreign rows", "wrong nodes", "wrong vectors", "lost images", "left over")
# Children are forked from this process, which has imported everything. It never opens a database,
# since a client does not survive a fork.
processes = multiprocessing.get_context("fork")


class Free(MultiModalEmbedding):
    """Vectors from a hash of the text, or of the content of an image file; they cost no time."""

    model_name: str = "free"
    embed_batch_size: int = 1  # small batches: many writes

    def _direction(self, content: bytes) -> list[float]:
        seed = list(hashlib.sha256(content).digest())
        return [float(x) for x in np.random.default_rng(seed).normal(size=DIMENSIONS)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._direction(text.encode())

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._direction(Path(str(img_file_path)).read_bytes())

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)


def corpus(documents: int, *, edited: bool = False) -> list[TextNode]:
    """A corpus; if edited, of each ten documents two are gone, one is changed, one is renamed."""
    nodes: list[TextNode] = []
    for number in range(documents):
        if edited and number % 10 in {2, 5}:
            continue
        name, words = f"d{number}", f"article {number}"
        if edited and number % 10 == 3:
            words = f"another article {number}"
        elif edited and number % 10 == 4:
            name = f"renamed {number}"
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)}
        file, shown = BytesIO(), number - 1 if number % 10 == 9 else number
        Image.new("RGB", (8, 8), (shown % 256, shown // 256, 7)).save(file, "png")
        pixels = base64.b64encode(file.getvalue()).decode()
        nodes += [
            TextNode(id_=f"{name}#text", text=words, relationships=source),
            ImageNode(
                id_=f"{name}#image",
                text=f"caption {number}",
                image=pixels,
                relationships=source,
            ),
        ]
    return nodes


# --- in children ---------------------------------------------------------------------------------


def opened(uri: str, storage: Path) -> DualIndex:
    return DualIndex(uri, embed_model=Free(), storage_dir=storage, timeout=10)


def do(operation: str, index: DualIndex, documents: int) -> None:
    if operation == "index":
        index.insert_nodes(corpus(documents))
    elif operation in {"fill", "sync"}:  # the recorded paths do not exist
        edited = operation == "sync"
        place = Path("/no/such/folder") / ("moved" if edited else "corpus")
        index.sync(Corpus(list(corpus(documents, edited=edited)), [], path=place))
    else:
        for number in range(0, documents, 2):
            index.delete_ref_doc(f"d{number}")


def run(answer: Pipe, operation: str, documents: int, uri: str, storage: Path) -> None:
    """Do the operation; send a message when a step begins and when it ended."""

    def reported(step: Callable[..., Any]) -> Callable[..., Any]:
        def reports(*args: Any, **kwargs: Any) -> Any:
            if not isinstance(args[1], TextNode) or isinstance(args[1], ImageNode):
                answer.send("step")
            return step(*args, **kwargs)

        return reports

    Connection.call = reported(Connection.call)  # type: ignore[method-assign]
    ImageStorage.keep = reported(ImageStorage.keep)  # type: ignore[method-assign]
    try:
        with opened(uri, storage) as index:
            do(operation, index, documents)
    except StoreError as error:  # the server was killed
        answer.send(str(error))
    else:
        answer.send("done")


def run_again(answer: Pipe, operation: str, documents: int, uri: str, storage: Path) -> None:
    """Count the rows, do the operation, and send the contents afterwards."""
    with opened(uri, storage) as index:
        before = sum(index.count().values())
        do(operation, index, documents)
        answer.send((before, contents(index, storage)))


def contents(index: DualIndex, storage: Path) -> dict[str, dict[str, str]]:
    """Hashes of nodes, vectors and images by name, and the number of other files."""
    found: dict[str, dict[str, str]] = {"nodes": {}, "vectors": {}, "images": {}, "records": {}}
    for name, collection in index.collections().items():
        nodes = collection.store.get_nodes()
        labels = collection.store.rows_from(None)
        vectors = collection.store.get_vectors([node.node_id for node in nodes])
        for number in range(len(nodes), collection.store.count()):
            found["nodes"][f"{name}, one more {number}"] = "a row that is there twice"
        for node in nodes:
            fields = {**node.to_dict(), "labels": labels[node.node_id].labels}
            if fields.get("image_path"):
                fields["image_path"] = Path(fields["image_path"]).name
            key = f"{name} {node.node_id}"
            found["nodes"][key] = digest(json.dumps(fields, sort_keys=True).encode())
            found["vectors"][key] = digest(vectors[node.node_id].tobytes())
    for file in storage.rglob("*"):
        if file.is_file():
            folder = file.parent.relative_to(storage).parts
            # Other files have the index' random id in their names, so only their number counts.
            if not folder and file.suffix == ".png":
                found["images"][file.name] = digest(file.read_bytes())
            elif file.name != ".lock":
                kind = folder[0] if folder else file.suffix
                found["records"][kind] = str(int(found["records"].get(kind, 0)) + 1)
    return found


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- in the parent -------------------------------------------------------------------------------


def start(work: Callable[..., None], *arguments: Any) -> tuple[Any, Pipe]:
    answer, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=work, args=(sender, *arguments))
    child.start()
    sender.close()
    return child, answer


def result(child: Any, answer: Pipe) -> Any:
    if not answer.poll(PATIENCE):
        child.kill()
        raise TimeoutError(f"no answer in {PATIENCE} s")
    found = answer.recv()
    child.join()
    return found


def steps_of(run: Callable[..., None], *arguments: Any) -> int:
    """Run undisturbed, and count the steps."""
    child, answer = start(run, *arguments)
    steps = 0
    while (said := answer.recv()) == "step":
        steps += 1
    child.join()
    assert said == "done", said
    return steps


def disturbed(
    run: Callable[..., None],
    step: int,
    seconds: float,
    kill: Callable[[Any], None],
    *arguments: Any,
) -> str:
    """Run, and kill something some time after a step; return how the run ended."""
    child, answer = start(run, *arguments)
    said, steps = "", 0
    with suppress(EOFError):  # the child was killed
        while said in {"", "step"}:
            said = answer.recv()
            steps += said == "step"
            if said == "step" and steps == step:
                time.sleep(seconds)
                kill(child)
    child.join()
    return "killed" if said == "step" else said


def compared(found: dict[str, dict[str, str]], right: dict[str, dict[str, str]]) -> dict[str, int]:
    both = found["nodes"].keys() & right["nodes"].keys()
    records = found["records"].keys() | right["records"].keys()
    return {
        "lost rows": len(right["nodes"].keys() - both),
        "foreign rows": len(found["nodes"].keys() - both),
        "wrong nodes": sum(found["nodes"][key] != right["nodes"][key] for key in both),
        "wrong vectors": sum(found["vectors"][key] != right["vectors"][key] for key in both),
        "lost images": len(right["images"].items() - found["images"].items()),
        "left over": len(found["images"].items() - right["images"].items())
        + sum(
            abs(int(found["records"].get(kind, 0)) - int(right["records"].get(kind, 0)))
            for kind in records
        ),
    }


def show(operation: str, moment: str, ended: str, rows: int, faults: dict[str, int]) -> None:
    cells = [f"{faults[column]:>{len(column)}}" for column in COLUMNS]
    end = ended if ended in {"killed", "done"} else "failed"
    print(f"{operation:<14}{moment:>15}  {end:<9}{rows:>13,}  {'  '.join(cells)}", flush=True)


def on_lite(operation: str, kills: int, documents: int, rng: random.Random, work: Path) -> int:
    """Kill the writing process; return the number of differences."""
    uri, storage = str(work / "gap.db"), work / "images"
    before = work / f"before {operation}"

    def restore() -> None:
        for path in (Path(uri), storage):
            shutil.rmtree(path, ignore_errors=True)
            if (before / path.name).exists():
                shutil.copytree(before / path.name, path)

    before.mkdir()
    restore()
    if operation != "index":
        first = "fill" if operation == "sync" else "index"
        result(*start(run_again, first, documents, uri, storage))
        for path in (Path(uri), storage):
            shutil.copytree(path, before / path.name)
    steps = steps_of(run, operation, documents, uri, storage)
    _, right = result(*start(run_again, operation, documents, uri, storage))
    wrong = 0
    for _ in range(kills):
        restore()
        step, seconds = rng.randint(1, steps), rng.uniform(0, AFTER_SECONDS)
        arguments = (operation, documents, uri, storage)
        ended = disturbed(run, step, seconds, lambda child: child.kill(), *arguments)
        rows, found = result(*start(run_again, *arguments))
        faults = compared(found, right)
        show(operation, f"{step:,} of {steps:,}", ended, rows, faults)
        wrong += sum(faults.values())
    return wrong


def on_server(documents: int, rng: random.Random, work: Path) -> int:
    """Kill the server in the middle of a write; return the number of differences."""
    from milvus_server import milvus_process, why_no_server

    if reason := why_no_server():
        raise SystemExit(reason)
    wrong = steps = 0
    right: dict[str, dict[str, str]] = {}
    for number in range(SERVER_KILLS + 1):
        folder, storage = work / f"server {number}", work / f"server {number} images"
        folder.mkdir()
        with milvus_process(folder) as (url, server):
            start(run, "delete", 0, url, storage)[0].join()  # creates the collections
            arguments = ("index", documents, url, storage)
            if not number:
                steps = steps_of(run, *arguments)
                _, right = result(*start(run_again, *arguments))
                continue
            step = rng.randint(documents, steps)  # after the images are stored
            kill = partial(lambda process, _: process.kill(), server.server_proc)
            ended = disturbed(run, step, rng.uniform(0, AFTER_SECONDS), kill, *arguments)
        with milvus_process(folder) as (url, _):
            rows, found = result(*start(run_again, "index", documents, url, storage))
        faults = compared(found, right)
        show("index, server", f"{step:,} of {steps:,}", ended, rows, faults)
        wrong += sum(faults.values())
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills per operation on Milvus Lite")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", action="store_true", help="also kill a server")
    options = parser.parse_args()
    rng, started = random.Random(options.seed), time.monotonic()
    print(
        f"{'':<14}{'killed at step':>15}  {'outcome':<9}{'rows at kill':>13}  {'  '.join(COLUMNS)}"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder  # an index records its image folders there
        work = Path(folder)
        wrong = 0
        for operation in ("index", "delete", "sync"):
            wrong += on_lite(operation, options.kills, options.documents, rng, work)
        if options.server:
            wrong += on_server(options.documents, rng, work)
    print(f"{wrong} differences, in {time.monotonic() - started:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
