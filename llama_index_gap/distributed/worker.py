"""The code of the workers: each opens the index with its own models, and writes parts."""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any

from llama_index.core.schema import BaseNode

import llama_index_gap
from llama_index_gap.distributed.cluster import ClusterError
from llama_index_gap.distributed.parts import digest, documents_of
from llama_index_gap.errors import EXPECTED_ERRORS, EmbeddingError, GapError, InvalidValueError
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.parts import Begun, Part, image_of
from llama_index_gap.index.writing import DOUBLE, IndexReport
from llama_index_gap.readers.records import Skipped
from llama_index_gap.store.connection import one_line

logger = logging.getLogger(__name__)

MOST_TRIES = 3
"""The most workers that may die with one part."""


@dataclass(frozen=True)
class Task:
    """What all parts of one call have in common.

    Attributes:
        opening: the arguments from ``DualIndex.opening``, pickled; unpickling them loads the
            models.
        index_version: the version of the index.
        package_version: the package version of the calling program.
        folder: the working folder of the calling program, for relative paths of models.
    """

    opening: bytes
    index_version: int
    package_version: str
    folder: Path

    def open(self) -> DualIndex:
        """Open the index.

        Raises:
            ClusterError: this machine has another version of the package.
            ValueError: the index was embedded again meanwhile, or has other models.
            ModelError: a model cannot be loaded on this machine.
            StoreError: this machine cannot reach the database.
        """
        if llama_index_gap.__version__ != self.package_version:
            raise ClusterError(
                f"{gethostname()} has llama-index-gap {llama_index_gap.__version__}, but the "
                f"calling program {self.package_version}; install the same version on all machines"
            )
        with suppress(OSError):  # not needed if all paths are absolute
            os.chdir(self.folder)
        opening = pickle.loads(self.opening)  # noqa: S301 - from our own program
        if (roots := opening["image_root"]) is not None:
            # Without these folders, texts can still be indexed; each missing image is reported.
            opening["image_root"] = [folder for folder in roots if Path(folder).is_dir()]
        index = DualIndex(**opening)
        if index.version != self.index_version:
            index.close()
            raise InvalidValueError(
                f"{index.address}: was embedded again while it was filled; run the same again"
            )
        return index


class Journal:
    """Records what the first worker on each part was about to do.

    Runs beside the calling program, so that it survives the death of workers.
    """

    def __init__(self) -> None:
        self._begun: dict[int, Begun] = {}
        self._taken: Counter[int] = Counter()

    def take(self, number: int) -> int:
        """Note that a worker takes a part; returns how many have taken it."""
        self._taken[number] += 1
        return self._taken[number]

    def begin(self, number: int, begun: Begun) -> Begun:
        """Note that a worker begins a part; returns what the first worker noted."""
        return self._begun.setdefault(number, begun)


@dataclass
class Outcome:
    """The result of a part.

    Attributes:
        number: the number of the part.
        nodes: the number of its nodes.
        report: what was written, and what was skipped and why.
        error: the error that stopped it, if any.
    """

    number: int
    nodes: int
    report: IndexReport
    error: Exception | None = None


class PartWriter:
    """A worker.

    Args:
        task: what all parts have in common.
        journal: the handle of a ``Journal``.
        superseded: for each part, digests of the ids of nodes that a later part has again.
        scattered: digests of the documents with nodes in several parts.
    """

    def __init__(
        self,
        task: Task,
        journal: Any,
        superseded: Mapping[int, frozenset[bytes]],
        scattered: frozenset[bytes],
    ) -> None:
        self._task, self._journal = task, journal
        self._superseded, self._scattered = superseded, scattered
        self._index: DualIndex | None = None

    def __call__(self, table: Any) -> Any:
        """Write the parts of an Arrow table; returns a table with the outcome of each."""
        import pyarrow

        rows = zip(table["number"].to_pylist(), table["part"].to_pylist(), strict=True)
        outcomes = [pickle.dumps(self.write(number, packed)) for number, packed in rows]
        return pyarrow.table({"outcome": outcomes})

    def write(self, number: int, packed: bytes) -> Outcome:
        """Write a part; an error becomes part of the outcome."""
        outcome = Outcome(number, 0, IndexReport())
        try:
            part: Part = pickle.loads(packed)  # noqa: S301 - from our own program
            outcome.nodes = len(part.nodes)
            if self._ask("take", number) > MOST_TRIES:
                ends = f"{part.nodes[0].node_id} to {part.nodes[-1].node_id}"
                raise ClusterError(
                    f"{MOST_TRIES} workers in a row died on the nodes {ends}; if they ran out of "
                    "memory, pass a smaller batch_size, or fewer actors"
                )
            if self._index is None:
                self._index = self._task.open()
            outcome.report = self._written(number, part, self._index)
        except EmbeddingError as error:
            # Its message counts only this part, so it is replaced by its cause.
            outcome.error = EmbeddingError(str(error.__cause__ or error))
        except EXPECTED_ERRORS as error:
            outcome.error = _portable(error)
        except ImportError as error:
            outcome.error = ClusterError(
                f"{gethostname()}: {one_line(error)}; install llama-index-gap and the packages of "
                "your models on all machines of the cluster"
            )
        except Exception as error:
            logger.exception("part %d", number)
            outcome.error = ClusterError(
                f"a worker on {gethostname()} failed: {type(error).__name__}: {one_line(error)}"
            )
        return outcome

    def _written(self, number: int, part: Part, index: DualIndex) -> IndexReport:
        documents = {name for name in documents_of(part.nodes) if digest(name) in self._scattered}
        later = self._superseded.get(number, frozenset())
        again = [node for node in part.nodes if digest(node.node_id) in later]
        if again and part.strict:
            raise InvalidValueError(f"node {again[0].node_id}: {DOUBLE} (strict=True)")
        nodes = [node for node in part.nodes if digest(node.node_id) not in later]
        part = replace(part, nodes=nodes, scattered=frozenset(documents))
        report = index.write_part(part, partial(self._ask, "begin", number))
        report.skipped[:0] = [Skipped(f"node {node.node_id}", DOUBLE) for node in again]
        unseen = {f"node {node.node_id}" for node in nodes if _is_not_here(node)}
        report.skipped[:] = [
            replace(
                skip,
                reason=f"{skip.reason} on {gethostname()}: images must lie at the same "
                "path on all machines",
            )
            if skip.source in unseen
            else skip
            for skip in report.skipped
        ]
        return report

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Ask the journal."""
        import ray

        return ray.get(getattr(self._journal, method).remote(*arguments))


def _is_not_here(node: BaseNode) -> bool:
    """Whether the image of a node is a file that does not exist on this machine."""
    image = image_of(node)
    if image is None or image.image or not image.image_path:
        return False
    try:
        return not Path(image.image_path).exists()
    except (OSError, ValueError):
        return False


def _portable(error: Exception) -> Exception:
    """The error, or one that can be pickled with the same message."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # its constructor may be anything
        kind = ClusterError if isinstance(error, GapError) else InvalidValueError
        return kind(str(error))
    return error
