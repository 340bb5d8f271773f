"""Rerankers that run elsewhere, behind the ``/v1/rerank`` that Jina's API and vLLM speak."""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import httpx2
import numpy as np
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.modality import Modality
from llama_index_gap.models.base import (
    Item,
    Joint,
    LazyImage,
    ModelError,
    PairScorer,
    check_at_least_one,
)
from llama_index_gap.models.rerankers.items import decode_image
from llama_index_gap.threads import stop_if_given_up

if TYPE_CHECKING:
    from PIL.Image import Image

Dialect: TypeAlias = Literal["jina", "vllm"]

LONGEST_PAUSE_S = 60.0
"""How long it waits before asking again; a service that wants more time is an error."""

_BACK_OFF = wait_exponential_jitter(multiplier=0.5, max=LONGEST_PAUSE_S, jitter=0.5)
# Scores that are sigmoids already (model card of jinaai/jina-reranker-m0).
_PROBABILITIES = {"jina-reranker-m0"}


class RerankService(PairScorer):
    """A reranking service, asked over HTTP.

    Images travel within the question, as JPEG data URIs; nothing that is asked about is fetched
    by the service. Answers with HTTP 429 or 5xx and lost connections are tried again, with growing
    pauses or after as long as the service says; redirects are not followed.

    Args:
        url: the whole address, such as ``"https://api.jina.ai/v1/rerank"``.
        model: the name that the service knows the model by.
        dialect: how the service takes images: ``"jina"`` for ``{"image": …}``; ``"vllm"`` for
            lists of content parts, which may hold a text and an image. Services that read texts
            only take them as ``"vllm"`` sends them, as plain strings.
        api_key: the key; not pickled.
        api_key_env: the environment variable that holds the key. Without either no key is sent.
        allow_http: send the key over http to another machine, where it can be read on the way.
        modalities: what the model reads.
        batch_size: most documents in one question.
        scale_to_pixels: scale larger images down to this; by default to what jina-reranker-m0 sees.
        timeout_s: seconds to connect, and to wait for the answer.
        retries: how often to ask again.

    Raises:
        ModelError: no key where it should be, or (when scoring) the service cannot be reached,
            refuses, or answers what is no ranking of the documents.
        ValueError: an argument breaks its rule.
    """

    licence = None

    def __init__(
        self,
        url: str,
        model: str,
        *,
        dialect: Dialect = "jina",
        api_key: str | None = None,
        api_key_env: str | None = None,
        allow_http: bool = False,
        modalities: Collection[Modality] = ("text", "image"),
        batch_size: int = 32,
        scale_to_pixels: int | None = 602_112,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        if dialect not in _DIALECTS:
            raise InvalidValueError(f"dialect={dialect!r}: must be one of {', '.join(_DIALECTS)}")
        check_at_least_one(batch_size=batch_size, scale_to_pixels=scale_to_pixels)
        if not timeout_s > 0:
            raise InvalidValueError(f"timeout_s={timeout_s}: must be more than 0")
        if retries < 0:
            raise InvalidValueError(f"retries={retries}: must be at least 0")
        if not modalities or not set(modalities) <= {"text", "image"}:
            raise InvalidValueError(f"modalities={modalities!r}: must name 'text', 'image' or both")
        self._url, self._is_local = _checked(url)
        self._model = model
        self._dialect = dialect
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._batch_size = batch_size
        self._scale_to_pixels = scale_to_pixels
        self._timeout_s = timeout_s
        self._retries = retries
        self.name = f"{model} at {self._url.host}"
        self.modalities = frozenset(modalities)
        self.joint = dialect == "vllm" and "image" in self.modalities
        if self._key() and self._url.scheme == "http" and not (self._is_local or allow_http):
            raise InvalidValueError(
                f"url={url}: the key could be read on its way to {self._url.host}; use https, or "
                "pass allow_http=True where you trust the network"
            )

    def prepare(self, item: Item) -> Any:
        """Turn a query or document into what is sent; an image is scaled down and encoded."""
        self._refuse_unreadable(item)
        form = _DIALECTS[self._dialect]
        if isinstance(item, str):
            return form(item, None)
        if isinstance(item, Joint):
            return form(item.text, _data_uri(item.image, self._scale_to_pixels))
        return form(None, _data_uri(item, self._scale_to_pixels))

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> VectorArray:
        """Score n prepared documents; returns shape (n,)."""
        scores = np.zeros(len(documents), dtype=np.float32)
        # Whatever proxy the environment names is no way to this machine itself.
        options: dict[str, Any] = {"timeout": self._timeout_s, "trust_env": not self._is_local}
        with httpx2.Client(**options) as client:
            for start in range(0, len(documents), self._batch_size):
                batch = documents[start : start + self._batch_size]
                answer = self._ask(client, query, batch)
                scores[start : start + len(batch)] = self._scores(answer, len(batch))
        return scores

    def to_probability(self, scores: VectorArray) -> VectorArray | None:
        """The scores, where the model's are known to be probabilities."""
        return scores if self._model.rpartition("/")[2] in _PROBABILITIES else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_api_key": None}

    # --- asking ----------------------------------------------------------------------------------

    def _ask(self, client: httpx2.Client, query: Any, documents: Sequence[Any]) -> httpx2.Response:
        body = {"model": self._model, "query": query, "documents": documents}
        body["top_n"] = len(documents)
        if self._dialect == "jina":
            body["return_documents"] = False
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
        return response

    def _send(self, client: httpx2.Client, body: dict[str, Any]) -> httpx2.Response:
        stop_if_given_up()
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            response = client.post(self._url, json=body, headers=headers)
        except (httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            raise ModelError(
                f"{self.name}: no answer within {self._timeout_s:g} seconds; raise timeout_s, or "
                "lower batch_size"
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

    def _scores(self, response: httpx2.Response, count: int) -> list[float]:
        """The scores in the order of the documents."""
        try:
            answer = response.json()
        except ValueError as error:
            raise ModelError(f"{self.name}: answers with what is no JSON ({error})") from error
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
            raise ModelError(f'{self.name}: its answer holds no list "results" of objects')
        indices = [result.get("index") for result in results]
        in_order = sorted(index for index in indices if type(index) is int)
        if len(indices) != count or in_order != list(range(count)):
            raise ModelError(
                f"{self.name}: its answer should name each of {count} documents once, from 0 to "
                f"{count - 1}; it names {indices[:20]}"
            )
        scores = {result["index"]: result.get("relevance_score") for result in results}
        broken = {index: score for index, score in scores.items() if not _is_score(score)}
        if broken:
            index, score = next(iter(broken.items()))
            raise ModelError(
                f"{self.name}: the relevance_score of document {index} is {score!r:.40}, which is "
                "no number that float32 holds"
            )
        return [scores[index] for index in range(count)]


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


def _is_score(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= float(np.finfo(np.float32).max)  # NaN is not less than anything


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _checked(url: str) -> tuple[httpx2.URL, bool]:
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
        raise InvalidValueError(f"url={url!r}: must be http(s)://host/path, up to and with /rerank")
    try:
        is_local = ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        is_local = parsed.host == "localhost"
    return parsed, is_local


def _data_uri(image: Image | LazyImage, scale_to_pixels: int | None) -> str:
    buffer = BytesIO()
    # Close to lossless: colours are kept at full resolution, for coloured letters.
    decode_image(image, scale_to_pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _as_jina(text: str | None, image: str | None) -> Any:
    return {"text": text} if image is None else {"image": image}


def _as_vllm(text: str | None, image: str | None) -> Any:
    if image is None:
        return text
    parts: list[dict[str, Any]] = [] if text is None else [{"type": "text", "text": text}]
    return {"content": [*parts, {"type": "image_url", "image_url": {"url": image}}]}


# Jina: https://api.jina.ai/openapi.json, model jina-reranker-m0.
# vLLM: vllm/entrypoints/pooling/scoring/protocol.py and examples/pooling/score.
_DIALECTS: dict[str, Callable[[str | None, str | None], Any]] = {
    "jina": _as_jina,
    "vllm": _as_vllm,
}
