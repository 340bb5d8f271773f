"""Serves the local page from a thread of this process, for a browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn

from llama_index_gap.cli.pages.serve_page import Served
from llama_index_gap.cli.web_server import Open, make_app


class _Server(uvicorn.Server):
    def __init__(self, open_index: Open, shown: Served) -> None:
        app = make_app(open_index, shown)
        super().__init__(uvicorn.Config(app, port=0, log_config=None, ws="none"))
        self.listening = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self.listening.set()


@contextmanager
def local_page(open_index: Open, shown: Served) -> Iterator[str]:
    """Serve it while the block runs; yields its address after the models are loaded."""
    server = _Server(open_index, shown)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        server.listening.wait()
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        while "The models are loading" in httpx2.get(address).text:
            pass
        yield address
    finally:
        server.should_exit = True
        thread.join()
