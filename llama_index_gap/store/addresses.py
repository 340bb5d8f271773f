"""Database addresses: a server, or a Milvus Lite file."""

from __future__ import annotations

import re
from pathlib import Path

TIMEOUT_SECONDS = 30.0
"""Time limit for a server's answer to a call."""


def is_server(uri: str) -> bool:
    """Whether a URI is the address of a server; otherwise it is the path of a Milvus Lite file."""
    return re.match(r"(https?|tcp)://|unix:", uri) is not None


def lite_path(uri: str) -> str | None:
    """The absolute path of a Milvus Lite file; None for a server's address."""
    return None if is_server(uri) else str(Path(uri).absolute())
