"""Runs an embedding service in a separate process, with all dialects, that can misbehave.

    python embedding_server.py

It prints its address. ``/DIALECT/embeddings`` answers; ``/keyed/DIALECT/embeddings`` requires the
key ``KEY``; ``/KIND/TIMES/NAME/DIALECT/embeddings`` misbehaves TIMES times, then answers. A text
with a colour's name and an image of that colour have vectors of the same direction. GET ``/`` lists
the requests. After POST ``/stop`` the process ends at once, as if killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

from rerank_server import KEY, Handler
from typing_extensions import override

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
Vectors = list[list[float]]
MALFORMED: dict[str, Callable[[Vectors], Any]] = {
    "not-json": lambda _: b"<html>busy</html>",
    "no-data": lambda fine: {"vectors": fine},
    "one-missing": lambda fine: openai(fine[1:]),
    "one-twice": lambda fine: {"data": [{"index": 0, "embedding": each} for each in fine]},
    "no-list": lambda fine: openai(["AAAA" for _ in fine]),
    "a-text": lambda fine: openai([["0.5", *each[1:]] for each in fine]),
    "nan": lambda fine: openai([[float("nan"), *each[1:]] for each in fine]),
    "zero": lambda fine: openai([[0.0 for _ in each] for each in fine]),
    "one-shorter": lambda fine: openai([*fine[:-1], fine[-1][1:]]),
}


def openai(vectors: list[Any]) -> dict[str, Any]:
    items = [{"index": place, "embedding": each} for place, each in enumerate(vectors)]
    return {"data": items[::-1]}  # in another order than the inputs


def vector_of(sent: str) -> list[float]:
    from llama_index_gap.images.opening import open_image

    if sent.startswith("data:image/"):
        pixel = open_image(sent).resize((1, 1)).getpixel((0, 0))
    else:
        pixel = next((rgb for name, rgb in COLOURS.items() if name in sent), (1, 1, 1))
    return [2.0 * channel for channel in (*pixel, 1)]  # not of length 1


def inputs_of(dialect: str, body: dict[str, Any]) -> list[str]:
    """The inputs, from where the dialect puts them; a request in another dialect is an error."""
    if dialect == "cohere":
        assert body["embedding_types"] == ["float"]
        assert body["input_type"] in {"search_query", "search_document", "image"}
        assert len(body.get("images", [])) <= 1
        return body["images"] if body["input_type"] == "image" else body["texts"]
    if dialect == "jina":
        return [each.get("text") or each["image"] for each in body["input"]]
    if dialect == "vllm" and "messages" in body:
        [message] = body["messages"]
        return [part["image_url"]["url"] for part in message["content"] if "image_url" in part]
    images = body.get("modality") == "image"
    assert not images or dialect == "infinity"
    assert all(each.startswith("data:image/") == images for each in body["input"])
    return body["input"]


class EmbeddingHandler(Handler):
    @override
    def do_POST(self) -> None:
        if self.path == "/stop":
            os._exit(0)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **body})
        *before, dialect, _ = self.path.strip("/").split("/")
        self.counts[self.path] += 1
        vectors = [vector_of(each) for each in inputs_of(dialect, body)]
        vectors = [each[: body.get("dimensions", 4)] for each in vectors]
        if before == ["keyed"] and self.headers.get("Authorization") != f"Bearer {KEY}":
            self.answer(401, {"detail": f"no such key: {self.headers.get('Authorization')}"})
        elif before not in ([], ["keyed"]) and self.counts[self.path] <= int(before[1]):
            if before[0] in MALFORMED:
                self.answer(200, MALFORMED[before[0]](vectors))
            else:
                self.misbehave(before[0], 0)
        else:
            self.answer(
                200, {"embeddings": {"float": vectors}} if dialect == "cohere" else openai(vectors)
            )


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), EmbeddingHandler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 (for its parent)
        server.serve_forever()
