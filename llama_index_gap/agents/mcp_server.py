"""An index as an MCP server: search and similar images, for every client of the protocol."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from copy import copy
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TypeAlias, cast

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ContentBlock, ImageBlock, TextBlock
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.tools import ToolMetadata, ToolOutput
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ImageContent,
    ListToolsResult,
    TextContent,
    Tool,
    ToolAnnotations,
)

import llama_index_gap
from llama_index_gap.agents.tool import MultiModalSearchTool
from llama_index_gap.agents.tool_arguments import (
    DESCRIPTION,
    MAX_TOP_K,
    images_to_name,
    search_arguments,
)

logger = logging.getLogger(__name__)

SEARCH, SIMILAR = "search", "similar_images"
_MAX_IMAGE_SIDE = 512  # some clients take no answer of more than 1 MB
_SIMILAR = (
    "Find the images that look most like an image of this collection, with the documents that "
    "they belong to, best first."
)


class Served(Protocol):
    """What the server knows of an index."""

    def as_retriever(self, *, similarity_top_k: int, complete: bool) -> BaseRetriever:
        """What searches it."""

    def close(self) -> None:
        """Let go of the database."""


Open: TypeAlias = Callable[[], tuple[Served, list[BaseNodePostprocessor]]]
"""Opens the index, and loads what ranks its documents anew."""
_Searches: TypeAlias = dict[str, MultiModalSearchTool]


def make_server(
    open_index: Open, *, about: str = "", image_root: str | Path | None = None
) -> Server[Any]:
    """Make a server that offers an index's documents and images, and changes nothing.

    It answers at once what it can do; the index is opened meanwhile, in a thread, and closed with
    the server. Where it cannot be opened, a call says why, and the next one tries again.

    Args:
        open_index: gives the index and postprocessors of what is found in it.
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

    async def list_tools(*_: Any) -> ListToolsResult:
        return ListToolsResult(tools=list(tools.values()))

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:
        given = params.arguments or {}
        if problem := _problem(tools, params.name, given):
            logger.warning("%s", problem)
            return _failed(problem)
        try:
            searches = await context.lifespan_context.searches()
        except Exception as error:  # whatever the reason, it is what to tell
            return _failed(f"the index cannot be opened: {error}")
        output: ToolOutput = await searches[params.name].acall(**given)
        return CallToolResult(content=_contents(output.blocks), is_error=output.is_error)

    return Server(
        "llama-gap",
        version=llama_index_gap.__version__,
        lifespan=opened,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def serve(server: Server[Any]) -> None:
    """Serve over stdin and stdout until stdin ends; what else is printed goes to stderr."""

    async def run() -> None:
        stdin = cast(Any, _lines_of_stdin())
        async with stdio_server(stdin=stdin) as (read, write):
            await server.run(read, write, server.create_initialization_options())

    asyncio.run(run())


def _open(open_index: Open, image_root: str | Path | None) -> tuple[Served, _Searches]:
    index, postprocessors = open_index()
    try:
        retriever = index.as_retriever(similarity_top_k=MAX_TOP_K, complete=True)
        search = MultiModalSearchTool(
            retriever,
            postprocessors,
            image_root=image_root,
            max_image_side=_MAX_IMAGE_SIDE,
        )
        # A copy, so that it knows which images the other has returned.
        similar = copy(search)
        similar.node_postprocessors = []
        retriever.retrieve("warm up")  # what is loaded or sampled at the first query is so now
    except BaseException:
        index.close()
        raise
    return index, {SEARCH: search, SIMILAR: similar}


class _Opening:
    """An index that is being opened in a thread; again, if somebody asks after it has failed."""

    def __init__(self, open_index: Callable[[], tuple[Served, _Searches]]) -> None:
        self._open = open_index
        self._task = self._start()

    def _start(self) -> asyncio.Task[tuple[Served, _Searches]]:
        task = asyncio.create_task(asyncio.to_thread(self._open))
        task.add_done_callback(_say_how_it_went)
        return task

    async def searches(self) -> _Searches:
        """The tools by name, once the index is open."""
        if self._task.done() and self._task.exception():
            self._task = self._start()
        # Shielded: a call that is cancelled must not stop what others wait for.
        _, searches = await asyncio.shield(self._task)
        return searches

    async def close(self) -> None:
        """Close the index."""
        await asyncio.wait([self._task])
        if self._task.exception() is None:
            index, _ = self._task.result()
            await asyncio.to_thread(index.close)


def _say_how_it_went(opening: asyncio.Task[Any]) -> None:
    if not opening.cancelled() and (error := opening.exception()):
        logger.warning("the index cannot be opened: %s", error)


# --- the tools, as clients are told of them ------------------------------------------------------


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
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
        for name, title, description, schema in (
            (SEARCH, "Search", DESCRIPTION, _parameters(search_arguments())),
            (SIMILAR, "Similar images", _SIMILAR, similar),
        )
    }


def _parameters(arguments: type[Any]) -> dict[str, Any]:
    return ToolMetadata("", fn_schema=arguments).get_parameters_dict()


def _problem(tools: Mapping[str, Tool], name: str, given: Mapping[str, Any]) -> str:
    """What is wrong with the names in a call, if anything."""
    if name not in tools:
        return f"{name}: no such tool; there are {', '.join(tools)}"
    schema = tools[name].input_schema
    known: Iterable[str] = schema["properties"]
    wrong = [f"{each}: no such argument" for each in given if each not in known]
    wrong += [f"{each}: is missing" for each in schema["required"] if each not in given]
    return f"{'; '.join(wrong)}; the arguments are {', '.join(known)}" if wrong else ""


def _failed(message: str) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=f"Error: {message}")], is_error=True
    )


def _contents(blocks: Iterable[ContentBlock]) -> list[Any]:
    contents: list[TextContent | ImageContent] = []
    for block in blocks:
        match block:
            case TextBlock():
                contents.append(TextContent(type="text", text=block.text))
            case ImageBlock(image=bytes() as data, image_mimetype=str() as mime_type):
                image = ImageContent(type="image", data=data.decode(), mime_type=mime_type)
                contents.append(image)
    return contents


# --- stdin ---------------------------------------------------------------------------------------


async def _lines_of_stdin() -> AsyncIterator[str]:
    """The lines of stdin, read by a thread that Ctrl-C need not wait for.

    The SDK's own reader waits, once interrupted, for another line or the end of stdin.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        # A reader of its own: sys.stdin's would be locked when the interpreter ends.
        with (
            suppress(RuntimeError),  # the loop has ended
            open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as stdin,
        ):
            for line in stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, "")

    Thread(target=read, name="stdin", daemon=True).start()
    while line := await lines.get():
        yield line
