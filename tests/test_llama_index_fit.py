"""Inside other parts of LlamaIndex: its retrievers, evaluator, ingestion pipeline and workflows."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counting import CountingEmbedding
from llama_index.core import Document
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import QueryFusionRetriever, RouterRetriever
from llama_index.core.schema import ImageDocument, NodeWithScore, QueryBundle
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from paths import PARITY
from recording import RecordingLLM, articles, shown

from llama_index_gap import DualEncoderEmbedding, DualIndex, MilvusStore, MultiModalRerank
from llama_index_gap.nodes import ScoredNode

QUESTION = "what happened?"
RERANKER = PARITY / "jina_m0_tiny"
SPORT = MetadataFilters(filters=[MetadataFilter(key="section", value="sport")])
NEWS = MetadataFilters(
    filters=[MetadataFilter(key="section", value="sport", operator=FilterOperator.NE)]
)


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """LlamaIndex runs synchronous calls in the thread's event loop, and closes none."""
    with asyncio.Runner() as runner:
        runner.get_loop()
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def index(
    images: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    uri = str(tmp_path_factory.mktemp("fit") / "gap.db")
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as opened:
        opened.insert_nodes(articles(images)[0])
        yield opened


def ids(hits: list[NodeWithScore]) -> list[str]:
    return [hit.node_id for hit in hits]


def documents(hits: list[NodeWithScore]) -> set[str | None]:
    return {hit.node.ref_doc_id for hit in hits}


# --- retrievers of retrievers --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "simple"])
def test_inside_a_query_fusion_retriever(mode: Any, index: DualIndex) -> None:
    """It merges by content and overwrites our ``score``; ``scores`` stays."""
    both = QueryFusionRetriever(
        [index.as_retriever(filters=NEWS), index.as_retriever(filters=SPORT)],
        llm=RecordingLLM(script=["a fire\na storm"]),
        mode=mode,
        num_queries=3,
        similarity_top_k=20,
    )
    for hits in (both.retrieve(QUESTION), asyncio.run(both.aretrieve(QUESTION))):
        assert documents(hits) == set("ABCD")
        assert len(set(ids(hits))) == len(hits)
        assert all(isinstance(hit, ScoredNode) and hit.scores for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_retriever_s_next_answer_is_not_the_one_that_fusion_changed(index: DualIndex) -> None:
    retriever = index.as_retriever()
    before = [hit.score for hit in retriever.retrieve(QUESTION)]
    fusion = QueryFusionRetriever([retriever], llm=RecordingLLM(), num_queries=1)
    fusion.retrieve(QUESTION)

    assert [hit.score for hit in retriever.retrieve(QUESTION)] == before


def test_inside_a_router(index: DualIndex) -> None:
    tools = [
        RetrieverTool.from_defaults(index.as_retriever(filters=filters), description=about)
        for filters, about in ((NEWS, "the news"), (SPORT, "sport"))
    ]
    llm = RecordingLLM(script=[json.dumps([{"choice": 2, "reason": "a match"}])])
    router = RouterRetriever(LLMSingleSelector.from_defaults(llm=llm), tools, llm=llm)

    for hits in (router.retrieve("the match"), asyncio.run(router.aretrieve("the match"))):
        assert documents(hits) == {"C", "D"}
        assert ids(hits) == ids(index.as_retriever(filters=SPORT).retrieve("the match"))


def test_scored_nodes_survive_copies_and_pickles(index: DualIndex) -> None:
    for hit in index.as_retriever().retrieve(QUESTION):
        copies = [
            hit.model_copy(),
            copy.deepcopy(hit),
            pickle.loads(pickle.dumps(hit)),
        ]
        for each in copies:
            assert each.scores == hit.scores
            assert each.score == hit.score
            assert each.node.to_dict() == hit.node.to_dict()


def test_what_llama_index_expects_of_a_retriever(index: DualIndex) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    retriever = index.as_retriever(callback_manager=CallbackManager([debug]))
    hits = retriever.retrieve(QUESTION)

    assert retriever.get_prompts() == {}
    (pair,) = debug.get_event_pairs(CBEventType.RETRIEVE)
    assert ids(pair[1].payload["nodes"]) == ids(hits)
    engine = RetrieverQueryEngine.from_args(retriever, llm=RecordingLLM(), multimodal=True)
    assert ids(engine.retrieve(QueryBundle(QUESTION))) == ids(hits)


# --- evaluation ----------------------------------------------------------------------------------


def test_inside_a_retriever_evaluator(index: DualIndex) -> None:
    """It gets the ids of nodes, in the order of our documents."""
    retriever = index.as_retriever()
    evaluator = RetrieverEvaluator.from_metric_names(["hit_rate", "mrr"], retriever=retriever)
    found = ids(retriever.retrieve(QUESTION))
    first = evaluator.evaluate(QUESTION, expected_ids=[found[0]])
    third = asyncio.run(evaluator.aevaluate(QUESTION, expected_ids=[found[2]]))
    none = evaluator.evaluate(QUESTION, expected_ids=["nothing"])

    assert first.retrieved_ids == found
    assert first.metric_vals_dict == {"hit_rate": 1.0, "mrr": 1.0}
    assert third.metric_vals_dict == {"hit_rate": 1.0, "mrr": pytest.approx(1 / 3)}
    assert none.metric_vals_dict == {"hit_rate": 0.0, "mrr": 0.0}


# --- ingestion -----------------------------------------------------------------------------------


def sources(images: Path) -> list[Document]:
    """A text document and a captioned image, in the form of LlamaIndex's readers."""
    return [
        Document(id_="a", text="a fire in town"),
        ImageDocument(id_="b", text="a caption", image_path=str(images / "B.png")),
    ]


def test_documents_are_the_same_rows_however_they_are_given(
    images: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    articles(images)
    embedding = CountingEmbedding(model_name=tiny_clip)
    with DualIndex.from_documents(
        sources(images), str(tmp_path / "gap.db"), embed_model=embedding
    ) as index:
        refreshed = index.refresh_ref_docs(sources(images))
        inserted = index.insert_nodes(sources(images))

        assert (
            refreshed.unchanged
            == inserted.unchanged
            == index.report.text_rows + index.report.image_rows
        )
        assert index.count() == {"text": index.report.text_rows, "image": index.report.image_rows}
        index.delete_ref_doc("a")
        assert {node.ref_doc_id for node in index.get_nodes(["a#text-0", "b#image"])} == {"b"}


def test_a_skipped_document_is_warned_about(
    tiny_clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = CountingEmbedding(model_name=tiny_clip)
    given = [
        Document(id_="a", text="a fire"),
        Document(id_="bytes", text="\x89PNG\r\n\x1a\n\x00\x00"),
    ]
    with DualIndex.from_documents(given, str(tmp_path / "gap.db"), embed_model=embedding) as index:
        assert len(index.report.skipped) == 1

    assert (
        "1 of the given texts and images were skipped; the first is node bytes#text-0"
        in caplog.text
    )


def test_a_pipeline_embeds_what_is_new_and_keeps_a_store_up_to_date(
    images: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    articles(images)
    embedding = CountingEmbedding(model_name=tiny_clip)
    with MilvusStore(uri=str(tmp_path / "gap.db"), collection_name="one", dim=16) as store:
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(), embedding],
            vector_store=store,
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS,
        )
        pipeline.run(documents=sources(images))
        assert store.count() == 2
        assert len(embedding.embedded) == 3  # a text, a caption, an image

        assert pipeline.run(documents=sources(images)) == []
        changed = sources(images)
        changed[0].set_content("a storm in town")
        asyncio.run(pipeline.arun(documents=changed))

        assert embedding.embedded[3:] == ["a storm in town"]
        assert store.count() == 2
        assert {node.get_content() for node in store.get_nodes(ref_doc_ids=["a"])} == {
            "a storm in town"
        }


def test_a_pipeline_s_cache_gives_the_same_vectors_again(images: Path, tiny_clip: Path) -> None:
    articles(images)
    embedding = CountingEmbedding(model_name=tiny_clip)
    pipeline = IngestionPipeline(transformations=[embedding])
    nodes = articles(images)[0]
    first, again = pipeline.run(nodes=nodes), pipeline.run(nodes=nodes)

    assert len(embedding.embedded) == 12  # 4 texts, 4 captions, 4 images, each once
    assert [node.embedding for node in again] == [node.embedding for node in first]
    assert again[1].text_embedding == first[1].text_embedding
    assert nodes[0].embedding is None  # inputs stay as they are


def test_a_pipeline_before_an_index(images: Path, tiny_clip: Path, tmp_path: Path) -> None:
    """The index embeds; the pipeline splits documents, and tells which are new."""
    articles(images)
    embedding = CountingEmbedding(model_name=tiny_clip)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter()],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,  # upserts want a vector store
    )
    with DualIndex(str(tmp_path / "gap.db"), embed_model=embedding) as index:
        index.refresh_ref_docs(pipeline.run(documents=sources(images)))
        assert index.count() == {"text": 2, "image": 1}
        assert len(embedding.embedded) == 3

        changed = sources(images)
        changed[0].set_content("a storm in town")
        index.refresh_ref_docs(pipeline.run(documents=changed))

        assert embedding.embedded[3:] == ["a storm in town"]
        assert index.count() == {"text": 2, "image": 1}


# --- a workflow ----------------------------------------------------------------------------------


class Found(Event):
    hits: list[NodeWithScore]


class Ranked(Event):
    hits: list[NodeWithScore]


class Answering(Workflow):
    """Three steps: retrieve, rerank, answer."""

    index: DualIndex
    reranker: MultiModalRerank
    llm: RecordingLLM

    @step
    async def retrieve(self, context: Context, start: StartEvent) -> Found:
        await context.store.set("question", start.question)
        retriever = self.index.as_retriever(complete=True)
        return Found(hits=await retriever.aretrieve(start.question))

    @step
    async def rerank(self, context: Context, found: Found) -> Ranked:
        question = await context.store.get("question")
        ranked = await self.reranker.apostprocess_nodes(found.hits, query_str=question)
        return Ranked(hits=ranked)

    @step
    async def answer(self, context: Context, ranked: Ranked) -> StopEvent:
        synthesizer = get_response_synthesizer(self.llm, multimodal=True)
        question = await context.store.get("question")
        return StopEvent(result=await synthesizer.asynthesize(question, ranked.hits))


def test_inside_a_workflow_in_two_event_loops(index: DualIndex, images: Path) -> None:
    names = articles(images)[1]
    workflow = Answering(timeout=60)
    workflow.index, workflow.llm = index, RecordingLLM()
    workflow.reranker = MultiModalRerank(model=RERANKER, top_n=2)

    async def ask() -> Any:
        return await workflow.run(question=QUESTION)

    answers = [asyncio.run(ask()), asyncio.run(ask())]

    expected = workflow.reranker.postprocess_nodes(
        index.as_retriever(complete=True).retrieve(QUESTION), query_str=QUESTION
    )
    assert len(documents(expected)) == 2
    for answer, seen in zip(answers, workflow.llm.seen(names), strict=True):
        assert str(answer) == "an answer"
        assert ids(answer.source_nodes) == ids(expected)
        assert all("rerank_text" in hit.scores for hit in answer.source_nodes)
        assert seen == shown(expected)


# --- filters -------------------------------------------------------------------------------------


def test_metadata_filters_reach_both_legs_of_an_answer(index: DualIndex, images: Path) -> None:
    names = articles(images)[1]
    llm = RecordingLLM()
    sport = index.as_query_engine(llm, filters=SPORT).query(QUESTION)
    nothing = index.as_query_engine(
        llm, filters=MetadataFilters(filters=[MetadataFilter(key="section", value="weather")])
    ).query(QUESTION)

    assert documents(sport.source_nodes) == {"C", "D"}
    assert {part[-1] for part in llm.seen(names)[0]} == {"C", "D"}
    assert str(nothing) == "Empty Response"  # LlamaIndex calls no model without nodes
    assert len(llm.calls) == 1
