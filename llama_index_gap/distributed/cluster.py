"""Joins a Ray cluster, or starts one on this machine, and leaves it again."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index_gap.errors import GapError, UnsupportedError
from llama_index_gap.store.connection import one_line

LOCAL = "local"
"""The address that starts a cluster on this machine for one call."""
_NO_CLUSTER = (ConnectionError, RuntimeError, ValueError, OSError)


class ClusterError(GapError, RuntimeError):
    """A Ray cluster cannot be joined, or its workers fail."""


def load_ray() -> Any:
    """Import Ray.

    Raises:
        UnsupportedError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UnsupportedError(
            f"indexing on a Ray cluster needs Ray ({one_line(error)}): install the extra ray "
            "(pip install 'llama-index-gap[ray]'); if Ray has no package for your Python "
            f"({version}), the extra installs nothing: use another Python version"
        ) from error
    return ray


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """Connect Ray to a cluster while the block runs, or use an existing connection.

    Args:
        address: ``"auto"`` finds the cluster that runs on this machine, ``"host:port"`` names
            another one, ``"local"`` starts one here, which nobody else can reach and which sends
            no usage reports.

    Raises:
        ClusterError: the cluster cannot be joined.
    """
    ray = load_ray()
    if ray.is_initialized():  # by the caller, who also shuts it down
        yield ray
        return
    settings: dict[str, Any] = {"address": address}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors are raised as well
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except _NO_CLUSTER as error:
        raise ClusterError(
            f"Ray cluster {address!r}: cannot be joined ({one_line(error)}); start one with "
            "'ray start --head', or pass its address, or \"local\"; if it requires a token, set "
            "RAY_AUTH_MODE=token"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def quietly(ray: Any) -> Iterator[None]:
    """Turn off Ray Data's progress bars and notes, since this package shows its own."""
    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, level = before
        logger.setLevel(level)
