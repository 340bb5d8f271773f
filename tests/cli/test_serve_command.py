"""``llama-gap serve`` as a person runs it: a process of its own, asked over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from command_line import gap
from paths import ROOT

RUN = "from llama_index_gap.cli.app import main; main()"


@pytest.fixture(scope="module")
def address(demo: Path) -> Iterator[str]:
    """Where it says that it serves the demo's index."""
    command = [sys.executable, "-c", RUN, "serve", "--db", str(demo / "gap.db"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in complaints
    assert "Error" not in complaints


def test_it_serves_from_the_start_until_it_is_interrupted(address: str) -> None:
    with httpx2.Client(base_url=address, follow_redirects=True, timeout=300) as client:
        assert httpx2.URL(address).host == "127.0.0.1"
        while "The models are loading" in (page := client.get("/")).text:
            pass
        assert "23 texts, 11 images" in page.text
        found = client.get("/", params={"q": "a white ship"})
        assert "The image leg alone" in found.text
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/", params={"q": "é" * 10_000}).status_code == 200


def test_a_body_without_end_is_cut_short(address: str) -> None:
    """It is neither kept in memory nor read for ever."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while True:
            sent += 2**20
            yield bytes(2**20)

    form = {"content-type": "multipart/form-data; boundary=b"}
    with pytest.raises(httpx2.HTTPError), httpx2.Client(timeout=300) as client:
        client.post(address, content=endless(), headers=form).raise_for_status()
    assert sent < 2**30


def test_it_says_at_once_what_is_wrong(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such database" in gap("serve", "--db", tmp_path / "no.db").err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shown = gap("serve", "--db", demo / "gap.db", "--port", port)
        assert shown.code == 1
        assert shown.err.startswith(f"error: cannot listen on 127.0.0.1, port {port}: ")
    assert gap("serve", "--db", demo / "gap.db", "--host", "no.example.invalid").code == 1

    monkeypatch.delitem(sys.modules, "llama_index_gap.cli.web_server", raising=False)
    for missing in ("starlette.applications", "uvicorn", "python_multipart"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            shown = gap("serve", "--db", demo / "gap.db")
        assert shown.code == 1
        assert (
            f"{missing.split('.')[0]}, which the extra serve brings: pip install 'llama-"
            in shown.err
        )


def test_listening_for_others_is_said_aloud(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)

    here = gap("serve", "--db", demo / "gap.db", "--port", "0")
    everywhere = gap("serve", "--db", demo / "gap.db", "--port", "0", "--host", "0.0.0.0")

    assert here.out.startswith("http://127.0.0.1:")
    assert here.err == ""
    assert everywhere.err.startswith("warning: this page is open to whoever reaches 0.0.0.0")
