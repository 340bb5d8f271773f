"""Fetches untrusted URLs without access to the local network."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from llama_index_gap.errors import GapError

_MAX_BYTES = 50_000_000
_TIMEOUT_S = 20.0  # for the whole fetch, including redirects
_MAX_REDIRECTS = 5
_CHUNK = 65_536
_REDIRECTS = {301, 302, 303, 307, 308}
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "llama-index-gap"}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: carries an IPv4 address
# The global unicast addresses of IPv6, without those for documentation (RFC 9637); Python's
# is_global also calls most other addresses global.
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_DOCUMENTATION_V6 = ipaddress.ip_network("3fff::/20")


class FetchError(GapError, ValueError):
    """A URL cannot, or must not, be fetched."""


def fetch(url: str) -> bytes:
    """Get the content of an http or https URL on a public address.

    Every redirect is checked like the first address. The address is checked again after connecting,
    before anything is sent, so that a name that resolves differently the second time (DNS
    rebinding) gains nothing. Proxies are not used, since they hide the address.

    Args:
        url: an http or https URL without user name and password.

    Raises:
        FetchError: the URL is refused, unreachable, too slow or too large, or does not answer 200.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _checked(url)
        connection = _connect(parts, deadline)
        # A server that sends a byte now and then never triggers a socket's time-out.
        watchdog = threading.Timer(_left(deadline), _hang_up, [connection.sock])
        watchdog.start()
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers=_HEADERS)
            response = connection.getresponse()
            if response.status in _REDIRECTS:
                target = response.getheader("Location")
                if not target:
                    raise FetchError(f"HTTP {response.status} without a Location")
                url = urljoin(url, target)
                continue
            if response.status != http.client.OK:
                raise FetchError(f"HTTP {response.status} {response.reason}")
            content = bytearray()
            while chunk := response.read1(_CHUNK):
                content += chunk
                if len(content) > _MAX_BYTES:
                    too_much = f"more than {_MAX_BYTES:,} bytes"
                    raise FetchError(f"{too_much}; download it yourself if you trust it")
            _left(deadline)  # if the watchdog hangs up, it looks like the end of the data
        except UnicodeError as error:
            unencoded = "the URL holds characters that must be percent-encoded"
            raise FetchError(f"{unencoded} ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            _left(deadline)
            raise FetchError(f"cannot be fetched ({str(error) or type(error).__name__})") from error
        finally:
            watchdog.cancel()
            connection.close()
        if response.length:
            raise FetchError(f"the connection broke off {response.length:,} bytes before the end")
        return bytes(content)
    raise FetchError(f"more than {_MAX_REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not private, local, or reserved.

    An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) is checked in its place.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL_V6 or ip in _DOCUMENTATION_V6:
            return False
    return ip.is_global and not ip.is_multicast


def _checked(url: str) -> SplitResult:
    if any(ord(character) <= ord(" ") or ord(character) == 0x7F for character in url):
        raise FetchError("the URL holds spaces or control characters; percent-encode them")
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed, and refused, only on access
    except ValueError as error:
        raise FetchError(f"not a URL ({error})") from error
    if parts.scheme not in {"http", "https"}:
        raise FetchError(f"redirected to {parts.scheme}://; only http and https are fetched")
    if not parts.hostname:
        raise FetchError("the URL names no host")
    if parts.username or parts.password:
        raise FetchError("the URL holds a user name or password; these are not sent")
    return parts


def _connect(parts: SplitResult, deadline: float) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"{host} cannot be resolved ({error})") from error
    for *_, address in found:
        _refuse_private(host, str(address[0]))
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=_left(deadline))
    try:
        connection.connect()
        _refuse_private(host, connection.sock.getpeername()[0])
    except OSError as error:
        connection.close()
        _left(deadline)
        raise FetchError(f"{host} cannot be reached ({error})") from error
    except FetchError:
        connection.close()
        raise
    return connection


def _refuse_private(host: str, address: str) -> None:
    if not is_public(address):
        raise FetchError(f"{host} is at {address}, which is not a public address; refused")


def _hang_up(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the server has already hung up
        connected.shutdown(socket.SHUT_RDWR)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FetchError(f"took longer than {_TIMEOUT_S:g} seconds")
    return left
