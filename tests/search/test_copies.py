"""Copies of retrievers and tools, and queries without visible characters."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, DualIndex
from llama_index_gap.demo.newsroom import RERANKER
from llama_index_gap.errors import GapError
from llama_index_gap.readers.corpus import corpus_from_records
from llama_index_gap.search.rerank import MultiModalRerank

BLANK = [
    "", " \t\n", "\u200b", "\u200c\u200d", "\ufeff", "\u2060\u2061", "\u00ad", "\x00\x07\x1b",
    "\ufe0f", "\U000e0100", "\u202e\u202c", "\u00a0\u3000\u2028", "\u3164\u115f", "\u2800",
    "\u180e\u034f", "\U000e0041", " \u200b \u00ad ",
]  # fmt: skip


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.effect_noise((40, 40), 90).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def index(
    tiny_clip: Path, picture: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    records = [
        {"id": f"d{i}", "text": f"document number {i}", "images": [picture.name], "year": 2000 + i}
        for i in range(5)
    ]
    corpus = corpus_from_records(records, picture.parent)
    uri = str(tmp_path_factory.mktemp("index") / "gap.db")
    model = DualEncoderEmbedding(model_name=str(tiny_clip))
    with DualIndex.from_documents(corpus, uri=uri, embed_model=model) as opened:
        yield opened


def test_a_deep_copy_searches_the_same_database(index: DualIndex) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="year", value=2003)])

    class Handler(LlamaDebugHandler):
        lock: Any = threading.Lock()  # as callbacks of tracing services have

    retriever = index.as_retriever(filters=only, callback_manager=CallbackManager([Handler()]))
    copied = copy.deepcopy(retriever)
    only.filters[0].value = 2001  # a copy's settings are its own

    assert {hit.node.ref_doc_id for hit in copied.retrieve("number")} == {"d3"}
    assert {hit.node.ref_doc_id for hit in retriever.retrieve("number")} == {"d1"}
    assert copied.callback_manager is retriever.callback_manager
    del copied
    assert retriever.retrieve("number")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_what_is_built_on_a_retriever_is_copied(
    duplicate: Callable[[Any], Any], index: DualIndex
) -> None:
    assert duplicate(index).search("number")[0].key == index.search("number")[0].key
    reranker = MultiModalRerank(model=RERANKER)
    tool = index.as_retriever().as_tool(node_postprocessors=[reranker])
    assert duplicate(tool)("number").content == tool("number").content
    for citations in (False, True):
        with asyncio.Runner() as runner:
            runner.get_loop()
            engine = index.as_query_engine(MockLLM(), multimodal=False, citations=citations)
            assert str(duplicate(engine).query("number")) == str(engine.query("number"))


def test_pickling_says_what_to_do(index: DualIndex) -> None:
    retriever = index.as_retriever()
    for each in (
        index,
        retriever,
        retriever.as_tool(),
        index.as_query_engine(MockLLM(), multimodal=False),
    ):
        with pytest.raises(GapError, match=r"cannot be pickled; open the index again") as raised:
            pickle.dumps(each)
        assert isinstance(raised.value, TypeError)


@pytest.mark.parametrize("query", BLANK, ids=ascii)
def test_a_query_in_which_nothing_can_be_seen_is_empty(
    query: str, index: DualIndex, picture: Path
) -> None:
    retriever, message = index.as_retriever(), "the query is empty"
    found = index.search("number").nodes
    with pytest.raises(ValueError, match=message):
        index.search(query)
    with pytest.raises(ValueError, match=message):
        retriever.retrieve(QueryBundle(query))
    with pytest.raises(ValueError, match=message):
        retriever.search_legs(query)
    with pytest.raises(ValueError, match=message):
        MultiModalRerank(model=RERANKER).postprocess_nodes(found, query_str=query)
    output = retriever.as_tool()(query)
    assert output.is_error
    assert message in output.content
    # With an image, the query is the image alone.
    bundle = QueryBundle(query, image_path=str(picture))
    for found_by_image in (index.search(query, picture), retriever.search(bundle)):
        assert [leg.query for leg in found_by_image.legs] == ["image"]


def test_blank_queries_are_not_learnt_from(index: DualIndex) -> None:
    with pytest.raises(ValueError, match=r"no queries to learn from .*51 skipped"):
        index.learn_queries(BLANK * 3)
