"""Milvus Lite as a server in a separate process, which can be killed and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from milvus_server import free_port

_START_SECONDS = 90
_RUN = """
import sys
from milvus_lite.adapter.grpc.server import run_server
run_server(sys.argv[1], "127.0.0.1", int(sys.argv[2]))
"""


class LiteServer:
    """Starts when it is made; ``with`` ends it.

    Args:
        folder: the folder of its data.

    Attributes:
        address: where it listens, also after a restart.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start or restart it, and wait until it listens."""
        command = [sys.executable, "-c", _RUN, str(self._folder), str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return
            time.sleep(0.05)
        raise RuntimeError("the server did not start")

    def kill(self) -> None:
        """Kill it, like ``kill -9``."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it with SIGSTOP: it exists and does nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue it with SIGCONT."""
        os.kill(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> LiteServer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.kill()
