"""Tests with a real server on loopback, which the address check lets through where needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from gate import PATIENCE_S

from llama_index_gap.images import fetching as module
from llama_index_gap.images.fetching import FetchError, fetch, is_public
from llama_index_gap.images.opening import ImageError, open_image


class Handler(BaseHTTPRequestHandler):
    answers: dict[str, Callable[[Handler], None]] = {}
    requests: list[str] = []
    dripped_all: threading.Event
    finished: threading.Event

    def finish(self) -> None:
        super().finish()
        self.finished.set()

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.answers[self.path](self)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(600):
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:  # the client has stopped reading
                return
            self.dripped_all.wait(0.05)
        self.dripped_all.set()

    def log_message(self, *args: object) -> None:
        pass


Handler.answers = {
    "/": lambda self: self.answer(200, b"home"),
    "/sized": lambda self: self.answer(200, b"12345", Content_Length="5"),
    "/query?a=1": lambda self: self.answer(200, b"asked"),
    "/moved": lambda self: self.answer(302, Location="/"),
    "/loop": lambda self: self.answer(302, Location="/loop"),
    "/nowhere": lambda self: self.answer(302),
    "/to-file": lambda self: self.answer(302, Location="file:///etc/passwd"),
    "/to-private": lambda self: self.answer(302, Location="http://10.0.0.1/"),
    "/missing": lambda self: self.answer(404),
    "/large": lambda self: self.answer(200, b"x" * 2000),
    "/short": lambda self: self.answer(200, b"123", Content_Length="10"),
    "/drip": lambda self: self.drip(),
}


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        Handler.requests = []
        Handler.dripped_all, Handler.finished = threading.Event(), threading.Event()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture
def loopback_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_public", lambda ip: ip == "127.0.0.1" or is_public(ip))


@pytest.mark.usefixtures("loopback_allowed")
@pytest.mark.parametrize(
    ("path", "content"),
    [("", b"home"), ("/sized", b"12345"), ("/query?a=1", b"asked"), ("/moved", b"home")],
)
def test_fetches(server: str, path: str, content: bytes) -> None:
    assert fetch(server + path) == content


@pytest.mark.usefixtures("loopback_allowed")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "HTTP 404"),
        ("/loop", "more than 5 redirects"),
        ("/nowhere", "302 without a Location"),
        ("/to-file", "redirected to file://"),
        ("/to-private", r"10\.0\.0\.1 is at 10\.0\.0\.1, which is not a public address"),
        ("/large", "more than 1,000 bytes"),
        ("/short", "broke off 7 bytes before the end"),
    ],
)
def test_refuses_answers(
    server: str, path: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    with pytest.raises(FetchError, match=message):
        fetch(server + path)


@pytest.mark.usefixtures("loopback_allowed")
def test_a_server_that_drips_is_cut_off(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.3)
    with pytest.raises(FetchError, match=r"took longer than 0\.3 seconds"):
        fetch(server + "/drip")
    assert not Handler.dripped_all.is_set()  # sending all takes half a minute


def test_private_addresses_are_refused_before_anything_is_sent(server: str) -> None:
    with pytest.raises(FetchError, match="not a public address"):
        fetch(server)
    with pytest.raises(FetchError, match="not a public address"):
        fetch(server.replace("127.0.0.1", "localhost"))
    assert Handler.requests == []


def test_a_name_that_resolves_differently_once_connected_gains_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True])  # public when resolved, loopback when connected
    monkeypatch.setattr(module, "is_public", lambda ip: next(answers, False))

    with pytest.raises(FetchError, match="not a public address"):
        fetch(server)
    assert Handler.finished.wait(PATIENCE_S)
    assert Handler.requests == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gopher://example.com/", "only http and https"),
        ("http:///path", "names no host"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://example.com/a b", "spaces or control"),
        ("http://example.com/a\r\nHost: x", "spaces or control"),
        ("http://example.com:99999/", "not a URL"),
        ("http://[::1", "not a URL"),
        ("http://name.invalid/", "cannot be resolved"),
        (f"http://{'a' * 70}.com/", "cannot be resolved"),
    ],
)
def test_refuses_urls(url: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        fetch(url)


@pytest.mark.usefixtures("loopback_allowed")
def test_unreachable_server() -> None:
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # the metadata service of clouds
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::127.0.0.1",
        "fec0::1",
        "64:ff9b:1::a00:1",
        "5f00::1",
        "3fff::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_open_image_fetches_only_when_asked_and_reports_as_an_image_error(server: str) -> None:
    with pytest.raises(ImageError, match="unless allow_urls=True"):
        open_image(server)
    with pytest.raises(ImageError, match="not a public address"):
        open_image(server, allow_urls=True)


@pytest.mark.usefixtures("loopback_allowed")
def test_what_is_fetched_must_be_an_image(server: str) -> None:
    with pytest.raises(ImageError, match="not an image"):
        open_image(server, allow_urls=True)
