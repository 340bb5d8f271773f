"""Give an agent a search tool that shows its model the images it finds."""

import asyncio
import tempfile
from pathlib import Path

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom


def model(messages: list[ChatMessage], **_: object) -> ChatMessage:
    told = [message for message in messages if message.role == "tool"]
    if not told:  # no search yet
        asked = {"query": "celebration of retired people at Orleth", "top_k": 2}
        call = ToolCallBlock(tool_call_id="1", tool_name="search_documents", tool_kwargs=asked)
        return ChatMessage(role="assistant", blocks=[call])
    seen = sum(isinstance(block, ImageBlock) for block in told[-1].blocks)
    answer = f"{told[-1].content}\n\nThe tool gave me this text, and I see {seen} images."
    return ChatMessage(role="assistant", content=answer)


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(folder, articles=100, queries_per_kind=1))
    embedding = DualEncoderEmbedding(model_name=CHECKPOINT)
    uri = str(Path(folder) / "gap.db")
    with DualIndex.from_documents(corpus, uri=uri, embed_model=embedding) as index:
        tool = index.as_retriever(complete=True).as_tool()
        # Yours: any chat model that calls functions. This one follows a script.
        agent = FunctionAgent(tools=[tool], llm=MockFunctionCallingLLM(response_generator=model))

        async def ask() -> None:
            print(await agent.run("Did retired people celebrate at Orleth? When?"))

        asyncio.run(ask())
