from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from llama_index_gap.cli.web_guard import Guard, is_loopback


def client(host: str = "127.0.0.1") -> TestClient:
    answer = Route("/", lambda _: PlainTextResponse("hello"), methods=["GET", "POST"])
    return TestClient(Guard(Starlette(routes=[answer]), host), base_url="http://127.0.0.1:8765")


@pytest.mark.parametrize(
    ("listens", "named", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8765", 200),
        ("127.0.0.1", "localhost:8765", 200),
        ("127.0.0.1", "LOCALHOST", 200),
        ("127.0.0.1", "[::1]:8765", 200),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "evil.example:8765", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "192.168.1.7:8765", 403),
        ("127.0.0.1", "user@127.0.0.1", 403),
        ("127.0.0.1", "", 403),
        ("127.0.0.1", "[::1", 200),  # an address, even if malformed
        ("0.0.0.0", "192.168.1.7:8765", 200),  # an address cannot be rebound
        ("0.0.0.0", "evil.example", 403),
        ("desk.example", "desk.example:8765", 200),
        ("desk.example", "evil.example", 403),
    ],
)
def test_only_names_of_this_machine_are_answered(listens: str, named: str, status: int) -> None:
    answer = client(listens).get("/", headers={"host": named})

    assert answer.status_code == status
    assert (answer.text == "hello") == (status == 200)


def test_two_names_are_none() -> None:
    answer = client().get("/", headers=[("host", "localhost"), ("host", "evil.example")])

    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("method", "site", "mode", "status"),
    [
        ("GET", "same-origin", "cors", 200),
        ("POST", "same-origin", "navigate", 200),
        ("GET", "none", "navigate", 200),  # typed by the user
        ("GET", "cross-site", "navigate", 200),  # a link
        ("GET", "cross-site", "no-cors", 403),  # an image, a script
        ("GET", "same-site", "cors", 403),  # another port of this machine
        ("POST", "cross-site", "navigate", 403),  # a form
        ("POST", "same-site", "cors", 403),
    ],
)
def test_pages_of_other_sites_may_only_link_here(
    method: str, site: str, mode: str, status: int
) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}

    assert client().request(method, "/", headers=headers).status_code == status


def test_no_other_page_may_read_or_frame_what_is_answered() -> None:
    for answer in (client().get("/"), client().get("/", headers={"host": "evil.example"})):
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_that_nobody_reads_ends_the_connection() -> None:
    for headers in ({}, {"host": "evil.example"}):
        assert client().post("/", content=b"x", headers=headers).headers["connection"] == "close"
        assert "connection" not in client().get("/", headers=headers).headers


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        *((each, True) for each in ("127.0.0.1", "::1", "localhost", "127.9.9.9")),
        *((each, False) for each in ("0.0.0.0", "::", "192.168.1.7", "desk.example")),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here
