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
from mcp import Client, MCPError, StdioServerParameters
from PIL import Image
from tiny_rerankers import make_tiny_qwen_reranker

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank, StoreError
from llama_index_gap.agents import mcp_server
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
        assert tool.annotations.read_only_hint is True
        assert tool.annotations.open_world_hint is False
        assert tool.annotations.title == tool.title
        assert "$ref" not in json.dumps([tool.input_schema, tool.output_schema])
        assert tool.output_schema["required"] == ["documents", "notes"]
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

    shown = ("text", "image", "resource_link")
    assert [content.type for content in found.content] == ["text", *shown * 2]
    assert found.content[0].text.startswith("2 documents, best first.")
    for content in found.content[2::3]:
        assert content.mime_type == "image/jpeg"
        with Image.open(BytesIO(base64.b64decode(content.data))) as image:
            assert (image.format, image.size) == ("JPEG", (40, 40))
    assert '[1] "blue"' in texts(only)
    assert "[2]" not in texts(only)
    assert '[1] "green"' in texts(by_id)
    assert "image_by_image 1" in texts(by_id)
    assert "text_by_image" not in texts(by_id)
    assert not any(result.is_error for result in (found, only, by_id))


# --- data, links and resources ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_same_comes_as_data_that_the_client_checks_by_the_schema(
    database: str, mode: str
) -> None:
    async def ask(client: Client) -> Any:
        await client.list_tools()  # from then on the client checks what it is given
        return await client.call_tool("search", {"query": "something"})

    found = talk(server_of(database), ask, mode=mode)
    documents = found.structured_content["documents"]

    assert [each["rank"] for each in documents] == [1, 2, 3]
    assert found.structured_content["notes"] == []
    for document in documents:
        colour = document["id"]
        assert document["passages"] == [f"all about {colour}"]
        assert document["metadata"] == {"colour": colour}
        assert f"score {document['score']:.4g} (" in texts(found)
        assert document["images"] == [
            {
                "id": f"{colour}-image",
                "uri": f"llama-gap://image/{colour}-image",
                "file": f"{colour}.png",
                "caption": "",
                "shown": True,
                "problem": "",
            }
        ]


def test_the_text_says_which_image_is_shown_where_it_lies_and_that_it_may_be_missing(
    database: str,
) -> None:
    async def ask(client: Client) -> Any:
        return await client.call_tool("search", {"query": "something"})

    found = talk(server_of(database), ask)

    assert "Your program may not show them" in found.content[0].text
    links = [content for content in found.content if content.type == "resource_link"]
    for number, link in enumerate(links, 1):
        colour = link.name.removesuffix("-image")
        assert (
            f'image "{link.name}" | shown below as image {number} | file "{colour}.png" '
            f"| link {link.uri}"
        ) in texts(found).splitlines()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_link_is_read_as_an_image_of_at_most_1600_tokens(
    tiny_clip: Path, tmp_path: Path, mode: str
) -> None:
    name = "photos/a b#1.png"
    (tmp_path / "photos").mkdir()
    Image.effect_noise((3000, 2900), 60).save(tmp_path / name)
    node = ImageNode(id_=name, image_path=str(tmp_path / name), text="noise")
    model = DualEncoderEmbedding(model_name=str(tiny_clip))
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        index.insert_nodes([node])

    async def ask(client: Client) -> Any:
        found = await client.call_tool("search", {"query": "something"})
        (link,) = (each for each in found.content if each.type == "resource_link")
        templates = (await client.list_resource_templates()).resource_templates
        listed = (await client.list_resources()).resources
        return found, link, templates, listed, await client.read_resource(link.uri)

    found, link, templates, listed, read = talk(server_of(str(tmp_path / "gap.db")), ask, mode=mode)

    assert link.uri == "llama-gap://image/photos%2Fa%20b%231.png"
    assert (link.name, link.title, link.mime_type) == (name, "noise", "image/jpeg")
    assert [each.uri_template for each in templates] == ["llama-gap://image/{id}"]
    assert listed == []
    (shown,) = (each.data for each in found.content if each.type == "image")
    (contents,) = read.contents
    assert (contents.uri, contents.mime_type) == (link.uri, "image/jpeg")
    sizes = []
    for data in (shown, contents.blob):
        with Image.open(BytesIO(base64.b64decode(data))) as image:
            sizes.append(image.size)
            assert image.width * image.height / 750 <= 1600
    assert sizes == [(512, 495), (1095, 1059)]


def test_only_images_of_the_index_can_be_read(database: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    Image.new("RGB", (9, 9), "red").save(mine)
    refused = {
        "llama-gap://image/unknown": "unknown: the index has no such image",
        "llama-gap://image/red-text": "red-text: the index has no such image",
        "llama-gap://image/": "no such resource",
        "llama-gap://image/mine.png": "no such image",
        f"llama-gap://image/{str(mine).replace('/', '%2F')}": "no such image",
        mine.as_uri(): "no such resource",
        "llama-gap://image/..%2F..%2Fetc%2Fpasswd": "no such image",
        "https://example.org/a.png": "no such resource",
    }

    async def ask(client: Client) -> list[str]:
        said = []
        for uri in refused:
            with pytest.raises(MCPError) as raised:
                await client.read_resource(uri)
            said.append(raised.value.message)
        await client.read_resource("llama-gap://image/red-image")
        return said

    # Though clients may search by the images of this folder.
    said = talk(server_of(database, image_root=tmp_path), ask)
    for message, expected in zip(said, refused.values(), strict=True):
        assert expected in message
        assert str(tmp_path) not in message


def test_an_image_that_cannot_be_read_has_no_link_but_a_reason(
    tiny_clip: Path, tmp_path: Path
) -> None:
    path = tmp_path / "gone.png"
    Image.new("RGB", (9, 9), "red").save(path)
    model = DualEncoderEmbedding(model_name=str(tiny_clip))
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        index.insert_nodes([ImageNode(id_="gone", image_path=str(path))])
    path.unlink()

    async def ask(client: Client) -> Any:
        return await client.call_tool("search", {"query": "something"})

    found = talk(server_of(str(tmp_path / "gap.db")), ask)

    assert {content.type for content in found.content} == {"text"}
    (image,) = found.structured_content["documents"][0]["images"]
    assert (image["uri"], image["shown"]) == ("", False)
    assert image["problem"]
    assert "cannot be shown" in texts(found)
    assert str(tmp_path) not in json.dumps(found.structured_content)


# --- progress -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_long_call_says_how_far_it_is(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(mcp_server, "_TOLD_AGAIN_S", 0.05)
    may_open = threading.Event()
    heard: list[tuple[float, str]] = []
    scorer = MultiModalRerank(model=str(make_tiny_qwen_reranker(tmp_path / "judge")), top_n=None)

    def open_index() -> tuple[DualIndex, list[Any]]:
        assert may_open.wait(PATIENCE_S)
        return DualIndex(database), [scorer]

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))
        if len(heard) == 3:
            may_open.set()

    async def ask(client: Client) -> Any:
        first = await client.call_tool("search", {"query": "ship"}, progress_callback=hear)
        count = len(heard)
        second = await client.call_tool("search", {"query": "ship"})
        return first, second, count

    first, second, count = talk(make_server(open_index), ask, mode=mode)

    assert not first.is_error
    assert not second.is_error
    assert len(heard) == count  # nobody asked to be told of the second
    numbers = [number for number, _ in heard]
    assert numbers == sorted(set(numbers))
    said = [message for _, message in heard]
    assert said[0] == "Loading the models and opening the index"
    assert said[1].startswith("Loading the models and opening the index (")
    steps = [message for message in said if "(" not in message]
    assert steps == [
        said[0],
        "Searching",
        "Reranking: 0 of 3 documents",
        "Reranking: 3 of 3 documents",
    ]


# --- other folders and mistakes -----------------------------------------------------------------


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
        if len(tried) < 4:
            raise StoreError("is open in another process")
        return DualIndex(database), []

    async def ask(client: Client) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while expected not in caplog.text:  # of the first one, which nobody waits for
                await asyncio.sleep(0)
        with pytest.raises(MCPError, match=expected):
            await client.read_resource("llama-gap://image/red-image")
        return [await client.call_tool("search", {"query": "something"}) for _ in range(2)]

    *failed, found = talk(make_server(open_index), ask)

    assert len(tried) == 4
    assert {(result.is_error, texts(result)) for result in failed} == {(True, f"Error: {expected}")}
    assert not found.is_error
    assert caplog.text.count(expected) == 3


@pytest.mark.slow
def test_as_a_process(database: str) -> None:
    server = StdioServerParameters(
        command=COMMAND, args=["mcp", "--db", database], env=dict(os.environ)
    )

    async def ask(client: Client) -> Any:
        return await client.call_tool("search", {"query": "something", "top_k": 1})

    result = talk(server, ask)

    assert [each.type for each in result.content] == ["text", "text", "image", "resource_link"]


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
