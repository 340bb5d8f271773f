"""An index as an MCP server: search and similar images, for every client of the protocol."""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import copy_context
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    ReadResourceRequestParams,
    ReadResourceResult,
    ResourceTemplate,
    TextContent,
    Tool,
    ToolAnnotations,
)

import llama_index_gap
from llama_index_gap.agents.mcp_answer import (
    IMAGE_TYPE,
    IMAGE_URIS,
    LINKED_SIDE,
    SHOWN_SIDE,
    name_in,
    output_schema,
    result_of,
)
from llama_index_gap.agents.mcp_stdin import lines_of_stdin, requests
from llama_index_gap.agents.tool_arguments import (
    DESCRIPTION,
    MAX_TOP_K,
    images_to_name,
    search_arguments,
)
from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError
from llama_index_gap.progress import told
from llama_index_gap.text import duration, error_in_words, excerpt
from llama_index_gap.threads import in_thread

# These take seconds to import; a client gets its first answers before.
if TYPE_CHECKING:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.postprocessor.types import BaseNodePostprocessor

    from llama_index_gap.agents.tool import MultiModalSearchTool

logger = logging.getLogger(__name__)

SEARCH, SIMILAR = "search", "similar_images"
_MISTAKES = 5
# Imports would keep the event loop from writing an answer that is ready.
_WRITING_S = 0.1
# Once initialized, most clients ask for the tools at once.
_SILENCE_S = 1.0
_TOLD_AGAIN_S = 5.0  # a client that hears nothing may give a call up
_SIMILAR = (
    "Find the images that look most like an image of this collection, with the documents that "
    "they belong to, best first."
)
_IMAGES = ResourceTemplate(
    name="image",
    title="An image of the index",
    description="id: of an image that a search returned, escaped as in URLs.",
    uri_template=f"{IMAGE_URIS}{{id}}",
    mime_type=IMAGE_TYPE,
)


class Served(Protocol):
    """What the server needs of an index."""

    def as_retriever(self, *, similarity_top_k: int, complete: bool) -> BaseRetriever:
        """A retriever over it."""

    def close(self) -> None:
        """Close the database."""


Open: TypeAlias = "Callable[[], tuple[Served, list[BaseNodePostprocessor]]]"
"""Gives the open index, and the postprocessors of its hits."""
_Searches: TypeAlias = "dict[str, MultiModalSearchTool]"


def make_server(
    open_index: Open, *, about: str = "", image_root: str | Path | None = None
) -> Server[Any]:
    """Make a server that offers an index's documents and images, and changes nothing.

    Its tools answer with texts, images, links to the images, and the same as structured content.
    A link is read as a resource: an image of the index, and nothing else. Clients that send a
    progress token are told how far a call is.

    The server lists its tools at once. Then it opens the index in a thread, so that no client waits
    for imports or models, and closes it at the end. If the index cannot be opened, a call says why,
    and the next call tries again.

    Args:
        open_index: gives the index, and postprocessors for its hits.
        about: what the index holds, for the models that choose among tools.
        image_root: folder below which query images may be named by their paths.
    """
    tools = _tools(about, image_root)

    @asynccontextmanager
    async def opened(_: Server[Any]) -> AsyncIterator[_Opening]:
        opening = _Opening(partial(_open, open_index, image_root))
        try:
            yield opening
        finally:
            await opening.close()

    async def open_after_answer(
        ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        result = await call_next(ctx)
        if ctx.method != "initialize":  # the client's next message follows
            listed = ctx.request_id is not None
            ctx.lifespan_context.begin_in(_WRITING_S if listed else _SILENCE_S)
        return result

    async def list_tools(*_: Any) -> ListToolsResult:
        return ListToolsResult(tools=list(tools.values()))

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:
        given = params.arguments or {}
        if problem := _problem(tools, params.name, given):
            logger.warning("%s", problem)
            return _failed(problem)
        async with _progress(context.session) as begin:
            try:
                searches = await _searches_of(context, begin)
            except Exception as error:  # whatever the reason, the client needs it
                return _failed(f"the index cannot be opened: {error}")
            begin("Searching")
            try:
                with told(begin):
                    return result_of(await searches[params.name].aanswer(**given))
            except EXPECTED_ERRORS as error:
                logger.warning("%s could not answer: %s", params.name, error)
                return _failed(str(error))
            except Exception as error:  # a mistake in the program must not tell of this machine
                logger.exception("%s failed", params.name)
                return _failed(f"{type(error).__name__}: {error}")

    async def list_resources(*_: Any) -> ListResourcesResult:
        return ListResourcesResult(resources=[])  # an index may have millions of images

    async def list_resource_templates(*_: Any) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=[_IMAGES])

    async def read_resource(context: Any, params: ReadResourceRequestParams) -> ReadResourceResult:
        async with _progress(context.session) as begin:
            try:
                searches = await _searches_of(context, begin)
            except Exception as error:  # whatever the reason, the client needs it
                reason = error_in_words(f"the index cannot be opened: {error}")
                raise MCPError(INTERNAL_ERROR, reason) from error
            try:
                data = await in_thread(_image, searches[SEARCH], params.uri)
            except EXPECTED_ERRORS as error:
                logger.warning("a resource could not be read: %s", error)
                reason = error_in_words(getattr(error, "reason", error))
                raise MCPError(INVALID_PARAMS, reason, {"uri": params.uri}) from error
        contents = BlobResourceContents(
            uri=params.uri, mime_type=IMAGE_TYPE, blob=b64encode(data).decode()
        )
        return ReadResourceResult(contents=[contents])

    server = Server(
        "llama-gap",
        version=llama_index_gap.__version__,
        lifespan=opened,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_resource_templates,
        on_read_resource=read_resource,
    )
    server.middleware.append(open_after_answer)
    return server


def serve(server: Server[Any]) -> None:
    """Serve over stdin and stdout until stdin ends; all other output goes to stderr."""

    async def run() -> None:
        async def answer(message: SessionMessage) -> None:
            await write.send(message)

        stdin = cast(Any, requests(lines_of_stdin(), answer))
        async with stdio_server(stdin=stdin) as (read, write):
            await server.run(read, write, server.create_initialization_options())

    asyncio.run(run())


def _open(open_index: Open, image_root: str | Path | None) -> tuple[Served, _Searches]:
    from llama_index_gap.agents.tool import MultiModalSearchTool

    index, postprocessors = open_index()
    try:
        retriever = index.as_retriever(similarity_top_k=MAX_TOP_K, complete=True)
        search = MultiModalSearchTool(
            retriever,
            postprocessors,
            image_root=image_root,
            max_image_side=SHOWN_SIDE,
        )
        # A copy: both share the list of images that were returned.
        similar = copy(search)
        similar.node_postprocessors = []
        retriever.retrieve("warm up")  # loads and samples now, not at the first query
    except BaseException:
        index.close()
        raise
    return index, {SEARCH: search, SIMILAR: similar}


class _Opening:
    """Opens the index in a thread, and again if a call follows a failure."""

    def __init__(self, open_index: Callable[[], tuple[Served, _Searches]]) -> None:
        self._open = open_index
        self._context = copy_context()  # not the context of the request that begins it
        self._task: asyncio.Task[tuple[Served, _Searches]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._task is not None and self._task.done() and not self._task.exception()

    def begin_in(self, seconds: float) -> None:
        """Open the index after some seconds, or earlier if a call needs it."""
        if self._task is None:
            if self._timer is not None:
                self._timer.cancel()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self._begin, context=self._context)

    def _begin(self) -> asyncio.Task[tuple[Served, _Searches]]:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None or (self._task.done() and self._task.exception()):
            self._task = asyncio.create_task(asyncio.to_thread(self._open))
            self._task.add_done_callback(_say_how_it_went)
        return self._task

    async def searches(self) -> _Searches:
        """The tools by name, once the index is open."""
        # Shielded: a call that is cancelled must not stop what others wait for.
        _, searches = await asyncio.shield(self._begin())
        return searches

    async def close(self) -> None:
        """Close the index."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None:
            return
        await asyncio.wait([self._task])
        if self._task.exception() is None:
            index, _ = self._task.result()
            await asyncio.to_thread(index.close)


async def _searches_of(context: Any, begin: Callable[[str], None]) -> _Searches:
    """The tools by name; says that they are waited for."""
    if not context.lifespan_context.is_open:
        begin("Loading the models and opening the index")
    searches: _Searches = await context.lifespan_context.searches()
    return searches


def _say_how_it_went(opening: asyncio.Task[Any]) -> None:
    if not opening.cancelled() and (error := opening.exception()):
        logger.warning("the index cannot be opened: %s", error)


@asynccontextmanager
async def _progress(session: ServerSession) -> AsyncIterator[Callable[[str], None]]:
    """Tell the client what is being done, if its request has a progress token.

    Gives a function that takes the words for what begins, in any thread. They are sent at once,
    and again every few seconds, with the time since the call began.
    """
    loop, began = asyncio.get_running_loop(), time.monotonic()
    steps: asyncio.Queue[str | None] = asyncio.Queue()

    async def tell() -> None:
        count, doing = 0, ""
        while True:
            message = None
            try:
                message = await asyncio.wait_for(steps.get(), _TOLD_AGAIN_S)
            except TimeoutError:
                if doing:
                    message = f"{doing} ({duration(time.monotonic() - began)})"
            else:
                if message is None:
                    return
                doing = message
            if message:
                count += 1
                await session.report_progress(count, message=message)

    def begin(step: str) -> None:
        loop.call_soon_threadsafe(steps.put_nowait, step)

    telling = asyncio.create_task(tell())
    try:
        yield begin
        loop.call_soon(steps.put_nowait, None)
        await telling
    finally:
        telling.cancel()


# --- the tools, as clients see them --------------------------------------------------------------


def _tools(about: str, image_root: str | Path | None) -> dict[str, Tool]:
    with_image = _parameters(search_arguments(images=images_to_name(image_root, False)))
    image = {"type": "string", "description": with_image["properties"]["image"]["description"]}
    properties = {"image": image, "top_k": with_image["properties"]["top_k"]}
    similar = {"type": "object", "properties": properties, "required": ["image"]}
    return {
        name: Tool(
            name=name,
            title=title,
            description=f"{about} {description}".strip(),
            input_schema=schema,
            output_schema=output_schema(),
            annotations=ToolAnnotations(title=title, read_only_hint=True, open_world_hint=False),
        )
        for name, title, description, schema in (
            (SEARCH, "Search", DESCRIPTION, _parameters(search_arguments())),
            (SIMILAR, "Similar images", _SIMILAR, similar),
        )
    }


def _parameters(arguments: type[Any]) -> dict[str, Any]:
    """Their schema, as LlamaIndex gives it to chat models."""
    schema = arguments.model_json_schema()
    return {name: schema[name] for name in ("type", "properties", "required") if name in schema}


def _problem(tools: Mapping[str, Tool], name: str, given: Mapping[str, Any]) -> str:
    """Wrong or missing names in a call, in words; empty if there are none."""
    if name not in tools:
        return f"{excerpt(name, 80)}: no such tool; there are {', '.join(tools)}"
    schema = tools[name].input_schema
    known: Iterable[str] = schema["properties"]
    unknown = [excerpt(each, 80) for each in given if each not in known]
    wrong = [f"{each}: no such argument" for each in unknown[:_MISTAKES]]
    wrong += [f"{each}: is missing" for each in schema["required"] if each not in given]
    return f"{'; '.join(wrong)}; the arguments are {', '.join(known)}" if wrong else ""


def _failed(message: str) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=f"Error: {error_in_words(message)}")], is_error=True
    )


def _image(search: MultiModalSearchTool, uri: str) -> bytes:
    """An image of the index as a JPEG file, by its address; never a file that a client names."""
    from llama_index_gap.images.opening import scaled_jpeg

    name = name_in(uri)
    if name is None:
        raise InvalidValueError(f"{excerpt(uri, 80)}: no such resource; there are {IMAGE_URIS}ID")
    node = search.find_image(name)
    if node is None:
        raise InvalidValueError(
            f"{excerpt(name, 80)}: the index has no such image; pass the link of one that a "
            "search returned"
        )
    return scaled_jpeg(node, LINKED_SIDE)[0]
