"""An index as an MCP server: search and similar images, for every client of the protocol."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from copy import copy
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    CallToolRequestParams,
    CallToolResult,
    ErrorData,
    ImageContent,
    JSONRPCError,
    JSONRPCNotification,
    ListToolsResult,
    TextContent,
    Tool,
    ToolAnnotations,
    jsonrpc_message_adapter,
)
from pydantic_core import from_json

import llama_index_gap
from llama_index_gap.agents.tool_arguments import (
    DESCRIPTION,
    MAX_TOP_K,
    images_to_name,
    search_arguments,
)
from llama_index_gap.text import error_in_words, excerpt

# These take seconds to import, before which a client has its first answers.
if TYPE_CHECKING:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.llms.types import ContentBlock
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.tools import ToolOutput

    from llama_index_gap.agents.tool import MultiModalSearchTool

logger = logging.getLogger(__name__)

SEARCH, SIMILAR = "search", "similar_images"
_LONGEST_REQUEST = 2**20
# Strings, brackets, and what stands behind "id"; no string is ever scanned twice.
_TOKENS = re.compile(
    r'"id"\s*:\s*(?:(?P<number>-?\d{1,18})(?=\s*[,}])|"(?P<text>[^"\\\x00-\x1f]{1,200})"(?=\s*[,}]))'
    r'|"(?:[^"\\]|\\.)*"?|[][{}]',
    re.DOTALL,
)
_MISTAKES = 5
# Imports would keep the event loop from writing an answer that is ready.
_WRITING_S = 0.1
# Clients say that they are initialized, and then ask for the tools at once, if they do.
_SILENCE_S = 1.0
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


Open: TypeAlias = "Callable[[], tuple[Served, list[BaseNodePostprocessor]]]"
"""Opens the index, and loads what ranks its documents anew."""
_Searches: TypeAlias = "dict[str, MultiModalSearchTool]"


def make_server(
    open_index: Open, *, about: str = "", image_root: str | Path | None = None
) -> Server[Any]:
    """Make a server that offers an index's documents and images, and changes nothing.

    It says first what it can do. The index is opened thereafter, in a thread, so that no import or
    model keeps a client waiting for that, and closed with the server. Where it cannot be opened, a
    call says why, and the next one tries again.

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

    async def open_after_answer(
        ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        result = await call_next(ctx)
        if ctx.method != "initialize":  # whoever says it goes on with another message
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
        try:
            searches = await context.lifespan_context.searches()
        except Exception as error:  # whatever the reason, it is what to tell
            return _failed(f"the index cannot be opened: {error}")
        try:
            output: ToolOutput = await searches[params.name].acall(**given)
        except Exception as error:  # a mistake in the program must not tell of this machine
            logger.exception("%s failed", params.name)
            return _failed(f"{type(error).__name__}: {error}")
        return CallToolResult(content=_contents(output.blocks), is_error=output.is_error)

    server = Server(
        "llama-gap",
        version=llama_index_gap.__version__,
        lifespan=opened,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    server.middleware.append(open_after_answer)
    return server


def serve(server: Server[Any]) -> None:
    """Serve over stdin and stdout until stdin ends; what else is printed goes to stderr."""

    async def run() -> None:
        async def answer(message: SessionMessage) -> None:
            await write.send(message)

        stdin = cast(Any, requests(_lines_of_stdin(), answer))
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
    """An index that is to be opened in a thread; again, if somebody asks after it has failed."""

    def __init__(self, open_index: Callable[[], tuple[Served, _Searches]]) -> None:
        self._open = open_index
        self._context = copy_context()  # not that of the request that it is opened after
        self._task: asyncio.Task[tuple[Served, _Searches]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin_in(self, seconds: float) -> None:
        """Open it, once so much time has passed; at the latest when somebody asks for it."""
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
    """As LlamaIndex tells chat models of them."""
    schema = arguments.model_json_schema()
    return {name: schema[name] for name in ("type", "properties", "required") if name in schema}


def _problem(tools: Mapping[str, Tool], name: str, given: Mapping[str, Any]) -> str:
    """What is wrong with the names in a call, if anything."""
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


def _contents(blocks: Iterable[ContentBlock]) -> list[Any]:
    from llama_index.core.base.llms.types import ImageBlock, TextBlock

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


async def _lines_of_stdin() -> AsyncIterator[bytes]:
    """The lines of stdin, read by a thread that Ctrl-C need not wait for; long ones are cut.

    The SDK's own reader waits, once interrupted, for another line or the end of stdin.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        # A reader of its own: sys.stdin's would be locked when the interpreter ends.
        with (
            suppress(RuntimeError),  # the loop has ended
            open(sys.stdin.fileno(), "rb", closefd=False) as stdin,
        ):
            while line := stdin.readline(_LONGEST_REQUEST + 1):
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = stdin.readline(_LONGEST_REQUEST)
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, b"")

    Thread(target=read, name="stdin", daemon=True).start()
    while line := await lines.get():
        yield line


async def requests(
    lines: AsyncIterator[bytes], answer: Callable[[SessionMessage], Awaitable[None]]
) -> AsyncIterator[str]:
    """The lines that are messages; others are answered here, as the SDK drops them in silence."""
    async for line in lines:
        if problem := _why_no_message(line):
            code, message = problem
            logger.warning("a request was refused: %s", message)
            error = ErrorData(code=code, message=message)
            refusal = JSONRPCError(jsonrpc="2.0", id=_id_of(line), error=error)
            await answer(SessionMessage(refusal))
        elif line.strip():
            yield line.decode()


def _why_no_message(line: bytes) -> tuple[int, str] | None:
    """The error code and the reason; None for a message, and for an empty line."""
    if len(line) > _LONGEST_REQUEST:
        return INVALID_REQUEST, f"the request is longer than {_LONGEST_REQUEST:,} bytes"
    if not line.strip():
        return None
    try:
        message = from_json(line.decode(), allow_inf_nan=False)
    except ValueError as error:  # no UTF-8, no JSON, lone surrogates, nested too deep, …
        return PARSE_ERROR, error_in_words(f"the request is no JSON that can be read: {error}")
    try:
        read = jsonrpc_message_adapter.validate_python(message, by_name=False)
    except ValueError:
        return INVALID_REQUEST, "the request is no JSON-RPC 2.0 message"
    if isinstance(read, JSONRPCNotification) and "id" in message:
        return INVALID_REQUEST, "the id of a request must be text or a whole number"
    return None


def _id_of(line: bytes) -> str | int | None:
    """The id of a request that cannot be parsed, as far as it can be told."""
    depth = 0
    for token in _TOKENS.finditer(line.decode(errors="replace")):
        if depth == 1 and token["number"]:
            return int(token["number"])
        if depth == 1 and token["text"]:
            return token["text"]
        depth += (token[0] in "[{") - (token[0] in "]}")
    return None
