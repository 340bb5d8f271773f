"""A worker without Ray, in this process and on Milvus Lite."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compass import Compass
from index_nodes import of_document
from llama_index.core.schema import ImageNode, TextNode

import llama_index_gap
from llama_index_gap.distributed.cluster import ClusterError
from llama_index_gap.distributed.parts import digest
from llama_index_gap.distributed.worker import MOST_TRIES, Journal, PartWriter, Task
from llama_index_gap.errors import EmbeddingError
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.parts import Begun, Part
from llama_index_gap.index.writing import IndexReport


class Alone(PartWriter):
    """A worker whose journal is in the same process."""

    def _ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self._journal, method)(*arguments)


class Failing(Compass):
    def get_text_embedding_batch(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no service")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Compass()) as index:
        opening = pickle.dumps(index.opening())
    return Task(opening, 0, llama_index_gap.__version__, tmp_path)


@pytest.fixture(autouse=True)
def _stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # restores the folder that a worker changes


def alone(task: Task, later: Any = None, scattered: frozenset[bytes] = frozenset()) -> Alone:
    return Alone(task, Journal(), later or {}, scattered)


def texts(*angles: int) -> list[TextNode]:
    return [
        TextNode(id_=f"t{angle}", text=f"{angle} text", relationships=of_document(f"{angle}"))
        for angle in angles
    ]


def test_a_part_is_written_and_reported(task: Task) -> None:
    outcome = alone(task).write(7, pickle.dumps(Part(texts(0, 90))))

    assert (outcome.number, outcome.nodes, outcome.error) == (7, 2, None)
    assert outcome.report == IndexReport(text_rows=2)


def test_the_first_beginning_counts() -> None:
    journal = Journal()

    assert journal.begin(3, Begun({"text": 0}, 0)) == Begun({"text": 0}, 0)
    assert journal.begin(3, Begun({"text": 5}, 0)) == Begun({"text": 0}, 0)
    assert [journal.take(3), journal.take(3), journal.take(4)] == [1, 2, 1]


def test_a_part_that_kills_its_workers_is_given_up(task: Task) -> None:
    worker, part = alone(task), pickle.dumps(Part(texts(0, 90)))
    for _ in range(MOST_TRIES):
        assert worker.write(0, part).error is None

    error = worker.write(0, part).error
    assert isinstance(error, ClusterError)
    assert "3 workers in a row died on the nodes t0 to t90" in str(error)


def test_of_one_id_in_several_parts_the_last_is_taken(task: Task) -> None:
    worker = alone(task, {0: frozenset({digest("t0")})})
    report = worker.write(0, pickle.dumps(Part(texts(0, 90)))).report

    assert report.text_rows == 1
    assert [(each.source, each.reason) for each in report.skipped] == [
        ("node t0", "a later node has the same id and replaces it")
    ]
    error = worker.write(0, pickle.dumps(Part(texts(0, 90), strict=True))).error
    assert "node t0: a later node has the same id" in str(error)


def test_nothing_is_deleted_of_a_scattered_document(task: Task) -> None:
    worker = alone(task, scattered=frozenset({digest("0")}))
    worker.write(0, pickle.dumps(Part(texts(0))))
    other = TextNode(id_="u0", text="0 text", relationships=of_document("0"))

    assert worker.write(1, pickle.dumps(Part([other], whole=True))).report.deleted == 0
    assert alone(task).write(1, pickle.dumps(Part([other], whole=True))).report.deleted == 1


def test_an_image_that_this_machine_does_not_see_is_skipped(task: Task) -> None:
    images = [
        ImageNode(id_="i", image_path="/nowhere/north"),  # which the model rejects as an image
        ImageNode(id_="i0", image_path="/nowhere/0 image"),
    ]
    (skipped,) = alone(task).write(0, pickle.dumps(Part(images))).report.skipped

    assert skipped.source == "node i"
    assert skipped.reason.endswith("images must lie at the same path on all machines")


def test_a_model_that_fails_says_so_without_the_counts_of_one_part(task: Task) -> None:
    opening = pickle.loads(task.opening) | {"embed_model": Failing()}
    error = (
        alone(replace(task, opening=pickle.dumps(opening)))
        .write(0, pickle.dumps(Part(texts(0))))
        .error
    )

    assert isinstance(error, EmbeddingError)
    assert str(error) == "compass: ConnectionError: no service"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package_version": "0.0"}, r"calling program 0\.0; install the same version"),
        ({"index_version": 3}, "was embedded again while it was filled; run the same again"),
        ({"opening": b"cnot_a_module\nModel\n."}, "No module named 'not_a_module'; install"),
        ({"opening": b"no pickle"}, "failed: UnpicklingError"),
    ],
)
def test_a_worker_that_cannot_open_the_index_says_why(
    task: Task, changes: dict[str, Any], message: str
) -> None:
    error = alone(replace(task, **changes)).write(0, pickle.dumps(Part(texts(0)))).error

    with pytest.raises((ClusterError, ValueError), match=message):
        raise error or AssertionError
