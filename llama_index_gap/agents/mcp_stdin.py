"""What a client writes to the MCP server: lines; those that are no messages are refused."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from threading import Thread

from mcp.shared.message import SessionMessage
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    jsonrpc_message_adapter,
)
from pydantic_core import from_json

from llama_index_gap.text import error_in_words

logger = logging.getLogger(__name__)

_LONGEST_REQUEST = 2**20
# Strings, brackets, and the value of "id"; no string is ever scanned twice.
_TOKENS = re.compile(
    r'"id"\s*:\s*(?:(?P<number>-?\d{1,18})(?=\s*[,}])|"(?P<text>[^"\\\x00-\x1f]{1,200})"(?=\s*[,}]))'
    r'|"(?:[^"\\]|\\.)*"?|[][{}]',
    re.DOTALL,
)


async def lines_of_stdin() -> AsyncIterator[bytes]:
    """The lines of stdin, read by a thread that does not delay Ctrl-C; long lines are cut.

    Once interrupted, the SDK's own reader waits for another line or the end of stdin.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        # A separate reader: sys.stdin's would be locked when the interpreter ends.
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
    """The lines that are messages; others are refused here, as the SDK drops them silently."""
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
    """The id of a request that cannot be parsed, if one can be found."""
    depth = 0
    for token in _TOKENS.finditer(line.decode(errors="replace")):
        if depth == 1 and token["number"]:
            return int(token["number"])
        if depth == 1 and token["text"]:
            return token["text"]
        depth += (token[0] in "[{") - (token[0] in "]}")
    return None
