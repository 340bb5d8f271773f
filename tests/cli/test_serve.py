from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import gap
from mcp import Client
from tiny_rerankers import make_tiny_qwen_reranker


def test_mcp_serves_an_index_with_its_reranker(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("llama_index_gap.agents.mcp_server.serve", served.append)
    reranker = make_tiny_qwen_reranker(tmp_path / "reranker")

    shown = gap("mcp", "--db", demo / "gap.db", "--reranker", reranker, "--about", "Some news.")

    async def ask() -> Any:
        async with Client(served[0]) as client:
            search, _ = (await client.list_tools()).tools
            return search, await client.call_tool("search", {"query": "ferry", "top_k": 7})

    search, found = asyncio.run(ask())
    assert shown == (0, "", "")
    assert search.description.startswith("Some news. Search documents")
    texts = [content.text for content in found.content if content.type == "text"]
    assert texts[0].startswith("7 documents, best first.")
    assert "rerank_text" in texts[1]
    assert [content.type for content in found.content].count("image") == 5


def test_mcp_says_at_once_what_is_wrong(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such database" in gap("mcp", "--db", tmp_path / "no.db").err
    folder = gap("mcp", "--db", demo / "gap.db", "--image-root", tmp_path / "no")
    assert folder == (1, "", f"error: {tmp_path / 'no'}: no such folder\n")

    monkeypatch.delitem(sys.modules, "llama_index_gap.agents.mcp_server")
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    missing = gap("mcp", "--db", demo / "gap.db")
    assert missing.code == 1
    assert "pip install 'llama-index-gap[mcp]'" in missing.err
