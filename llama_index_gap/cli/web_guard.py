"""The checks on each request to the local page, and the headers of each answer."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_IMAGE_BYTES = 20 * 2**20
"""The largest image that may be sent."""
_MAX_BODY = MAX_IMAGE_BYTES + 2**16  # with the form's other fields
_DRAINED = 10  # times as much is read and dropped, so that a browser shows the answer
_TOO_LARGE = (
    f"The image is larger than {MAX_IMAGE_BYTES // 2**20} MiB. Scale it down, and send it again."
)
_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",  # a page's own policy cannot say it
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


class Guard:
    """Lets only those requests through that this server's own pages, or a person, have made.

    A page of another site can make a browser send requests to this machine. If the site's own name
    resolves to this machine (DNS rebinding), the page could read the answers. So the request must
    name this machine, or an address, which cannot be rebound. If the page uses this server's name,
    it can read nothing, but could keep the models busy. So another site may only link to this one.

    Args:
        app: the guarded application.
        host: the address that the server listens on.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower()}
        self._local = is_loopback(host)
        if not self._local:
            self._names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        read = 0
        unread = "transfer-encoding" in asked or asked.get("content-length", "0") != "0"

        async def bounded() -> Message:
            nonlocal read, unread
            message = await receive()
            read += len(message.get("body", b""))
            unread = bool(message.get("more_body"))
            if read > _MAX_BODY:
                while message.get("more_body") and read < _DRAINED * _MAX_BODY:
                    message = await receive()
                    read += len(message.get("body", b""))
                unread = bool(message.get("more_body"))
                raise HTTPException(413, _TOO_LARGE)
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                if unread:  # else the server would read the rest, which nobody uses
                    headers["Connection"] = "close"
            await send(message)

        if problem := self._problem(scope["method"], asked):
            await PlainTextResponse(problem, 403)(scope, receive, answer)
        else:
            await self._app(scope, bounded, answer)

    def _problem(self, method: str, headers: Headers) -> str:
        """Why a request is refused; empty if it is let through."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(_without_port(hosts[0])):
            return "This server does not answer to that name. Use the address that it printed."
        if headers.get("sec-fetch-site", "none") in {"none", "same-origin"}:
            return ""
        if method == "GET" and headers.get("sec-fetch-mode") == "navigate":
            return ""
        return "Another site's page asked for this. Only this server's own pages may."

    def _is_ours(self, name: str) -> bool:
        if name in self._names:
            return True
        return _is_address(name) and (not self._local or ip_address(name).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    if host.startswith("["):  # IPv6
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
