"""Answers of LlamaIndex's engines; the model's input is recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    ContextChatEngine,
    MultiModalContextChatEngine,
)
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from recording import RecordingLLM, articles, shown

from llama_index_gap import DualEncoderEmbedding, DualIndex, DualIndexRetriever
from llama_index_gap.answers import ImagesWithTheirTexts, ReadableImages, query_engine
from llama_index_gap.images.opening import open_image
from llama_index_gap.nodes import CaptionedImageNode

QUESTION = "what happened?"


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """LlamaIndex runs synchronous calls in the thread's event loop, and closes none."""
    with asyncio.Runner() as runner:
        runner.get_loop()
        yield


def memory() -> ChatMemoryBuffer:
    """A memory that is closed; LlamaIndex's default leaves its database open."""
    return ChatMemoryBuffer.from_defaults(token_limit=1_000)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def names(images: Path) -> dict[str, str]:
    return articles(images)[1]


@pytest.fixture(scope="module")
def index(
    images: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DualIndex]:
    uri = str(tmp_path_factory.mktemp("answers") / "gap.db")
    embedding = DualEncoderEmbedding(model_name=tiny_clip)
    with DualIndex(uri, embed_model=embedding) as opened:
        opened.insert_nodes(articles(images)[0])
        yield opened


def order_of(hits: list[NodeWithScore]) -> str:
    """The documents, each once."""
    return "".join(dict.fromkeys(str(hit.node.ref_doc_id) for hit in hits))


def ids(hits: list[NodeWithScore]) -> list[str]:
    return [each.node_id for each in hits]


# --- the query engine ----------------------------------------------------------------------------


def test_an_answer_sees_each_document_s_text_caption_and_image_in_order(
    index: DualIndex, names: dict[str, str]
) -> None:
    llm = RecordingLLM()
    answer = index.as_query_engine(llm).query(QUESTION)

    found = index.as_retriever(complete=True).retrieve(QUESTION)
    assert str(answer) == "an answer"
    assert llm.seen(names) == [shown(found)]
    (parts,) = llm.seen(names)
    order = order_of(found)
    assert sorted(order) == list("ABCD")
    assert [part[-1] for part in parts] == sorted((p[-1] for p in parts), key=order.index)
    for name in "ABCD":
        of_article = [part for part in parts if part.endswith(name)]
        assert of_article[-2:] == [f"caption of {name}", f"image of {name}"]


def test_what_one_side_found_comes_with_the_other(index: DualIndex, names: dict[str, str]) -> None:
    """``complete`` is the default here, since an answer needs the image too."""
    complete, as_found = RecordingLLM(), RecordingLLM()
    few: dict[str, Any] = {"similarity_top_k": 1, "image_similarity_top_k": 1}
    index.as_query_engine(complete, **few).query("text of C")
    index.as_query_engine(as_found, complete=False, **few).query("text of C")

    assert "image of C" in complete.seen(names)[0]
    assert "image of C" not in as_found.seen(names)[0]


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "compact_accumulate"])
@pytest.mark.parametrize(("window", "calls"), [(8_000, 2), (3_900, 4)])
def test_no_image_is_parted_from_its_texts_where_one_call_does_not_hold_all(
    mode: str, window: int, calls: int, index: DualIndex, names: dict[str, str]
) -> None:
    """LlamaIndex counts 2,125 tokens for an image: 8,000 tokens hold three, 3,900 hold one."""
    llm = RecordingLLM(context_window=window)
    answer = index.as_query_engine(llm, response_mode=mode).query(QUESTION)

    seen = [call for call in llm.seen(names) if call]  # tree_summarize reads the answers, too
    assert len(seen) == calls
    assert list(chain(*seen)) == shown(answer.source_nodes)
    assert all(call[-1].startswith("image") for call in seen)
    assert not any(call[0].startswith("image") for call in seen)


def test_llama_index_alone_parts_them(index: DualIndex, names: dict[str, str]) -> None:
    """The reason for our own packing; if this test fails, it is no longer needed."""
    llm = RecordingLLM(context_window=3_900)
    retriever = index.as_retriever(complete=True)
    RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True).query(QUESTION)

    second = llm.seen(names)[1]
    assert second[0].startswith("image of")
    assert second[1][-1] != second[0][-1]  # the next block belongs to another article


def test_simple_summarize_says_what_it_leaves_out(
    index: DualIndex, names: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    llm = RecordingLLM(context_window=8_000)
    engine = index.as_query_engine(llm, response_mode="simple_summarize")
    with caplog.at_level(logging.WARNING):
        answer = engine.query(QUESTION)

    everything = shown(answer.source_nodes)
    (seen,) = llm.seen(names)
    assert seen == everything[: everything.index(seen[-1]) + 1]
    assert sum(part.startswith("image") for part in seen) == 3
    assert "1 images are left out" in caplog.text


def ask(engine: Any) -> str:
    return str(engine.query(QUESTION))


def ask_streaming(engine: Any) -> str:
    return "".join(engine.query(QUESTION).response_gen)


async def aask(engine: Any) -> str:
    return str(await engine.aquery(QUESTION))


async def aask_streaming(engine: Any) -> str:
    answer = await engine.aquery(QUESTION)
    return "".join([part async for part in answer.async_response_gen()])


@pytest.mark.parametrize("citations", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_sync_and_async_in_two_event_loops(
    streaming: bool, citations: bool, index: DualIndex, names: dict[str, str]
) -> None:
    llm = RecordingLLM()
    engine = index.as_query_engine(llm, streaming=streaming, citations=citations)
    once = ask_streaming if streaming else ask
    later: Callable[[Any], Awaitable[str]] = aask_streaming if streaming else aask

    answers = [once(engine), asyncio.run(later(engine)), asyncio.run(later(engine)), once(engine)]

    found = index.as_retriever(complete=True).retrieve(QUESTION)
    assert answers == ["an answer"] * 4
    assert llm.seen(names) == [shown(found)] * 4


@pytest.mark.parametrize(("window", "calls"), [(100_000, 1), (8_000, 2)])
def test_citations_number_captions_and_images_in_order(
    window: int, calls: int, index: DualIndex, names: dict[str, str]
) -> None:
    llm = RecordingLLM(context_window=window, script=["It did [1]."])
    engine = index.as_query_engine(llm, citations=True, citation_chunk_size=256)
    answer = engine.query(QUESTION)

    expected = shown(index.as_retriever(complete=True).retrieve(QUESTION))
    assert isinstance(engine, CitationQueryEngine)
    assert list(chain(*llm.seen(names))) == expected
    assert len(llm.calls) == calls
    # A caption and its image are two sources, one after the other.
    sources = [hit.node for hit in answer.source_nodes]
    numbers = range(1, len(expected) + 1)
    assert [source.get_content().split(":")[0] for source in sources] == [
        f"Source {number}" for number in numbers
    ]
    pictured = [part.startswith("image") for part in expected]
    assert [source.image_resource is not None for source in sources] == pictured
    # The ways in which LlamaIndex's users read a source.
    for hit in answer.source_nodes:
        assert hit.text == hit.get_text() == hit.node.text == hit.node.get_content()
        assert isinstance(hit.node, ImageNode) == (hit.node.image_resource is not None)
    open_image(next(source for source in sources if isinstance(source, ImageNode)))
    prompt = "".join(block.text for block in llm.calls[0][0].blocks if block.block_type == "text")
    assert "cite the appropriate source(s)" in prompt


def test_filters_counts_and_postprocessors(index: DualIndex, names: dict[str, str]) -> None:
    class Backwards(ReadableImages):
        def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
            return nodes[::-1]

    filters = MetadataFilters(filters=[MetadataFilter(key="section", value="sport")])
    llm = RecordingLLM()
    sport = index.as_query_engine(llm, filters=filters).query(QUESTION)
    one = index.as_query_engine(llm, top_k=1).query(QUESTION)
    turned = index.as_query_engine(llm, [Backwards()]).query(QUESTION)

    assert sorted(order_of(sport.source_nodes)) == list("CD")
    assert len(order_of(one.source_nodes)) == 1
    assert order_of(turned.source_nodes) == order_of(index.as_retriever().retrieve(QUESTION))[::-1]
    assert llm.seen(names)[2] == shown(turned.source_nodes)


def test_texts_and_captions_alone(index: DualIndex, names: dict[str, str]) -> None:
    """For a model that reads no images; it need not be a chat model."""
    engine = index.as_query_engine(MockLLM(), multimodal=False)
    answer = engine.query(QUESTION)  # MockLLM repeats what it is asked

    parts = shown(answer.source_nodes)
    assert len(parts) > 8
    assert all(part in str(answer) for part in parts if not part.startswith("image"))


def test_wrong_settings(index: DualIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="no parameter 'top_n'; did you mean 'top_k'"):
        index.as_query_engine(RecordingLLM(), top_n=3)
    with pytest.raises(TypeError, match="has no parameter 'citation_chunk_size'"):
        index.as_query_engine(RecordingLLM(), citation_chunk_size=256)
    with pytest.raises(ValueError, match=r"MockLLM is not a chat model.*multimodal=False"):
        index.as_query_engine(MockLLM())
    with pytest.raises(ValueError, match="top_k=0: must be at least 1"):
        index.as_query_engine(RecordingLLM(), top_k=0)
    not_an_llm: Any = "gpt-4o"
    for engine in (None, index.as_query_engine(RecordingLLM())):
        with pytest.raises(ValueError, match=r"llm='gpt-4o': must be an LLM object.*Settings\.llm"):
            index.as_chat_engine(not_an_llm, query_engine=engine)
    with pytest.raises(ValueError, match=r"llm='gpt-4o': must be an LLM object.*Settings\.llm"):
        index.as_query_engine(not_an_llm)
    llm = RecordingLLM()
    monkeypatch.setattr(Settings, "_llm", llm)
    assert str(index.as_query_engine().query(QUESTION)) == "an answer"
    assert len(llm.calls) == 1


# --- the packing ---------------------------------------------------------------------------------


def pack(blocks: list[Any], window: int) -> list[list[Any]]:
    """The blocks of each message for a model with this context."""
    helper = ImagesWithTheirTexts(context_window=window, num_output=0)
    messages = [ChatMessage(blocks=[block]) for block in blocks]
    return [message.blocks for message in helper.repack(PromptTemplate(""), messages)]


@given(
    lengths=st.lists(st.integers(0, 40), max_size=20),  # words of each text; 0 is an image
    window=st.integers(2_200, 9_000),
)
def test_packing_keeps_order_and_fits(
    noise_files: list[str], lengths: list[int], window: int
) -> None:
    image = ImageBlock(path=noise_files[0])
    blocks = [TextBlock(text=f"{i}" + " word" * n) if n else image for i, n in enumerate(lengths)]
    packed = pack(blocks, window)

    assert list(chain(*packed)) == blocks
    for message in packed:
        assert sum(block.estimate_tokens() for block in message) <= window
    for before, message in pairwise(packed):
        assert not (message[0] is image and before[-1] is not image)  # separated from its text


def test_packing_nothing_and_what_is_too_long(noise_files: list[str]) -> None:
    image = ImageBlock(path=noise_files[0])
    long = TextBlock(text="word " * 3_000)

    assert pack([], 2_500) == []
    assert pack([image], 100) == [[image]]  # too large for any message, yet not dropped
    first, second = pack([long, image], 2_900)
    assert sum(block.text.count("word") for block in [*first, *second[:-1]]) == 3_000
    assert second[-1] == image


# --- images that cannot be shown ---------------------------------------------------------------


def hit(**settings: Any) -> NodeWithScore:
    return NodeWithScore(node=CaptionedImageNode(id_="a", text="a ship", **settings), score=0.5)


@pytest.mark.parametrize("name", ["gone.png", "text.png", "cut.png"])
def test_a_bad_image_costs_the_image_and_not_the_answer(
    name: str, tmp_path: Path, noise_files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(Path(noise_files[0]).read_bytes()[:200])
    bad, good = hit(image_path=str(tmp_path / name)), hit(image_path=noise_files[0])
    plain = NodeWithScore(node=TextNode(text="a text"))
    foreign = NodeWithScore(node=ImageNode(text="a boat", image_path=str(tmp_path / name)))
    with caplog.at_level(logging.WARNING):
        shown_now = ReadableImages().postprocess_nodes([bad, good, plain, foreign])

    assert [len(each.node.get_content_blocks()) for each in shown_now] == [1, 2, 1, 1]
    assert shown_now[0].score == 0.5
    assert bad.node.image_path is not None  # inputs stay as they are
    assert "images that cannot be shown: 2; the first: node a" in caplog.text


def test_urls_are_fetched_only_when_asked(
    noise_files: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fetch(url: str, **_: Any) -> bytes:
        asked.append(url)
        return Path(noise_files[0]).read_bytes()

    monkeypatch.setattr("llama_index_gap.images.opening.fetch", fetch)
    remote = [hit(image_url="https://example.org/ship")]
    (without,) = ReadableImages().postprocess_nodes(remote)
    assert asked == []
    assert "https://example.org/ship" not in str(without.node.get_content_blocks())
    assert "allow_urls=True" in caplog.text

    (fetched,) = ReadableImages(allow_urls=True).postprocess_nodes(remote)
    assert asked == ["https://example.org/ship"]
    _, block = fetched.node.get_content_blocks()
    assert block.inline_url().startswith("data:image/png;base64,")


def test_an_answer_where_an_image_is_gone(tiny_clip: Path, tmp_path: Path) -> None:
    nodes, names = articles(tmp_path)
    llm = RecordingLLM()
    embedding = DualEncoderEmbedding(model_name=tiny_clip)
    with DualIndex(str(tmp_path / "gap.db"), embed_model=embedding) as index:
        index.insert_nodes(nodes[:4])
        engine = index.as_query_engine(llm)
        gone = Path(names["image of A"])
        content = gone.read_bytes()
        gone.unlink()
        answer = engine.query(QUESTION)
        gone.write_bytes(content)  # so that ``seen`` can tell the images by their files

    expected = shown(answer.source_nodes)
    assert llm.seen(names) == [[part for part in expected if part != "image of A"]]


def test_captions_of_another_index_are_shown_too(tmp_path: Path) -> None:
    """LlamaIndex's image nodes do not show their captions."""
    nodes, names = articles(tmp_path)
    model, llm = MockMultiModalEmbedding(embed_dim=8), RecordingLLM()
    existing = MultiModalVectorStoreIndex(nodes, embed_model=model, image_embed_model=model)
    retriever = DualIndexRetriever.from_index(existing)
    answer = query_engine(retriever, llm).query(QUESTION)

    assert llm.seen(names) == [shown(answer.source_nodes)]
    assert ids(answer.source_nodes) == ids(retriever.retrieve(QUESTION))
    assert sum(part.startswith("caption") for part in llm.seen(names)[0]) == 4


# --- chats ---------------------------------------------------------------------------------------


def test_a_chat_shows_captions_and_images_of_each_turn(
    index: DualIndex, names: dict[str, str]
) -> None:
    llm = RecordingLLM(script=["a fire", "where was the fire?", "in town"])
    engine = index.as_query_engine(llm, top_k=2)
    chat = index.as_chat_engine(llm, memory(), query_engine=engine)
    first, second = chat.chat(QUESTION), chat.chat("and where?")

    answered, condensed, again = llm.seen(names)
    assert (str(first), str(second)) == ("a fire", "in town")
    assert answered == shown(first.source_nodes)
    assert condensed == []
    assert again == shown(second.source_nodes)
    # Its limit: of the first turn, only what the rewritten question repeats.
    last = "".join(message.content or "" for message in llm.calls[2])
    assert "where was the fire?" in last
    assert QUESTION not in last
    assert [message.content for message in chat.chat_history] == [
        *(QUESTION, "a fire"),
        *("and where?", "in town"),
    ]


def test_a_chat_streams_and_is_asked_from_two_event_loops(
    index: DualIndex, names: dict[str, str]
) -> None:
    llm = RecordingLLM()
    chat = index.as_chat_engine(llm, memory())
    asyncio.run(chat.achat(QUESTION))
    chat.reset()
    asyncio.run(chat.achat(QUESTION))
    chat.reset()
    streamed = "".join(chat.stream_chat(QUESTION).response_gen)

    assert streamed == "an answer"
    assert llm.seen(names) == [shown(index.as_retriever(complete=True).retrieve(QUESTION))] * 3


@pytest.mark.parametrize("engine", [ContextChatEngine, CondensePlusContextChatEngine])
def test_llama_index_context_chats_show_captions_and_no_images(
    engine: Any, index: DualIndex, names: dict[str, str]
) -> None:
    llm = RecordingLLM()
    retriever = index.as_retriever(complete=True)
    engine.from_defaults(retriever=retriever, llm=llm, memory=memory()).chat(QUESTION)

    expected = shown(retriever.retrieve(QUESTION))
    assert llm.seen(names) == [[part for part in expected if "image" not in part]]


def test_llama_index_multimodal_chat_shows_images_first_and_no_captions(
    index: DualIndex, names: dict[str, str]
) -> None:
    llm = RecordingLLM()
    retriever = index.as_retriever(complete=True)
    chat = MultiModalContextChatEngine.from_defaults(
        retriever=retriever, multi_modal_llm=llm, memory=memory()
    )
    chat.chat(QUESTION)

    expected = shown(retriever.retrieve(QUESTION))
    images, texts = (
        [part for part in expected if part.startswith(kind)] for kind in ("image", "text")
    )
    assert texts
    assert llm.seen(names) == [[*images, *texts]]
