"""HTTP requests to a model that runs elsewhere, for rerankers and embeddings."""

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
"""Longest wait before a retry; a service that asks for a longer one is an error."""

_BACK_OFF = wait_exponential(multiplier=0.5, max=LONGEST_PAUSE_S) + wait_random(0, 0.5)


class HttpService:
    """A model behind a URL that takes POST requests and answers in JSON.

    HTTP 429, HTTP 5xx and lost connections are retried, after growing pauses or after the time that
    the service asks for. Redirects are not followed. The key is never shown and never pickled.

    Args:
        url: the whole URL.
        model: the service's name for the model.
        path: the expected end of the URL, for the message about a wrong URL.
        api_key: the key.
        api_key_env: the environment variable that holds the key. Without ``api_key`` and
            ``api_key_env``, no key is sent.
        allow_http: send the key over http to another machine, although the network can read it.
        timeout_s: seconds to wait for a connection, and for an answer.
        retries: number of retries after the first attempt.

    Attributes:
        name: model and host, for messages.
        model: as given.

    Raises:
        ModelError: the environment variable holds no key, or the key is malformed.
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
                f"url={url}: others could read the key on its way to {self._url.host}; use https, "
                "or pass allow_http=True if you trust the network"
            )

    def connect(self) -> httpx2.Client:
        """Open a client; threads may share it, and the caller must close it."""
        # A proxy from the environment cannot reach this machine.
        return httpx2.Client(timeout=self._timeout_s, trust_env=not self._is_local)

    def ask(self, client: httpx2.Client, body: dict[str, Any]) -> Any:
        """Send one request.

        Args:
            client: from ``connect``.
            body: the request, sent as JSON.

        Returns:
            The answer, decoded from JSON.

        Raises:
            ModelError: the service cannot be reached, refuses, or does not answer in JSON.
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
            attempts = self._retries + 1
            raise ModelError(f"{self.name}: {error}; tried {attempts} times") from error
        if response.is_redirect:
            raise ModelError(
                f"{self.name}: redirects to {response.headers.get('Location')}, which is not "
                "followed; if that is the service's address, pass it as url"
            )
        if response.is_error:
            hint = ""
            if response.status_code in {401, 403}:
                where = f"${self._api_key_env}" if self._api_key_env else "api_key"
                hint = f"; check the key in {where}"
            raise ModelError(f"{self.name}: {self._summary(response)}{hint}")
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self.name}: its answer is not JSON ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_api_key": None}

    def __deepcopy__(self, memo: Any) -> HttpService:
        return self  # it never changes, and copies in this process may keep the key

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
                    f"{self.name}: {self._summary(response)}; it asks for a pause of {after:.0f} "
                    "seconds; try again later"
                )
            raise _AskAgainError(self._summary(response), after)
        return response

    def _summary(self, response: httpx2.Response) -> str:
        """An answer in a few words; the key is masked, in case the service repeats it."""
        text = " ".join(response.text.split())
        key = self._key()
        text = text.replace(key, "***") if key else text
        return f"HTTP {response.status_code} {response.reason_phrase} {text[:200]!r}"

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
                f"{self.name}: its key has a space, or another character that no key has; check it"
            )
        return key


def image_data_uri(image: Image) -> str:
    """Encode an image for a service, as JPEG of high quality.

    Args:
        image: an RGB image.
    """
    buffer = BytesIO()
    # Colour at full resolution keeps coloured letters legible.
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class _AskAgainError(Exception):
    """A failure that a retry may solve, after as many seconds as the service asks for."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    wanted = error.after if isinstance(error, _AskAgainError) else None
    return _BACK_OFF(state) if wanted is None else wanted


def _retry_after(response: httpx2.Response) -> float | None:
    """The Retry-After header in seconds; it holds seconds or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
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
        raise InvalidValueError(f"url={url!r}: not a URL ({error})") from error
    if parsed.userinfo:
        raise InvalidValueError(
            "url: holds a user name or password; pass api_key or api_key_env instead"
        )
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InvalidValueError(f"url={url!r}: must be http(s)://host/path, including {path}")
    try:
        is_local = ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        is_local = parsed.host == "localhost"
    return parsed, is_local
