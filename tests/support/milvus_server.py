"""A Milvus server for the tests, from the ``milvus`` package."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

_COMPONENTS = (
    "rootCoord",
    "proxy",
    "queryCoord",
    "queryNode",
    "indexNode",
    "dataCoord",
    "dataNode",
    "indexCoord",
)
# Milliseconds between its checks for changes, and numbers of channels: a strong read waits for the
# first, loading a collection for the others. With the default settings, the tests take three times
# as long.
_IMPATIENCE = {
    "proxy.timeTickInterval": 20,
    "queryCoord.checkInterval": 100,
    "queryCoord.distPullInterval": 100,
    "rootCoord.dmlChannelNum": 2,
}
_ETCD_PEER_PORT = 2380  # cannot be changed, so a machine can run only one server
_START_SECONDS = 90


def why_no_server() -> str | None:
    """The reason why no server can be started here; None if one can."""
    try:
        import milvus  # noqa: F401
    except ImportError:
        return "the package milvus (2.3.5), which carries a server, is not installed"
    if not _is_free(_ETCD_PEER_PORT):
        return f"port {_ETCD_PEER_PORT} is taken: another Milvus server, or etcd, runs here"
    return None


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """Run a standalone server while the block runs; yields its address."""
    with milvus_process(folder) as (address, _):
        yield address


@contextmanager
def milvus_process(
    folder: Path, settings: Mapping[str, Any] = _IMPATIENCE
) -> Iterator[tuple[str, Any]]:
    """Run a standalone server while the block runs, unless the block kills it.

    Its components communicate over the loopback interface, but Milvus 2.3 has no setting that
    closes their ports on other interfaces: run it only behind a firewall.

    Args:
        folder: folder of its data and logs; existing data is used.
        settings: the settings that differ from its defaults.

    Yields:
        Its address, and the server, whose process is ``server_proc``.

    Raises:
        RuntimeError: it does not start.
    """
    from milvus import MilvusServer, MilvusServerConfig

    server = MilvusServer(MilvusServerConfig(), wait_for_started=False)
    server.set_base_dir(str(folder))
    server.listen_port = port = free_port()
    for component in _COMPONENTS:
        server.config.set(f"{component}.ip", "127.0.0.1")
    for setting, value in settings.items():
        server.config.set(setting, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves open sockets
            server.start()
        if server.listen_port != port:
            raise RuntimeError(f"port {port} was taken meanwhile; run the tests again")
        _wait(server, folder)
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.stop()  # by its process id; its data is deleted with the folder


def _wait(server: Any, folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.server_proc.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError):
            address = f"http://127.0.0.1:{server.webservice_port}/healthz"
            with urllib.request.urlopen(address, timeout=5) as answer:
                if b"OK" in answer.read():
                    return
        time.sleep(0.2)
    raise RuntimeError(f"the Milvus server did not start; see {folder / 'logs'}")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
