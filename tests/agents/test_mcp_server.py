from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from gate import PATIENCE_S
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from mcp import Client, StdioServerParameters
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, DualIndex, StoreError
from llama_index_gap.agents.mcp_server import make_server
from llama_index_gap.store.milvus import MilvusStore

COMMAND = str(Path(sys.executable).with_name("llama-gap"))
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def database(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three documents, each a text and an image."""
    folder = tmp_path_factory.mktemp("mcp")
    nodes: list[Any] = []
    for colour in COLOURS:
        Image.new("RGB", (40, 40), colour).save(folder / f"{colour}.png")
        document = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=colour)}
        nodes += [
            TextNode(id_=f"{colour}-text", text=f"all about {colour}", relationships=document),
            ImageNode(
                id_=f"{colour}-image",
                image_path=str(folder / f"{colour}.png"),
                metadata={"colour": colour},
                relationships=document,
            ),
        ]
    model = DualEncoderEmbedding(model_name=str(tiny_clip))
    with DualIndex(str(folder / "gap.db"), embed_model=model) as index:
        index.insert_nodes(nodes)
    return str(folder / "gap.db")


def talk(server: Any, conversation: Callable[[Client], Any], **settings: Any) -> Any:
    async def run() -> Any:
        async with Client(server, **settings) as client:
            return await conversation(client)

    return asyncio.run(run())


def server_of(database: str, **settings: Any) -> Any:
    return make_server(lambda: (DualIndex(database), []), **settings)


def texts(result: Any) -> str:
    return "\n".join(content.text for content in result.content if content.type == "text")


# --- what it offers -----------------------------------------------------------------------------


def test_its_tools_only_read_and_say_what_they_hold(database: str) -> None:
    server = server_of(database, about="Three plain colours.")

    async def look(client: Client) -> Any:
        return (await client.list_tools()).tools

    search, similar = talk(server, look)

    assert (search.name, similar.name) == ("search", "similar_images")
    for tool in (search, similar):
        assert tool.description.startswith("Three plain colours. ")
        assert tool.annotations.read_only_hint
        assert not tool.annotations.open_world_hint
        assert "$ref" not in json.dumps(tool.input_schema)
    assert list(search.input_schema["properties"]) == ["query", "top_k", "filters"]
    assert search.input_schema["required"] == ["query"]
    assert list(similar.input_schema["properties"]) == ["image", "top_k"]
    assert similar.input_schema["required"] == ["image"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_search_and_similar_images(database: str, mode: str) -> None:
    async def ask(client: Client) -> Any:
        found = await client.call_tool("search", {"query": "something", "top_k": 2})
        only = await client.call_tool(
            "search", {"query": "x", "filters": [{"key": "colour", "value": "blue"}]}
        )
        by_id = await client.call_tool("similar_images", {"image": "green-image"})
        return found, only, by_id

    found, only, by_id = talk(server_of(database), ask, mode=mode)

    assert [content.type for content in found.content] == ["text", *("text", "image") * 2]
    assert found.content[0].text.startswith("2 documents, best first.")
    for content in found.content[2::2]:
        assert content.mime_type == "image/jpeg"
        with Image.open(BytesIO(base64.b64decode(content.data))) as image:
            assert (image.format, image.size) == ("JPEG", (40, 40))
    assert '[1] "blue"' in texts(only)
    assert "[2]" not in texts(only)
    assert '[1] "green"' in texts(by_id)
    assert "image_by_image 1" in texts(by_id)
    assert "text_by_image" not in texts(by_id)
    assert not any(result.is_error for result in (found, only, by_id))


def test_images_of_a_folder_where_it_is_named(database: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "mine.png")

    async def ask(client: Client) -> Any:
        return [
            await client.call_tool("similar_images", {"image": image, "top_k": 1})
            for image in ("mine.png", "/etc/passwd")
        ]

    mine, secret = talk(server_of(database, image_root=tmp_path), ask)
    assert '[1] "red"' in texts(mine)
    assert secret.is_error
    assert "lies outside" in texts(secret)
    assert all(result.is_error for result in talk(server_of(database), ask))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("find", {}, "find: no such tool; there are search, similar_images"),
        ("search", {}, "query: is missing; the arguments are query, top_k, filters"),
        ("search", {"query": "a", "image": "b"}, "image: no such argument; the arguments are"),
        ("search", {"query": "a", "top_k": 99}, "top_k: Input should be less than or equal to"),
        ("similar_images", {"image": "x"}, "x: no such image here; pass the id of an image"),
    ],
)
def test_mistakes_come_back_as_errors(
    database: str, name: str, arguments: dict[str, Any], message: str
) -> None:
    async def ask(client: Client) -> Any:
        return await client.call_tool(name, arguments)

    result = talk(server_of(database), ask)

    assert result.is_error
    assert message in texts(result)


# --- its life -----------------------------------------------------------------------------------


def test_it_answers_before_the_index_is_open_and_closes_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open, opened = threading.Event(), []
    closed = []
    monkeypatch.setattr(
        MilvusStore, "close", lambda store, close=MilvusStore.close: closed.append(close(store))
    )

    def open_index() -> tuple[DualIndex, list[Any]]:
        assert may_open.wait(60)
        opened.append(DualIndex(database))
        closed.clear()
        return opened[0], []

    async def ask(client: Client) -> Any:
        await client.list_tools()
        assert not opened
        may_open.set()
        calls = (client.call_tool("search", {"query": "something"}) for _ in range(3))
        return await asyncio.gather(*calls)

    results = talk(make_server(open_index), ask)

    assert [result.is_error for result in results] == [False] * 3
    assert len(opened) == 1
    assert len(closed) == 2


def test_it_says_why_the_index_cannot_be_opened_and_tries_again(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = "the index cannot be opened: is open in another process"
    tried = []

    def open_index() -> tuple[DualIndex, list[Any]]:
        tried.append(len(tried))
        if len(tried) < 3:
            raise StoreError("is open in another process")
        return DualIndex(database), []

    async def ask(client: Client) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while expected not in caplog.text:  # of the first one, which nobody waits for
                await asyncio.sleep(0)
        return [await client.call_tool("search", {"query": "something"}) for _ in range(2)]

    *failed, found = talk(make_server(open_index), ask)

    assert len(tried) == 3
    assert {(result.is_error, texts(result)) for result in failed} == {(True, f"Error: {expected}")}
    assert not found.is_error
    assert caplog.text.count(expected) == 2


@pytest.mark.slow
def test_as_a_process(database: str) -> None:
    server = StdioServerParameters(
        command=COMMAND, args=["mcp", "--db", database], env=dict(os.environ)
    )

    async def ask(client: Client) -> Any:
        return await client.call_tool("search", {"query": "something", "top_k": 1})

    result = talk(server, ask)

    assert [content.type for content in result.content] == ["text", "text", "image"]


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("end", ["interrupt", "end of stdin"])
def test_it_ends_without_a_word(tmp_path: Path, end: str) -> None:
    (tmp_path / "gap.db").touch()  # an index that cannot be opened is tried soonest
    initialize = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    with subprocess.Popen(
        [COMMAND, "mcp", "--db", str(tmp_path / "gap.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(initialize) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert answer["result"]["serverInfo"]["name"] == "llama-gap"
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
            process.wait(60)
        rest, errors = process.communicate(timeout=60)

    assert process.returncode == (130 if end == "interrupt" else 0)
    assert rest == ""
    assert "Traceback" not in errors
