"""A model that runs elsewhere, asked over HTTP: what its rerankers and embeddings share."""

from __future__ import annotations

import base64
import ipaddress
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.models.base import ModelError
from llama_index_gap.threads import stop_if_given_up

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_PAUSE_S = 60.0
"""How long it waits before asking again; a service that wants more time is an error."""

_BACK_OFF = wait_exponential(multiplier=0.5, max=LONGEST_PAUSE_S) + wait_random(0, 0.5)


class HttpService:
    """A model behind an address, which is asked by POST and answers in JSON.

    Answers with HTTP 429 or 5xx and lost connections are tried again, with growing pauses or after
    as long as the service says; redirects are not followed. The key is never shown nor pickled.

    Args:
        url: the whole address.
        model: the name that the service knows the model by.
        path: what the address ends in, for the message about a wrong one.
        api_key: the key.
        api_key_env: the environment variable that holds the key. Without either no key is sent.
        allow_http: send the key over http to another machine, where it can be read on the way.
        timeout_s: seconds to connect, and to wait for the answer.
        retries: how often to ask again.

    Attributes:
        name: model and host, for messages.
        model: as given.

    Raises:
        ModelError: no key where it should be.
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        path: str,
        api_key: str | None = None,
        api_key_env: str | None = None,
        allow_http: bool = False,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        if not timeout_s > 0:
            raise InvalidValueError(f"timeout_s={timeout_s}: must be more than 0")
        if retries < 0:
            raise InvalidValueError(f"retries={retries}: must be at least 0")
        self._url, self._is_local = _checked(url, path)
        self.model = model
        self.name = f"{model} at {self._url.host}"
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._timeout_s = timeout_s
        self._retries = retries
        if self._key() and self._url.scheme == "http" and not (self._is_local or allow_http):
            raise InvalidValueError(
                f"url={url}: the key could be read on its way to {self._url.host}; use https, or "
                "pass allow_http=True where you trust the network"
            )

    def connect(self) -> httpx2.Client:
        """A client for some questions; may be shared by threads, and must be closed."""
        # Whatever proxy the environment names is no way to this machine itself.
        return httpx2.Client(timeout=self._timeout_s, trust_env=not self._is_local)

    def ask(self, client: httpx2.Client, body: dict[str, Any]) -> Any:
        """Ask one question.

        Args:
            client: as ``connect`` gives it.
            body: is sent as JSON.

        Returns:
            The answer, of JSON's types.

        Raises:
            ModelError: the service cannot be reached, refuses, or answers what is no JSON.
        """
        asking = Retrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=_pause,
            retry=retry_if_exception_type(_AskAgainError),
            reraise=True,
        )
        try:
            response = asking(self._send, client, body)
        except _AskAgainError as error:
            raise ModelError(f"{self.name}: {error}; asked {self._retries + 1} times") from error
        if response.is_redirect:
            raise ModelError(
                f"{self.name}: redirects to {response.headers.get('Location')}; not followed: pass "
                "that address as url if it is the service's"
            )
        if response.is_error:
            hint = ""
            if response.status_code in {401, 403}:
                where = f"${self._api_key_env}" if self._api_key_env else "api_key"
                hint = f"; check the key in {where}"
            raise ModelError(f"{self.name}: {self._said(response)}{hint}")
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self.name}: answers with what is no JSON ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_api_key": None}

    def __deepcopy__(self, memo: Any) -> HttpService:
        return self  # it never changes, and a copy in this process may know the key

    def _send(self, client: httpx2.Client, body: dict[str, Any]) -> httpx2.Response:
        stop_if_given_up()
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            response = client.post(self._url, json=body, headers=headers)
        except (httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            raise ModelError(
                f"{self.name}: no answer within {self._timeout_s:g} seconds; raise timeout_s, or "
                "lower the batch size"
            ) from error
        except httpx2.RequestError as error:
            raise _AskAgainError(f"cannot be reached ({_reason(error)}); is it running?") from error
        if response.status_code == httpx2.codes.TOO_MANY_REQUESTS or response.is_server_error:
            after = _retry_after(response)
            if after is not None and after > LONGEST_PAUSE_S:
                raise ModelError(
                    f"{self.name}: {self._said(response)}; it asks to wait {after:.0f} seconds"
                )
            raise _AskAgainError(self._said(response), after)
        return response

    def _said(self, response: httpx2.Response) -> str:
        """An answer in a few words, without the key, should the service repeat it."""
        said = " ".join(response.text.split())
        key = self._key()
        said = said.replace(key, "***") if key else said
        return f"HTTP {response.status_code} {response.reason_phrase} {said[:200]!r}"

    def _key(self) -> str | None:
        key = self._api_key
        if key is None and self._api_key_env is not None:
            key = os.environ.get(self._api_key_env, "").strip()
            if not key:
                raise ModelError(
                    f"{self.name}: the environment variable {self._api_key_env} holds no key; set "
                    "it, or pass api_key"
                )
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ModelError(
                f"{self.name}: its key holds characters that no key has, such as a space"
            )
        return key


def image_data_uri(image: Image) -> str:
    """An image as services take it, in JPEG, close to lossless.

    Args:
        image: in RGB.
    """
    buffer = BytesIO()
    # Colours are kept at full resolution, for coloured letters.
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class _AskAgainError(Exception):
    """A failure that may pass; ``after`` is how many seconds the service wants."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    wanted = error.after if isinstance(error, _AskAgainError) else None
    return _BACK_OFF(state) if wanted is None else wanted


def _retry_after(response: httpx2.Response) -> float | None:
    """What the header says, in seconds; it holds seconds or a date (RFC 9110, 10.2.3)."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        date = parsedate_to_datetime(said)
    except ValueError:
        return None
    now = datetime.now(UTC)
    return max(0.0, (date - now).total_seconds()) if date.tzinfo else None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _checked(url: str, path: str) -> tuple[httpx2.URL, bool]:
    """A service's address, and whether it is on this machine."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidValueError(f"url={url!r}: no URL ({error})") from error
    if parsed.userinfo:
        raise InvalidValueError(
            "url: holds a user name or password; pass api_key or api_key_env instead"
        )
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InvalidValueError(f"url={url!r}: must be http(s)://host/path, up to and with {path}")
    try:
        is_local = ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        is_local = parsed.host == "localhost"
    return parsed, is_local
