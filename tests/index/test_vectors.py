"""A node that cannot be embedded is skipped; a model or service that fails is raised."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from content_vectors import ContentVectors
from llama_index.core.schema import ImageNode, TextNode
from remote_embedding import EmbeddingServer, RemoteEmbedding, embedding_server, vectors

from llama_index_gap.errors import EmbeddingError
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.writing import IndexReport

NODES = [TextNode(id_=f"{number:03}", text=f"text {number}") for number in range(120)]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server() as running:
        yield running


def gone(number: int, texts: list[str]) -> tuple[int, Any] | None:
    """The service is gone from its 8th request on."""
    return None if number >= 8 else vectors(number, texts)


def test_a_service_that_goes_away_is_raised_and_a_second_run_goes_on(
    server: EmbeddingServer, tmp_path: Path
) -> None:
    server.answer = gone
    model = RemoteEmbedding(url=server.url, embed_batch_size=10)
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        with pytest.raises(EmbeddingError, match=r"ConnectionError.*40 texts .* continues from"):
            index.insert_nodes(NODES)
        assert len(server.requests) == 8  # the index does not retry
        assert index.count()["text"] == 40

        server.answer = vectors
        assert index.insert_nodes(NODES) == IndexReport(text_rows=80, unchanged=40)


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        ((500, "out of order"), 1),
        ((503, "overloaded"), 1),
        ((429, "slow down"), 1),
        ((401, "who are you?"), 1),
        ((404, "no such model"), 1),
        ((400, "no such model"), 3),  # perhaps the nodes' fault, so something simple is tried
        ((200, b"<html>Please log in</html>"), 1),
        ((200, {"error": "no such model"}), 3),
        ((200, []), 4),  # a pass has four batches
        ((200, None), 3),
    ],
)
def test_a_service_that_fails_from_the_start(
    server: EmbeddingServer, tmp_path: Path, answer: tuple[int, Any], requests: int
) -> None:
    server.answer = lambda _, __: answer
    model = RemoteEmbedding(url=server.url, embed_batch_size=10)

    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        with pytest.raises(EmbeddingError, match="content vectors: "):
            index.insert_nodes(NODES)
        assert len(server.requests) == requests


def test_a_text_that_the_service_refuses_is_skipped(
    server: EmbeddingServer, tmp_path: Path
) -> None:
    def answer(number: int, texts: list[str]) -> tuple[int, Any]:
        return (400, "too long") if "text 57" in texts else vectors(number, texts)

    server.answer = answer
    model = RemoteEmbedding(url=server.url, embed_batch_size=10)
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        report = index.insert_nodes(NODES)

    assert report.text_rows == 119
    assert [skip.source for skip in report.skipped] == ["node 057"]


class Broken(ContentVectors):
    """Fails on known texts and images, and from some call on for all inputs."""

    error: Any = None
    names: set[str] = set()
    good_for: float = math.inf

    def _fail(self, name: str) -> None:
        if name in self.names or len(self.embedded) >= self.good_for:
            raise self.error

    def _get_text_embedding(self, text: str) -> list[float]:
        self._fail(text)
        return super()._get_text_embedding(text)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        self._fail(Path(img_file_path).name)
        return super()._get_image_embedding(img_file_path)


class OutOfMemoryError(RuntimeError):
    """Named as in torch."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("device-side assert"),
        TimeoutError("timed out"),
        ConnectionResetError("reset by peer"),
        MemoryError(),
        KeyError("embeddings"),
        ValueError("bad answer"),
        OSError("no space left on device"),
    ],
)
@pytest.mark.parametrize("sort", ["text", "image"])
def test_a_model_that_fails_is_raised(
    tmp_path: Path, noise_files: list[str], error: Exception, sort: str
) -> None:
    nodes = (
        NODES[:10]
        if sort == "text"
        else [ImageNode(id_=str(i), image_path=path) for i, path in enumerate(noise_files)]
    )
    model = Broken(error=error, good_for=4, embed_batch_size=1)

    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        with pytest.raises(EmbeddingError, match=type(error).__name__) as raised:
            index.insert_nodes(nodes)
        assert index.count()[sort] == 4  # a write has four batches
        assert raised.value.__cause__ is not None
        model.good_for = math.inf
        assert index.insert_nodes(nodes).unchanged == 4


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("bad"), RuntimeError("bad")])
def test_a_bad_node_of_a_model_that_works_is_skipped(
    tmp_path: Path, noise_files: list[str], error: Exception
) -> None:
    bad = {"text 3", "text 7", Path(noise_files[1]).name}
    images = [ImageNode(id_=f"i{i}", image_path=path) for i, path in enumerate(noise_files)]
    model = Broken(error=error, names=bad)

    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        report = index.insert_nodes([*NODES, *images])

    assert (report.text_rows, report.image_rows) == (118, 4)
    assert {skip.source for skip in report.skipped} == {"node 003", "node 007", "node i1"}


def test_a_vector_without_a_direction(tmp_path: Path) -> None:
    """A single one is the node's fault; if all have none, the model fails."""

    class Blank(ContentVectors):
        blank: list[str] = ["text 5"]

        def _get_text_embedding(self, text: str) -> list[float]:
            if text in self.blank or not self.blank:
                return [math.nan] * 16
            return super()._get_text_embedding(text)

    model = Blank()
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        (skipped,) = index.insert_nodes(NODES[:10]).skipped
        assert skipped.source == "node 005"
        model.blank = []
        with pytest.raises(EmbeddingError, match="no direction"):
            index.insert_nodes(NODES)


def test_vectors_of_another_length_are_the_models_fault(tmp_path: Path) -> None:
    class Changed(ContentVectors):
        length: int = 16

        def _get_text_embedding(self, text: str) -> list[float]:
            return super()._get_text_embedding(text)[: self.length]

    model = Changed()
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        model.length = 8
        with pytest.raises(EmbeddingError, match="8 dimensions, but the index has 16"):
            index.insert_nodes(NODES)


def test_queries_are_learnt_by_a_service_that_is_there(
    server: EmbeddingServer, tmp_path: Path
) -> None:
    class Asked(RemoteEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embeddings([query])[0]

    server.answer = lambda number, texts: None if number >= 40 else vectors(number, texts)
    queries = [f"query {number}" for number in range(100)]
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Asked(url=server.url)) as index:
        with pytest.raises(EmbeddingError, match="ConnectionError"):
            index.learn_queries(queries)
        assert len(server.requests) == 40
        assert index.query_sample().texts == 0


OPEN = """
import sys
from llama_index_gap import MilvusStore
with MilvusStore(uri=sys.argv[1], collection_name="gap_text") as store:
    print(store.count())
"""


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
def test_a_build_that_fails_lets_go_of_the_file(tmp_path: Path, error: BaseException) -> None:
    uri = str(tmp_path / "gap.db")
    model = Broken(error=error, good_for=4, embed_batch_size=1)
    expected = EmbeddingError if isinstance(error, ValueError) else type(error)

    with pytest.raises(expected):
        DualIndex.from_documents(NODES, uri, embed_model=model)

    shown = subprocess.run(
        [sys.executable, "-c", OPEN, uri], capture_output=True, text=True, check=False
    )
    assert shown.stdout == "4\n", shown.stderr
    model.good_for = math.inf
    with DualIndex.from_documents(NODES, uri, embed_model=model) as index:
        assert index.report == IndexReport(text_rows=116, unchanged=4)
