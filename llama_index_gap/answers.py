"""LlamaIndex's query engines, set up to show a chat model texts and images."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict, Unpack, get_type_hints

from llama_index.core import Settings
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import BaseContentBlock, ChatMessage, TextBlock
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.prompt_helper import DEFAULT_PADDING, ChatPromptHelper
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.query_engine.citation_query_engine import (
    CITATION_CHAT_CONTENT_QA_TEMPLATE,
    CITATION_CHAT_CONTENT_REFINE_TEMPLATE,
    CITATION_QA_TEMPLATE,
    CITATION_REFINE_TEMPLATE,
)
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.tools import BaseTool
from llama_index.core.types import BasePydanticProgram
from pydantic import AnyUrl

from llama_index_gap.errors import InvalidValueError, check_names
from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.images.opening import ImageError, has_image, open_image, read_image
from llama_index_gap.nodes import CaptionedImageNode, as_row, confined

logger = logging.getLogger(__name__)

DOCUMENTS = 5
"""Number of documents that an answer uses, unless a reranker sets another."""
_CITATION_TEMPLATES: dict[str, BasePromptTemplate] = {
    "text_qa_template": CITATION_QA_TEMPLATE,
    "refine_template": CITATION_REFINE_TEMPLATE,
    "chat_content_qa_template": CITATION_CHAT_CONTENT_QA_TEMPLATE,
    "chat_content_refine_template": CITATION_CHAT_CONTENT_REFINE_TEMPLATE,
}


class CitationSettings(TypedDict, total=False):
    """Further settings of a ``CitationQueryEngine``."""

    citation_chunk_size: int
    citation_chunk_overlap: int
    metadata_mode: MetadataMode


class EngineSettings(CitationSettings, total=False):
    """Settings that ``query_engine`` passes on to LlamaIndex's ``get_response_synthesizer``."""

    response_mode: ResponseMode
    streaming: bool
    use_async: bool
    verbose: bool
    text_qa_template: BasePromptTemplate
    refine_template: BasePromptTemplate
    summary_template: BasePromptTemplate
    simple_template: BasePromptTemplate
    chat_content_qa_template: BasePromptTemplate
    chat_content_refine_template: BasePromptTemplate
    chat_summary_template: BasePromptTemplate
    structured_answer_filtering: bool
    output_cls: type[BaseModel]
    program_factory: Callable[[BasePromptTemplate], BasePydanticProgram[Any]]


class ImagesWithTheirTexts(ChatPromptHelper):
    """Packs nodes into as few messages as possible, each image with the texts before it.

    LlamaIndex fills a message block by block. If the model's context cannot hold all nodes
    (LlamaIndex counts 2,125 tokens per image), a caption can end one message while its image starts
    the next, followed by the text of another document. Here an image stays with the texts between
    the previous image and itself, as many as fit into one message with it. Nothing is reordered,
    merged or dropped.
    """

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the settings."""
        return "ImagesWithTheirTexts"

    async def arepack(
        self,
        prompt: BasePromptTemplate,
        messages: Sequence[ChatMessage],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> list[ChatMessage]:
        """The same blocks in the same order, in messages that fit, as in LlamaIndex."""
        room = await self._aget_available_chunk_size(prompt, padding=padding, llm=llm, tools=tools)
        blocks = [
            (part, await part.aestimate_tokens())
            for message in messages
            for block in message.blocks
            for part in await _cut(block, room)
        ]
        packed: list[list[BaseContentBlock]] = []
        left = 0
        for together in _kept_together(blocks, room):
            size = sum(tokens for _, tokens in together)
            if not packed or size > left:
                packed.append([])
                left = room
            packed[-1] += [block for block, _ in together]
            left -= size
        return [ChatMessage(role=messages[0].role, blocks=blocks) for blocks in packed]

    async def atruncate(
        self,
        prompt: BasePromptTemplate,
        messages: Sequence[ChatMessage],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> Sequence[ChatMessage]:
        """The first message of ``arepack``; logs how many blocks do not fit and are left out."""
        packed = await self.arepack(prompt, messages, padding, llm, tools)
        left_out = [block for message in packed[1:] for block in message.blocks]
        if left_out:
            logger.warning(
                "the model's context cannot hold all nodes: %d texts and %d images are left out; "
                "choose another response_mode, or fewer documents",
                sum(isinstance(block, TextBlock) for block in left_out),
                sum(not isinstance(block, TextBlock) for block in left_out),
            )
        return packed[:1]


async def _cut(block: BaseContentBlock, room: int) -> Sequence[BaseContentBlock]:
    """Split a text that is longer than a message; return any other block unchanged."""
    if isinstance(block, TextBlock) and await block.aestimate_tokens() > room:
        return await block.asplit(max_tokens=room)
    return [block]


def _kept_together(
    blocks: Sequence[tuple[BaseContentBlock, int]], room: int
) -> list[list[tuple[BaseContentBlock, int]]]:
    """Groups of blocks that stay in one message; built from the last block, then reversed."""
    groups: list[list[tuple[BaseContentBlock, int]]] = []
    left = 0
    for block, tokens in reversed(blocks):
        if isinstance(block, TextBlock) and groups and tokens <= left:
            groups[-1].insert(0, (block, tokens))
            left -= tokens
        else:
            groups.append([(block, tokens)])
            left = 0 if isinstance(block, TextBlock) else room - tokens
    return groups[::-1]


class ReadableImages(BaseNodePostprocessor):
    """Removes images that cannot be shown, so that a single bad image does not fail the answer.

    The texts of their nodes stay, and a warning counts the removed images. Without this, a missing
    file fails the whole answer, and LlamaIndex fetches any URL that a node holds. In image nodes of
    other stores the content is only the image; they are converted so that they show their captions
    too.
    """

    allow_urls: bool = Field(default=False, description="Fetch images from http(s) URLs.")

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the settings."""
        return "ReadableImages"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        unreadable: list[str] = []
        kept: list[NodeWithScore] = []
        for hit in nodes:
            node = hit.node
            if isinstance(node, Node) and node.image_resource is not None:
                node = as_row(node)
            if isinstance(node, ImageNode) and not isinstance(node, CaptionedImageNode):
                node = CaptionedImageNode.model_validate(node.model_dump())
            if isinstance(node, CaptionedImageNode) and has_image(node):
                try:
                    node = self._readable(node)
                except ImageError as error:
                    unreadable.append(str(error))
                    bare = dict.fromkeys(("image", "image_path", "image_url"))
                    node = node.model_copy(update=bare)
            kept.append(hit.model_copy(update={"node": node}))
        if unreadable:
            logger.warning(
                "images that cannot be shown: %d; the first: %s", len(unreadable), unreadable[0]
            )
        return kept

    def _readable(self, node: CaptionedImageNode) -> CaptionedImageNode:
        if node.image or node.image_path:
            open_image(node)
            return node
        data = read_image(node, allow_urls=self.allow_urls)
        open_image(data)
        return node.model_copy(update={"image": base64.b64encode(data).decode()})


class TextSource(TextNode):
    """A numbered source that is a text."""

    image_resource: ClassVar[None] = None

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the node."""
        return "TextSource"


class ImageSource(CaptionedImageNode):
    """A numbered source that is an image; its text is the number and, if it fits, the caption."""

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the node."""
        return "ImageSource"

    @property
    def image_resource(self) -> MediaResource:
        """The image, in the form that LlamaIndex's own sources have."""
        return MediaResource(
            data=self.image.encode() if self.image else None,
            path=Path(self.image_path) if self.image_path else None,
            url=AnyUrl(self.image_url) if self.image_url else None,
            mimetype=self.image_mimetype,
        )


class CitingQueryEngine(CitationQueryEngine):
    """LlamaIndex's ``CitationQueryEngine``, with text nodes and image nodes as its sources.

    LlamaIndex's sources are of the class ``Node``, for which ``NodeWithScore.text`` and
    ``get_text()`` raise an error.
    """

    def _create_citation_nodes(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        folders = {
            hit.node.image_path: hit.node.image_folders
            for hit in nodes
            if isinstance(hit.node, CaptionedImageNode) and hit.node.image_path
        }
        return [
            hit.model_copy(update={"node": _as_source(hit.node, folders)})
            for hit in super()._create_citation_nodes(nodes)
        ]


def _as_source(node: BaseNode, folders: Mapping[str, ImageFolders | None]) -> BaseNode:
    """Convert LlamaIndex's source to a text or image node; one with audio or video stays as is."""
    if not isinstance(node, Node) or node.audio_resource or node.video_resource:
        return node
    row = as_row(node)
    if not isinstance(row, ImageNode):
        return TextSource.model_validate(row.model_dump())
    source = ImageSource.model_validate(row.model_dump())
    allowed = folders.get(source.image_path or "")
    return source if allowed is None else confined(source, allowed)


def check_llm(llm: object) -> None:
    """Reject a model that is not an object of LlamaIndex's ``LLM``, such as the name of a model.

    Args:
        llm: as a user passed it; None for ``Settings.llm``.

    Raises:
        ValueError: it is something else.
    """
    if llm is not None and not isinstance(llm, LLM):
        raise InvalidValueError(
            f"llm={llm!r:.80}: must be an LLM object of LlamaIndex, not {type(llm).__name__}; pass "
            "one, such as OpenAI(model='gpt-4o') from llama_index.llms.openai, or leave llm out to "
            "use Settings.llm"
        )


def query_engine(
    retriever: BaseRetriever,
    llm: LLM | None = None,
    node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
    *,
    citations: bool = False,
    allow_urls: bool = False,
    multimodal: bool = True,
    callback_manager: CallbackManager | None = None,
    **settings: Unpack[EngineSettings],
) -> BaseQueryEngine:
    """Make LlamaIndex's query engine for any retriever; ``DualIndex.as_query_engine`` is easier.

    Args:
        retriever: finds the nodes.
        llm: as in ``DualIndex.as_query_engine``, like all parameters below.
        node_postprocessors: for example ``MultiModalRerank``.
        citations: number the sources, and ask the model to cite the numbers.
        allow_urls: fetch images from http(s) URLs.
        multimodal: show the model images; if False, only texts and captions.
        callback_manager: as in LlamaIndex.
        **settings: of ``get_response_synthesizer`` and, with citations, ``CitationQueryEngine``.

    Raises:
        ValueError: ``llm`` is no LLM of LlamaIndex, or not a chat model.
        TypeError: a setting does not exist.
    """
    check_llm(llm)
    citation_settings = CitationSettings.__annotations__
    check_names(
        "the query engine",
        settings,
        [
            each
            for each in get_type_hints(EngineSettings)
            if citations or each not in citation_settings
        ],
    )
    llm = llm or Settings.llm
    callback_manager = callback_manager or Settings.callback_manager
    if multimodal and not llm.metadata.is_chat_model:
        raise InvalidValueError(
            f"{llm.class_name()} is not a chat model, so it cannot see images; pass another llm, "
            "or multimodal=False for texts and captions only"
        )
    engine_settings: dict[str, Any] = {
        name: value for name, value in settings.items() if name in citation_settings
    }
    synthesizer_settings: dict[str, Any] = dict(_CITATION_TEMPLATES) if citations else {}
    synthesizer_settings |= {
        name: settings[name]  # type: ignore[literal-required]
        for name in settings.keys() - engine_settings.keys()
    }
    synthesizer = get_response_synthesizer(
        llm=llm,
        callback_manager=callback_manager,
        multimodal=multimodal,
        chat_prompt_helper=ImagesWithTheirTexts.from_llm_metadata(llm.metadata),
        **synthesizer_settings,
    )
    shared: dict[str, Any] = {
        "retriever": retriever,
        "response_synthesizer": synthesizer,
        "node_postprocessors": [
            *(node_postprocessors or ()),
            *([ReadableImages(allow_urls=allow_urls)] if multimodal else ()),
        ],
        "callback_manager": callback_manager,
    }
    if citations:
        return CitingQueryEngine(llm=llm, multimodal=multimodal, **engine_settings, **shared)
    return RetrieverQueryEngine(**shared)
