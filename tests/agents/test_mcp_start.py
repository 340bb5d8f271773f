"""What a client gets of the server before there is an index to search."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from paths import ROOT

# Opens "the index" once somebody writes into a FIFO, and then fails; tried again, it fails at once.
SERVER = """
import sys
from llama_index_gap.agents.mcp_server import make_server, serve
from llama_index_gap.errors import GapError

print("before:", "llama_index.core" in sys.modules, "torch" in sys.modules, file=sys.stderr)

may_open = [sys.argv[1]]

def open_index():
    print("opening", file=sys.stderr, flush=True)
    if may_open:
        open(may_open.pop()).read()
    raise GapError("it is gone")

serve(make_server(open_index))
"""
HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


@pytest.fixture
def may_open(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "may_open")
    return tmp_path / "may_open"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_raw_requests_are_answered_while_the_index_is_opened(may_open: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER, str(may_open)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        watchdog = Timer(300, process.kill)  # a test that fails must not hang
        watchdog.start()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None

        def send(**message: Any) -> None:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            process.stdin.flush()

        send(id=1, method="initialize", params=HELLO)
        first = json.loads(process.stdout.readline())
        send(method="notifications/initialized")
        assert process.stderr.readline() == "before: False False\n"
        assert process.stderr.readline() == "opening\n"  # though nobody asked for anything
        send(id=2, method="tools/list")
        second = json.loads(process.stdout.readline())
        arguments = {"name": "search", "arguments": {"query": "x"}}
        send(id=3, method="tools/call", params=arguments)
        may_open.write_text("now")
        third = json.loads(process.stdout.readline())
        rest, errors = process.communicate(timeout=60)
        watchdog.cancel()

    assert first["result"]["serverInfo"]["name"] == "llama-gap"
    assert [tool["name"] for tool in second["result"]["tools"]] == ["search", "similar_images"]
    assert third["result"]["isError"]
    assert third["result"]["content"][0]["text"] == (
        "Error: the index cannot be opened: it is gone"
    )
    assert "the index cannot be opened: it is gone" in errors
    assert "Traceback" not in errors
    assert (process.returncode, rest) == (0, "")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_protocols_own_client_too(may_open: Path, mode: str) -> None:
    server = StdioServerParameters(
        command=sys.executable, args=["-P", "-c", SERVER, str(may_open)], env=environment()
    )

    async def run() -> tuple[list[str], Any]:
        async with Client(server, mode=mode) as client:
            tools = (await client.list_tools()).tools
            asking = asyncio.create_task(client.call_tool("search", {"query": "x"}))
            await asyncio.to_thread(may_open.write_text, "now")
            return [tool.name for tool in tools], await asking

    names, result = asyncio.run(run())

    assert names == ["search", "similar_images"]
    assert result.is_error
    assert "it is gone" in result.content[0].text
