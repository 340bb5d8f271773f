"""Let a model answer from texts and images. This one only prints what it is shown."""

import tempfile
from pathlib import Path

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, TextBlock
from llama_index.core.llms import MockLLM

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom


class Onlooker(MockLLM):
    """Use any LlamaIndex chat model that reads images instead."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=32_000, is_chat_model=True)

    def chat(self, messages: list[ChatMessage], **_: object) -> ChatResponse:
        for block in messages[-1].blocks:
            if isinstance(block, TextBlock):
                print(*(line for line in block.text.splitlines() if line.strip()), sep="\n")
            else:
                print(f"<an image of {len(block.resolve_image().read()):,} bytes>")
        return ChatResponse(message=ChatMessage("I have seen all of this."))


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(Path(folder) / "newsroom", articles=200))
    embedding = DualEncoderEmbedding(model_name=CHECKPOINT)  # trained on articles like these
    with DualIndex(f"{folder}/gap.db", embed_model=embedding) as index:
        index.insert_nodes(corpus.nodes)
        engine = index.as_query_engine(llm=Onlooker(), top_k=2)
        answer = engine.query("chess, Ambleforth, with a crimson windmill at the coast")

print("Answer:", answer)
print("Sources:", [hit.node_id for hit in answer.source_nodes])
