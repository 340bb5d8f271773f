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


async def ask(uri: str, query: str) -> None:
    gap = str(Path(sys.executable).with_name("llama-gap"))
    server = StdioServerParameters(command=gap, args=["mcp", "--db", uri], env={**os.environ})
    async with Client(server) as client:
        found = await client.call_tool("search", {"query": query, "top_k": 1})
        for part in found.content:
            print(part.text if part.type == "text" else f"<{part.type}, {part.mime_type}>")
        print(json.dumps(data := found.structured_content, indent=1))
        (image,) = data["documents"][0]["images"]
        linked = (await client.read_resource(image["uri"])).contents[0].blob
        print("Read by its link:", Image.open(io.BytesIO(base64.b64decode(linked))).size)
        like = await client.call_tool("similar_images", {"image": image["id"], "top_k": 3})
        print("Images like it:")
        print(*(each["passages"][0] for each in like.structured_content["documents"]), sep="\n")


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(folder, articles=100, queries_per_kind=1))
    model = DualEncoderEmbedding(model_name=CHECKPOINT)
    DualIndex.from_documents(corpus, uri=f"{folder}/gap.db", embed_model=model).close()
    asyncio.run(ask(f"{folder}/gap.db", "retired people celebrate at Orleth"))
