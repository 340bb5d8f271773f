"""Articles with images, and a chat model that records its input."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseGen,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM
from llama_index.core.schema import (
    ImageNode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from PIL import Image
from pydantic import Field


def articles(folder: Path) -> tuple[list[TextNode], dict[str, str]]:
    """Articles A to D, each with a text and a captioned image, and the image files by name."""
    nodes: list[TextNode] = []
    images = {}
    for index, name in enumerate("ABCD"):
        images[f"image of {name}"] = str(folder / f"{name}.png")
        colour = (60 * index, 255 - 60 * index, 40)
        Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
        common: dict[str, Any] = {
            "relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)},
            "metadata": {"section": "news" if name in "AB" else "sport"},
            "excluded_embed_metadata_keys": ["section"],
            "excluded_llm_metadata_keys": ["section"],
        }
        nodes += [
            TextNode(id_=f"{name}-text", text=f"text of {name}", **common),
            ImageNode(
                id_=f"{name}-image",
                text=f"caption of {name}",
                image_path=images[f"image of {name}"],
                **common,
            ),
        ]
    return nodes, images


def shown(hits: Sequence[NodeWithScore]) -> list[str]:
    """The parts of these articles' nodes that a model must see."""
    parts: list[str] = []
    for hit in hits:
        name, kind = hit.node_id.split("-")
        of_node = ["text"] if kind == "text" else ["caption", "image"]
        parts += [f"{part} of {name}" for part in of_node]
    return parts


class RecordingLLM(CustomLLM):
    """Answers with the lines of ``script`` in turn, and repeats the last one.

    Attributes:
        script: its answers.
        context_window: in tokens; LlamaIndex counts 2,125 for an image.
        calls: the messages of each call.
    """

    script: list[str] = Field(default=["an answer"])
    context_window: int = 100_000
    calls: list[list[ChatMessage]] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self.context_window, num_output=256, is_chat_model=True)

    def _answer(self, messages: Sequence[ChatMessage]) -> str:
        self.calls.append(list(messages))
        return self.script[min(len(self.calls), len(self.script)) - 1]

    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        answer = self._answer(messages)
        return ChatResponse(message=ChatMessage(content=answer, role=MessageRole.ASSISTANT))

    def stream_chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponseGen:
        told = ""
        for word in self._answer(messages).split(" "):
            delta = f" {word}" if told else word
            told += delta
            message = ChatMessage(content=told, role=MessageRole.ASSISTANT)
            yield ChatResponse(message=message, delta=delta)

    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=self._answer([ChatMessage(content=prompt)]))

    def stream_complete(self, prompt: str, **_: Any) -> CompletionResponseGen:
        yield self.complete(prompt)

    def seen(self, images: dict[str, str]) -> list[list[str]]:
        """For each call, the parts of articles that it saw: texts, captions and image names.

        Args:
            images: the image files, by name.
        """
        names = {Path(path).read_bytes(): name for name, path in images.items()}
        found = []
        for messages in self.calls:
            lines: list[str] = []
            for block in (block for message in messages for block in message.blocks):
                if isinstance(block, TextBlock):
                    lines += re.findall(r"(?:text|caption) of \w", block.text)
                elif isinstance(block, ImageBlock):
                    lines.append(names[block.resolve_image().read()])
            found.append(lines)
        return found
