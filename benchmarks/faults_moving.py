"""Checks that a copied or re-embedded index is complete after a kill and a second run.

    python benchmarks/faults_moving.py [--kills 20] [--documents 200] [--seed 0] [--server]

A process copies an index to another Milvus Lite file, or embeds it again with another model. It is
killed (kill -9) at a random moment: up to 20 ms after a step that is drawn at random. A step is a
call of the database or the copying of an image. After the kill, there must be no index, the whole
old one or the whole new one. Then the same process runs again; all rows of all collections,
including learnt queries, their properties, and the images that the index keeps are compared with
those of an undisturbed run. With ``--server``, the same is done from a file to a Milvus server
(2.3.5) and on the server, which is also killed once. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from faults import AFTER_SECONDS, Free, corpus, digest, disturbed, result, start, steps_of

from llama_index_gap import DualIndex, GapError, MilvusStore
from llama_index_gap.index.copying import copy_index
from llama_index_gap.index.dropping import drop_index
from llama_index_gap.index.image_storage import ImageStorage
from llama_index_gap.index.reembedding import reembed_index
from llama_index_gap.index.versions import IndexAddress, find_indexes, the_index
from llama_index_gap.store import collection
from llama_index_gap.store.connection import Connection, StoreError
from llama_index_gap.store.database import Database

SERVER_KILLS = 3
collection.MESSAGE_BYTES = 2**20  # small batches: many reads and writes
COLUMNS = ("lost rows", "foreign rows", "wrong rows", "properties", "images", "half indexes")


class Other(Free):
    """Other vectors with the same number of dimensions."""

    model_name: str = "other"

    def _direction(self, content: bytes) -> list[float]:
        return super()._direction(b"other " + content)


# --- in children ---------------------------------------------------------------------------------


def make(answer: Pipe, documents: int, at: IndexAddress) -> None:
    with DualIndex(at.uri, embed_model=Free(), storage_dir=at.storage) as index:
        index.insert_nodes(corpus(documents))
        index.learn_queries([f"query {number}" for number in range(40)])
    answer.send("done")


def do(operation: str, source: IndexAddress, target: IndexAddress) -> None:
    if operation == "copy":
        copy_index(source, target)
    else:
        reembed_index(target, Other())


def run(answer: Pipe, operation: str, source: IndexAddress, target: IndexAddress) -> None:
    """Do the operation; send a message when a step begins and when it ended."""

    def reported(step: Callable[..., Any]) -> Callable[..., Any]:
        def reports(*args: Any, **kwargs: Any) -> Any:
            answer.send("step")
            return step(*args, **kwargs)

        return reports

    Connection.call = reported(Connection.call)  # type: ignore[method-assign]
    ImageStorage.adopt = reported(ImageStorage.adopt)  # type: ignore[method-assign]
    try:
        do(operation, source, target)
    except StoreError as error:  # the server was killed
        answer.send(str(error))
    else:
        answer.send("done")


def look(answer: Pipe, target: IndexAddress) -> None:
    """Send the rows of the version of the index that opens, or why none opens."""
    if not Path(target.uri).exists() and "://" not in target.uri:
        answer.send("no such database")
        return
    try:
        with Database(target.uri, target.token, target.timeout) as database:
            index = the_index(database, target)
            found = rows_of(target, index.versions[index.current or 0])
        answer.send({name.partition("_v")[0]: rows for name, rows in found.items()})
    except GapError as error:
        answer.send(str(error))


def run_again(answer: Pipe, operation: str, source: IndexAddress, target: IndexAddress) -> None:
    do(operation, source, target)
    answer.send(contents(target))


def restore(answer: Pipe, source: IndexAddress, target: IndexAddress) -> None:
    with suppress(GapError):
        drop_index(target)
    copy_index(source, target)
    answer.send("done")


def rows_of(at: IndexAddress, parts: dict[str, str]) -> dict[str, dict[str, str]]:
    """Hashes of the rows of each collection, by row id."""
    found = {}
    for name in parts.values():
        with MilvusStore(uri=at.uri, collection_name=name, timeout=at.timeout) as store:
            rows = [row for page in store.collection.pages(["*"]) for row in page]
            found[name] = {
                row["id"]: digest(json.dumps(dict(row), sort_keys=True).encode()) for row in rows
            }
            for number in range(len(rows), store.count()):
                found[name][f"one more {number}"] = "a row that is there twice"
    return found


def contents(at: IndexAddress) -> dict[str, Any]:
    with Database(at.uri, at.token, at.timeout) as database:
        indexes = find_indexes(database, at.name)
        parts = [each for index in indexes for each in index.versions.values()]
        names = {name: name for each in parts for name in each.values()}
        properties = {name: database.properties(name) or {} for name in names}
    for each in properties.values():
        if "images" in each:  # its id is random
            each["images"] = str(json.loads(each["images"])["folders"])
    kept = {}
    for file in at.storage.rglob("*"):
        if file.is_file() and file.name != ".lock":
            folder = file.parent.relative_to(at.storage).parts
            if folder:  # named by the index' random id, so only their number counts
                kind = folder[0] if len(folder) == 1 and "." not in folder[0] else "users"
                kept[kind] = str(int(kept.get(kind, "0")) + 1)
            else:
                kept[file.name] = digest(file.read_bytes())
    return {"rows": rows_of(at, names), "properties": properties, "images": kept}


# --- in the parent -------------------------------------------------------------------------------


def compared(found: dict[str, Any], right: dict[str, Any]) -> dict[str, int]:
    have, want = (
        {(name, row): hashed for name, rows in each["rows"].items() for row, hashed in rows.items()}
        for each in (found, right)
    )
    both = have.keys() & want.keys()
    return {
        "lost rows": len(want.keys() - both),
        "foreign rows": len(have.keys() - both) + len(found["rows"].keys() - right["rows"].keys()),
        "wrong rows": sum(have[key] != want[key] for key in both),
        "properties": sum(
            found["properties"].get(name) != right["properties"].get(name)
            for name in found["properties"].keys() | right["properties"].keys()
        ),
        "images": sum(
            found["images"].get(name) != right["images"].get(name)
            for name in found["images"].keys() | right["images"].keys()
        ),
    }


def show(operation: str, moment: str, ended: str, faults: dict[str, int]) -> None:
    cells = [f"{faults[column]:>{len(column)}}" for column in COLUMNS]
    end = ended if ended in {"killed", "done"} else "failed"
    print(f"{operation:<17}{moment:>15}  {end:<9}{'  '.join(cells)}", flush=True)


class Trial:
    """Kills of one operation, from one place to another.

    Args:
        operation: ``copy`` or ``reembed``.
        where: its place, for the output.
        source: a complete index.
        target: the index that the operation writes.
    """

    def __init__(
        self, operation: str, where: str, source: IndexAddress, target: IndexAddress
    ) -> None:
        self.title = f"{operation}, {where}"
        self.arguments = (operation, source, target)
        self.operation, self.source, self.target = operation, source, target
        self.restore()
        self.before = result(*start(look, target))
        self.steps = steps_of(run, *self.arguments)
        self.right = result(*start(run_again, *self.arguments))
        self.after = result(*start(look, target))
        assert isinstance(self.after, dict), self.after

    def restore(self) -> None:
        """Restore the state before the operation."""
        if "://" not in self.target.uri:
            shutil.rmtree(self.target.uri, ignore_errors=True)
            shutil.rmtree(self.target.storage, ignore_errors=True)
            if self.operation == "reembed":
                shutil.copytree(self.source.uri, self.target.uri)
                shutil.copytree(self.source.storage, self.target.storage)
        elif self.operation == "reembed":
            result(*start(restore, self.source, self.target))
        else:
            result(*start(drop, self.target))

    def kill(self, step: int, seconds: float, kill: Callable[[Any], None]) -> str:
        self.restore()
        return disturbed(run, step, seconds, kill, *self.arguments)

    def judge(self, step: int, ended: str) -> int:
        """Open the index, run again, and compare; return the number of differences."""
        opens = result(*start(look, self.target))
        faults = compared(result(*start(run_again, *self.arguments)), self.right)
        nothing = isinstance(opens, str) and isinstance(self.before, str)
        faults["half indexes"] = int(not nothing and opens not in (self.before, self.after))
        if faults["half indexes"]:
            print(opens if isinstance(opens, str) else {k: len(v) for k, v in opens.items()})
        show(self.title, f"{step:,} of {self.steps:,}", ended, faults)
        return sum(faults.values())


def drop(answer: Pipe, target: IndexAddress) -> None:
    with suppress(GapError):
        drop_index(target)
    answer.send("done")


def tries(trial: Trial, kills: int, rng: random.Random) -> int:
    wrong = 0
    for _ in range(kills):
        step = rng.randint(1, trial.steps)
        ended = trial.kill(step, rng.uniform(0, AFTER_SECONDS), lambda child: child.kill())
        wrong += trial.judge(step, ended)
    return wrong


def on_server(source: IndexAddress, rng: random.Random, work: Path) -> int:
    from milvus_server import milvus_process, why_no_server

    if reason := why_no_server():
        raise SystemExit(reason)
    wrong = 0
    for operation in ("copy", "reembed"):
        folder = work / f"server {operation}"
        folder.mkdir()
        with milvus_process(folder) as (url, server):
            target = IndexAddress(url, "gap", None, work / f"{operation} images", 10)
            trial = Trial(operation, "server", source, target)
            wrong += tries(trial, SERVER_KILLS, rng)
            step = rng.randint(trial.steps // 3, trial.steps)
            kill = partial(lambda process, _: process.kill(), server.server_proc)
            ended = trial.kill(step, rng.uniform(0, AFTER_SECONDS), kill)
        with milvus_process(folder) as (url, _):
            trial.target = IndexAddress(url, "gap", None, target.storage, 10)
            trial.arguments = (operation, source, trial.target)
            trial.title = f"{operation}, its server"
            wrong += trial.judge(step, ended)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills per operation on Milvus Lite")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", action="store_true", help="also on a server, and kill it")
    options = parser.parse_args()
    rng, started = random.Random(options.seed), time.monotonic()
    print(f"{'':<17}{'killed at step':>15}  {'outcome':<9}{'  '.join(COLUMNS)}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder  # an index records its image folders there
        work = Path(folder)
        source = IndexAddress(str(work / "from.db"), "gap", None, work / "from images")
        target = IndexAddress(str(work / "gap.db"), "gap", None, work / "images")
        result(*start(make, options.documents, source))
        wrong = 0
        for operation in ("copy", "reembed"):
            wrong += tries(Trial(operation, "Lite", source, target), options.kills, rng)
        if options.server:
            wrong += on_server(source, rng, work)
    print(f"{wrong} differences, in {time.monotonic() - started:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
