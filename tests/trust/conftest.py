from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lossy_proxy import LossyProxy, lossy_proxy
from milvus_lite.server_manager import server_manager_instance


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[LossyProxy]:
    """Milvus Lite as a server, behind a connection that can fail."""
    path = str(tmp_path / "server.db")
    address = server_manager_instance.start_and_get_uri(path)
    assert address is not None
    with lossy_proxy(int(address.rpartition(":")[2])) as opened:
        yield opened
    server_manager_instance.release_server(path)
