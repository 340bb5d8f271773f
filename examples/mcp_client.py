"""What an agent or a chat program gets from the MCP server; needs the extra mcp."""

import asyncio
import base64
import io
import json
import os
import sys
import tempfile
from pathlib import Path

from mcp import Client, StdioServerParameters
from PIL import Image

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom


async def ask(uri: str) -> None:
    command = str(Path(sys.executable).with_name("llama-gap"))
    server = StdioServerParameters(command=command, args=["mcp", "--db", uri], env={**os.environ})
    async with Client(server) as client:
        found = await client.call_tool(
            "search", {"query": "retired people celebrate at Orleth", "top_k": 1}
        )
        for block in found.content:
            print(block.text if block.type == "text" else f"<{block.type}, {block.mime_type}>")
        print(json.dumps(found.structured_content, indent=1))
        (image,) = found.structured_content["documents"][0]["images"]
        linked = (await client.read_resource(image["uri"])).contents[0].blob
        print("Read by its link:", Image.open(io.BytesIO(base64.b64decode(linked))).size)
        like = await client.call_tool("similar_images", {"image": image["id"], "top_k": 3})
        print("Images like it:")
        print(*(each["passages"][0] for each in like.structured_content["documents"]), sep="\n")


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(folder, articles=100, queries_per_kind=1))
    uri, embedding = str(Path(folder) / "gap.db"), DualEncoderEmbedding(model_name=CHECKPOINT)
    DualIndex.from_documents(corpus, uri=uri, embed_model=embedding).close()
    asyncio.run(ask(uri))
