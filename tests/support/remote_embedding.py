"""An embedding service that may refuse, break, or disappear, and a model that uses it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
from content_vectors import ContentVectors


class EmbeddingServer(ThreadingHTTPServer):
    """Answers with a vector for each text, unless ``answer`` is replaced.

    Attributes:
        requests: the texts of each request so far.
        answer: returns status and body for a request's number, from 1, and its texts; None closes
            the connection.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[list[str]] = []
        self.answer: Callable[[int, list[str]], tuple[int, Any] | None] = vectors

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/embed"


def vectors(_: int, texts: list[str]) -> tuple[int, Any]:
    """The answer of a healthy service."""
    return 200, [ContentVectors()._get_text_embedding(text) for text in texts]


class _Handler(BaseHTTPRequestHandler):
    server: EmbeddingServer

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(texts)
        answer = self.server.answer(len(self.server.requests), texts)
        if answer is None:
            self.close_connection = True
            return
        status, body = answer
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def embedding_server() -> Iterator[EmbeddingServer]:
    """Run a service while the block runs."""
    with EmbeddingServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class RemoteEmbedding(ContentVectors):
    """Lets a service embed its texts, like many LlamaIndex integrations."""

    url: str

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        response = requests.post(self.url, json=texts, timeout=30)
        response.raise_for_status()
        found: list[list[float]] = response.json()
        return found
