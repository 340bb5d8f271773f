"""A proxy to a server on this machine, whose connections can fail."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Queue


class LossyProxy:
    """Forwards the data that arrives at its port.

    Args:
        port: the server's port.

    Attributes:
        address: where it listens.
        delay: seconds by which each part of an answer is delayed.
        drops: whether it closes each new connection at once.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._own = ("127.0.0.1", 0)
        self._open: list[socket.socket] = []
        self.delay, self.drops = 0.0, False
        self._flows = threading.Event()
        self._flows.set()
        self.listen()
        self.address = f"http://127.0.0.1:{self._own[1]}"

    def listen(self) -> None:
        """Listen, or listen again."""
        self._listener = socket.create_server(self._own)
        self._own = self._listener.getsockname()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def lead_to(self, port: int) -> None:
        """Forward to another server from now on."""
        self._target = ("127.0.0.1", port)

    def hang_up(self) -> None:
        """Close all connections."""
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def go(self) -> None:
        """Close all connections, and refuse new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def freeze(self) -> None:
        """Accept data and forward nothing, like a stopped process."""
        self._flows.clear()

    def thaw(self) -> None:
        """Forward again; the data that arrived meanwhile is lost, and so are its connections."""
        self.hang_up()
        self._flows.set()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    if self.drops:
                        raise ConnectionError
                    server = socket.create_connection(self._target)
                except OSError:  # the server does not listen
                    client.close()
                    continue
                self._open += [client, server]
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        due: Queue[tuple[float, bytes]] = Queue()
        threading.Thread(target=self._deliver, args=(due, target), daemon=True).start()
        with suppress(OSError):
            while data := source.recv(65_536):
                due.put((time.monotonic() + self.delay * answers, data))
        due.put((0.0, b""))
        with suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)
        source.close()

    def _deliver(self, due: Queue[tuple[float, bytes]], target: socket.socket) -> None:
        with suppress(OSError):
            while (each := due.get())[1]:
                time.sleep(max(each[0] - time.monotonic(), 0))
                self._flows.wait()
                target.sendall(each[1])
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@contextmanager
def lossy_proxy(port: int) -> Iterator[LossyProxy]:
    """Run a proxy while the block runs."""
    proxy = LossyProxy(port)
    try:
        yield proxy
    finally:
        proxy.thaw()
        with suppress(OSError):
            proxy.go()
