"""A Ray cluster on this machine for the tests, made with ``ray start``."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from paths import ROOT

_STOP_SECONDS = 60


def why_no_ray() -> str | None:
    """The reason why no cluster can be started here; None if one can."""
    if importlib.util.find_spec("ray") is None:  # an import would read its settings
        return "Ray is not installed; the extra ray skips Python versions that Ray does not support"
    return None


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Run a cluster of two workers while the block runs; yields its address.

    Only this process can use it, with a token in its environment. It sends no usage reports.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in token.items():
            patch.setenv(name, value)
        with _started() as address:
            yield address


@contextmanager
def _started() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # socket paths must be short
    log = folder / "start.log"
    command = [
        *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0"),
        *("--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"),
        *("--num-cpus=2", "--num-gpus=0", "--object-store-memory=100000000"),
        f"--temp-dir={folder}",
    ]
    places = [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(places),
        "PYTHONUNBUFFERED": "1",
        "RAY_worker_niceness": "0",  # by default, they yield to all other processes
    }
    try:
        for last in (False, False, True):  # Ray waits 30 seconds, too few for a busy machine
            with log.open("w") as written:
                head = subprocess.Popen(
                    command,
                    stdout=written,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **settings},
                )
            if address := _address(head, log):
                break
            if last:
                raise RuntimeError(f"the Ray cluster did not start: {log.read_text()[-2_000:]}")
        try:
            yield address
        finally:
            # A used cluster takes half a minute to end by itself.
            for process in (*psutil.Process(head.pid).children(recursive=True), head):
                process.kill()
            head.wait(_STOP_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _address(head: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a cluster has started, and return its address; empty if it ended."""
    while head.poll() is None:
        said = log.read_text()
        if "block forever" in said:
            return said.partition("ray start --address='")[2].partition("'")[0]
        time.sleep(0.2)
    return ""
