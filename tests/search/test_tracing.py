"""The spans that LlamaIndex's instrumentation shows of a search; with LlamaIndex's handler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from paths import PARITY
from recording import articles

from llama_index_gap import (
    DualEncoderEmbedding,
    DualIndex,
    DualIndexRetriever,
    MultiModalRerank,
    StoreError,
)
from llama_index_gap.search.tracing import in_span

RERANKER = PARITY / "jina_m0_tiny"
LEGS = ["search_text", "search_image"]


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    """Collects spans during a test."""
    handler, root = SimpleSpanHandler(), get_dispatcher()
    root.add_span_handler(handler)
    yield handler
    root.span_handlers.remove(handler)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[TextNode]:
    return articles(tmp_path_factory.mktemp("images"))[0]


@pytest.fixture(scope="module")
def index(
    nodes: list[TextNode], tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    uri = str(tmp_path_factory.mktemp("tracing") / "gap.db")
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as opened:
        opened.insert_nodes(nodes)
        yield opened


def name(span: Any) -> str:
    """``Class.step`` without the number that tells it from others."""
    return str(span.id_[:-37])


def steps(handler: SimpleSpanHandler, parent: str) -> list[str]:
    """The child spans of the spans with this name, in order, without their class names."""
    everything = [*handler.completed_spans, *handler.dropped_spans]
    above = {span.id_ for span in everything if name(span) == parent}
    below = [span for span in everything if span.parent_id in above]
    below.sort(key=lambda span: span.start_time)
    return [name(span).rpartition(".")[2] for span in below]


def check_times(handler: SimpleSpanHandler) -> None:
    """All spans are closed, last some time, and no longer than their parents."""
    spans = {span.id_: span for span in handler.completed_spans}
    assert handler.open_spans == {}
    for span in spans.values():
        assert span.duration > 0
        if span.parent_id in spans:
            parent = spans[span.parent_id]
            assert parent.start_time <= span.start_time
            assert span.end_time <= parent.end_time


def test_a_search_shows_its_legs_and_the_fusion(index: DualIndex, spans: SimpleSpanHandler) -> None:
    index.as_retriever(complete=True).retrieve("a fire")

    assert steps(spans, "DualIndexRetriever.retrieve") == ["_retrieve"]
    assert steps(spans, "DualIndexRetriever._retrieve") == [
        *("embed_query", *LEGS, "fuse", "complete")
    ]
    assert steps(spans, "DualIndexRetriever.embed_query") == ["get_query_embedding"]
    check_times(spans)


def test_legs_asked_with_an_image_are_named_so(
    index: DualIndex, nodes: list[TextNode], spans: SimpleSpanHandler
) -> None:
    image = nodes[1]
    assert isinstance(image, ImageNode)
    index.as_retriever().retrieve(QueryBundle("a fire", image_path=image.image_path))

    by_image = ["search_image_by_image", "search_text_by_image"]
    expected = ["embed_query", *LEGS, *by_image, "fuse"]
    assert steps(spans, "DualIndexRetriever._retrieve") == expected


def test_parents_are_right_across_threads_and_event_loops(
    nodes: list[TextNode], spans: SimpleSpanHandler
) -> None:
    """Stores that can answer in parallel are searched in threads."""
    model = MockMultiModalEmbedding(embed_dim=8)
    existing = MultiModalVectorStoreIndex(nodes, embed_model=model, image_embed_model=model)
    retriever = DualIndexRetriever.from_index(existing)
    spans.completed_spans.clear()

    retriever.retrieve("a fire")
    assert sorted(steps(spans, "DualIndexRetriever._retrieve")) == [
        *("embed_query", "fuse", "search_image", "search_text")
    ]
    for _ in range(2):  # each time in a new event loop
        spans.completed_spans.clear()
        both = asyncio.run(twice(retriever))
        assert len(both) == 2
        roots = [span for span in spans.completed_spans if span.parent_id is None]
        assert [name(span) for span in roots] == ["DualIndexRetriever.aretrieve"] * 2
        for root in roots:
            (inner,) = [span for span in spans.completed_spans if span.parent_id == root.id_]
            below = [name(span) for span in spans.completed_spans if span.parent_id == inner.id_]
            assert sorted(step.rpartition(".")[2] for step in below) == [
                *("embed_query", "fuse", "search_image", "search_text")
            ]
        check_times(spans)


async def twice(retriever: DualIndexRetriever) -> list[Any]:
    return await asyncio.gather(retriever.aretrieve("a fire"), retriever.aretrieve("a storm"))


@pytest.mark.parametrize("on_leg_error", ["raise", "degrade"])
def test_a_leg_that_fails_is_closed_and_says_why(
    on_leg_error: Any, tiny_clip: Path, tmp_path: Path, spans: SimpleSpanHandler
) -> None:
    model = DualEncoderEmbedding(model_name=tiny_clip)
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        index.insert_nodes([TextNode(text="a fire")])
        retriever = index.as_retriever(on_leg_error=on_leg_error)
        index.collections()["image"].store.close()
        if on_leg_error == "raise":
            with pytest.raises(StoreError, match="was closed"):
                retriever.retrieve("a fire")
        else:
            assert len(retriever.retrieve("a fire")) == 1

    dropped = {name(span).rpartition(".")[2]: span for span in spans.dropped_spans}
    assert "was closed" in dropped["search_image"].metadata["error"]
    assert ("retrieve" in dropped) == (on_leg_error == "raise")
    assert "search_text" in [name(span).rpartition(".")[2] for span in spans.completed_spans]
    assert spans.open_spans == {}


def test_reranking_shows_the_scoring_of_each_side(
    index: DualIndex, spans: SimpleSpanHandler
) -> None:
    hits = index.as_retriever(complete=True).retrieve("a fire")
    reranker = MultiModalRerank(model=RERANKER)
    reranker.postprocess_nodes(hits, query_str="a fire")
    asyncio.run(reranker.apostprocess_nodes(hits, query_str="a fire"))

    scoring = ["score_text", "score_image"]
    assert steps(spans, "MultiModalRerank._postprocess_nodes") == scoring * 2
    check_times(spans)


def test_a_span_gives_back_what_its_step_does(spans: SimpleSpanHandler) -> None:
    def fail() -> None:
        raise KeyError("no such thing")

    assert in_span(spans, "add", lambda: 1 + 1) == 2
    with pytest.raises(KeyError, match="no such thing"):
        in_span(spans, "fail", fail)

    assert [name(span) for span in spans.completed_spans] == ["SimpleSpanHandler.add"]
    assert [name(span) for span in spans.dropped_spans] == ["SimpleSpanHandler.fail"]
