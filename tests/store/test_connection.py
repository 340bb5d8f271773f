from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from socket import socket
from typing import Any

import grpc
import pytest
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
)
from milvus_lite.server_manager import server_manager_instance
from pymilvus import MilvusClient
from store_nodes import DIM, node, python, search

from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no folder"):
        MilvusStore(uri=tmp_path / "none" / "index.db", collection_name="nodes", dim=DIM)


def test_a_file_that_another_process_holds(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    code = f"""
        from llama_index_gap.store.milvus import MilvusStore
        MilvusStore(uri={uri!r}, collection_name="nodes", dim=4)
        print("open", flush=True)
        input()
    """
    holder = python(code)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="is open in another process") as caught:
            MilvusStore(uri=uri, collection_name="nodes", dim=DIM)
        assert "\n" not in str(caught.value)
        assert not caplog.records
    finally:
        holder.communicate("\n", timeout=30)
    with MilvusStore(uri=uri, collection_name="nodes") as store:
        assert store.count() == 0


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_gap.store.connection._CONNECT_SECONDS", 1.0)
    with closing(socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(StoreError, match=r"http://127.*does not answer") as caught:
            MilvusStore(
                uri=f"http://127.0.0.1:{port}", collection_name="nodes", dim=DIM, token="me:secret"
            )
    assert time.monotonic() - start < 30  # the operating system's own limit is two minutes
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_milvus_lite_is_not_pinged(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server takes frequent pings for abuse, and gRPC then prints errors."""
    seen: list[dict[str, Any]] = []
    connect = grpc.insecure_channel

    def recorded(address: str, options: Any = None, **settings: Any) -> grpc.Channel:
        seen.append(dict(options))
        return connect(address, options=options, **settings)

    monkeypatch.setattr(grpc, "insecure_channel", recorded)
    MilvusStore(uri=uri, collection_name="nodes", dim=DIM).close()
    assert seen
    for options in seen:
        assert options["grpc.keepalive_time_ms"] == 2**31 - 1
        assert not options["grpc.keepalive_permit_without_calls"]


def test_an_old_milvus_lite(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnimplementedError(grpc.RpcError, grpc.Call):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNIMPLEMENTED

    def get_server_version(*args: Any, **kwargs: Any) -> str:
        raise UnimplementedError

    with monkeypatch.context() as patched:
        patched.setattr(MilvusClient, "get_server_version", get_server_version)
        with pytest.raises(StoreError, match="too old"):
            MilvusStore(uri=uri, collection_name="nodes", dim=DIM)
    assert uri not in server_manager_instance._servers


def test_closing_one_store_leaves_the_others_on_the_same_file(uri: str, store: MilvusStore) -> None:
    second = MilvusStore(uri=uri, collection_name="others", dim=2)
    second.close()
    store.add([node("a")])
    assert search(store) == ["a"]


def test_a_failed_opening_frees_the_file(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such collection"):
        MilvusStore(uri=uri, collection_name="nodes")
    opened = python(
        f"""
        from llama_index_gap.store.milvus import MilvusStore
        MilvusStore(uri={uri!r}, collection_name="nodes", dim=4).close()
        """
    )
    assert opened.communicate(timeout=60)[1] == ""
    assert opened.returncode == 0


def test_opening_one_file_from_eight_threads(uri: str) -> None:
    names = [f"nodes_{i % 4}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        stores = list(
            pool.map(lambda name: MilvusStore(uri=uri, collection_name=name, dim=DIM), names[:4])
        )
    for opened in stores:
        opened.add([node("a")])
        opened.close()


def test_a_writer_that_is_killed_loses_nothing_acknowledged(uri: str) -> None:
    writer = python(
        f"""
        from llama_index.core.schema import TextNode
        from llama_index_gap.store.milvus import MilvusStore
        store = MilvusStore(uri={uri!r}, collection_name="nodes", dim=4)
        for batch in range(10_000):
            ids = [f"{{batch}}-{{i}}" for i in range(50)]
            store.add([TextNode(id_=i, text=i, embedding=[1, 2, 3, batch]) for i in ids])
            print(batch, flush=True)
        """
    )
    assert writer.stdout is not None
    for line in writer.stdout:
        if line == "20\n":
            break
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate(timeout=30)[0].split()
    last = int(rest[-1]) if rest else 20
    with MilvusStore(uri=uri, collection_name="nodes") as store:
        ids = {f"{batch}-{i}" for batch in range(last + 1) for i in range(50)}
        assert store.existing_ids(ids) == ids
        assert store.query(VectorStoreQuery([1, 2, 3, 20], similarity_top_k=1)).ids
