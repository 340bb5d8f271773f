"""Rerankers that run elsewhere, behind an API like ``/v1/rerank`` of Jina and vLLM."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

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
from llama_index_gap.models.http_service import HttpService, image_data_uri
from llama_index_gap.models.rerankers.items import decode_image

if TYPE_CHECKING:
    from PIL.Image import Image

Dialect: TypeAlias = Literal["jina", "vllm"]

# Models whose scores are sigmoids already (model card of jinaai/jina-reranker-m0).
_PROBABILITIES = {"jina-reranker-m0"}


class RerankService(PairScorer):
    """A reranking service, called over HTTP.

    Requests contain the images, as JPEG data URIs, so the service fetches nothing. HTTP 429, HTTP
    5xx and lost connections are retried, after growing pauses or after the time that the service
    asks for. Redirects are not followed.

    Args:
        url: the whole URL, such as ``"https://api.jina.ai/v1/rerank"``.
        model: the service's name for the model.
        dialect: how the service takes images: ``"jina"`` for ``{"image": …}``; ``"vllm"`` for
            lists of content parts, which may hold a text and an image. For services that read only
            texts choose ``"vllm"``, which sends them as plain strings.
        api_key: the key; never pickled.
        api_key_env: the environment variable that holds the key. Without ``api_key`` and
            ``api_key_env``, no key is sent.
        allow_http: send the key over http to another machine, although the network can read it.
        modalities: the modalities that the model reads.
        batch_size: maximum number of documents in a request.
        scale_to_pixels: scale larger images down to this; by default to jina-reranker-m0's limit.
        timeout_s: seconds to wait for a connection, and for an answer.
        retries: number of retries after the first attempt.

    Raises:
        ModelError: the environment variable holds no key, or the key is malformed; or (when
            scoring) the service cannot be reached, refuses, or does not answer with a ranking of
            the documents.
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
        if not modalities or not set(modalities) <= {"text", "image"}:
            raise InvalidValueError(f"modalities={modalities!r}: must name 'text', 'image' or both")
        self._service = HttpService(
            url,
            model,
            path="/rerank",
            api_key=api_key,
            api_key_env=api_key_env,
            allow_http=allow_http,
            timeout_s=timeout_s,
            retries=retries,
        )
        self._dialect = dialect
        self._batch_size = batch_size
        self._scale_to_pixels = scale_to_pixels
        self.name = self._service.name
        self.modalities = frozenset(modalities)
        self.joint = dialect == "vllm" and "image" in self.modalities

    def prepare(self, item: Item) -> Any:
        """Prepare a query or document for a request; an image is scaled down and encoded."""
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
        with self._service.connect() as client:
            for start in range(0, len(documents), self._batch_size):
                batch = documents[start : start + self._batch_size]
                body = {"model": self._service.model, "query": query, "documents": batch}
                body["top_n"] = len(batch)
                if self._dialect == "jina":
                    body["return_documents"] = False
                answer = self._service.ask(client, body)
                scores[start : start + len(batch)] = self._scores(answer, len(batch))
        return scores

    def to_probability(self, scores: VectorArray) -> VectorArray | None:
        """The scores, if the model's scores are known to be probabilities; else None."""
        return scores if self._service.model.rpartition("/")[2] in _PROBABILITIES else None

    def _scores(self, answer: Any, count: int) -> list[float]:
        """The scores in the order of the documents."""
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
            raise ModelError(f'{self.name}: its answer holds no list "results" of objects')
        indices = [result.get("index") for result in results]
        in_order = sorted(index for index in indices if type(index) is int)
        if len(indices) != count or in_order != list(range(count)):
            raise ModelError(
                f"{self.name}: its answer must name each of {count} documents once, from 0 to "
                f"{count - 1}, but it names {indices[:20]}"
            )
        scores = {result["index"]: result.get("relevance_score") for result in results}
        broken = {index: score for index, score in scores.items() if not _is_score(score)}
        if broken:
            index, score = next(iter(broken.items()))
            raise ModelError(
                f"{self.name}: the relevance_score of document {index} is {score!r:.40}, which is "
                "not a number that float32 can hold"
            )
        return [scores[index] for index in range(count)]


def _is_score(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= float(np.finfo(np.float32).max)  # NaN is not less than anything


def _data_uri(image: Image | LazyImage, scale_to_pixels: int | None) -> str:
    return image_data_uri(decode_image(image, scale_to_pixels))


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
