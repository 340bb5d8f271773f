"""EmbeddingService: a LlamaIndex embedding of texts and images by a remote model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Literal, TypeAlias

import numpy as np
from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, SecretStr
from llama_index.core.schema import ImageType

from llama_index_gap.embedding.base import EmbeddingBase, refuse_what_is_no_text
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import unit_rows
from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.images.opening import describe, open_image
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import Folder, PickledAsSettings
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.http_service import HttpService, image_data_uri
from llama_index_gap.models.rerankers.items import decode_image

EmbeddingDialect: TypeAlias = Literal["openai", "vllm", "infinity", "jina", "cohere"]
_Role: TypeAlias = Literal["query", "document", "image"]
_ONE_BY_ONE = {"vllm", "cohere"}  # take one image per request
_MOST_TEXTS = {"cohere": 96}
_TYPES = (int, float)


class EmbeddingService(PickledAsSettings, EmbeddingBase):
    """Embeds texts and images by a service, over HTTP.

    Images are opened and scaled down here, and requests contain them as JPEG data URIs; neither
    this class nor the service fetches anything. Vectors are scaled to length 1. HTTP 429, HTTP 5xx
    and lost connections are retried, after growing pauses or after the time that the service asks
    for. Asynchronous methods run in a thread and never block the event loop.

    Too few vectors, broken vectors, and a text that the service refuses as too long are errors.

    Raises:
        ModelError: (when embedding) the service cannot be reached, refuses, or does not answer with
            vectors; (at construction) the environment variable holds no key, or the key is
            malformed.
        ValueError: a setting breaks its rule.
        ImageError: (when embedding) an image cannot be opened.
    """

    # An error must not show the key.
    model_config = ConfigDict(extra="forbid", validate_assignment=True, hide_input_in_errors=True)

    url: str = Field(
        frozen=True,
        description="The whole URL, such as https://api.jina.ai/v1/embeddings or "
        "http://localhost:8000/v1/embeddings.",
    )
    model_name: str = Field(frozen=True, description="The service's name for the model.")
    dialect: EmbeddingDialect = Field(
        frozen=True,
        default="openai",
        description="How the service takes images: 'openai' not at all; 'vllm' as a chat message; "
        "'infinity' as inputs of the modality image; 'jina' as {\"image\": …}; 'cohere' (v2) as "
        "images.",
    )
    dimensions: int | None = Field(
        frozen=True, default=None, gt=0, description="Ask for vectors of this length (Matryoshka)."
    )
    query_prompt: str = Field(frozen=True, default="", description="Put before each query.")
    document_prompt: str = Field(frozen=True, default="", description="Put before each document.")
    image_prompt: str = Field(
        frozen=True, default="", description="A text sent with each image; only for 'vllm'."
    )
    query_options: dict[str, Any] = Field(
        frozen=True,
        default_factory=dict,
        description='Added to requests with queries, such as {"task": "retrieval.query"}.',
    )
    document_options: dict[str, Any] = Field(
        frozen=True, default_factory=dict, description="Added to requests with documents."
    )
    image_options: dict[str, Any] = Field(
        frozen=True, default_factory=dict, description="Added to requests with images."
    )
    api_key: SecretStr | None = Field(
        frozen=True, default=None, exclude=True, repr=False, description="The key; never stored."
    )
    api_key_env: str | None = Field(
        frozen=True,
        default=None,
        description="Environment variable that holds the key. Without api_key and api_key_env, no "
        "key is sent.",
    )
    allow_http: bool = Field(
        frozen=True, default=False, description="Send the key over http to another machine."
    )
    embed_batch_size: int = Field(
        default=32, gt=0, le=2048, description="Maximum number of texts or images in a request."
    )
    requests_at_once: int = Field(
        default=8,
        gt=0,
        le=256,
        description="Maximum number of requests at the same time.",
    )
    scale_to_pixels: int | None = Field(
        frozen=True,
        default=1_048_576,
        gt=0,
        description="Scale larger images down to this before they are sent; by default 1,024 × "
        "1,024.",
    )
    image_root: Folder | None = Field(
        default=None, description="Only open image files in this folder; by default any file."
    )
    max_pixels: int = Field(
        default=MAX_PIXELS, gt=0, description="Refuse images with more pixels than this."
    )
    timeout_s: float = Field(
        default=60.0, gt=0, frozen=True, description="Seconds to wait for an answer."
    )
    retries: int = Field(
        default=3, ge=0, frozen=True, description="Number of retries after the first attempt."
    )

    _service: HttpService = PrivateAttr()
    _dimension: int | None = PrivateAttr(default=None)

    def __init__(self, url: str, model_name: str, **settings: Any) -> None:
        super().__init__(**{"url": url, "model_name": model_name, **settings})

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the settings."""
        return "EmbeddingService"

    def model_post_init(self, context: Any, /) -> None:
        """Check the URL and the key; sends no request."""
        super().model_post_init(context)
        if self.image_prompt and self.dialect != "vllm":
            raise InvalidValueError(
                f"image_prompt={self.image_prompt!r}: only dialect='vllm' sends one, and this is "
                f"{self.dialect!r}; leave image_prompt out"
            )
        self._service = HttpService(
            self.url,
            self.model_name,
            path="/embeddings, or /embed",
            api_key=None if self.api_key is None else self.api_key.get_secret_value(),
            api_key_env=self.api_key_env,
            allow_http=self.allow_http,
            timeout_s=self.timeout_s,
            retries=self.retries,
        )

    @property
    def dimension(self) -> int | None:
        """Length of the vectors: ``dimensions``, else that of the first vector; None before it."""
        return self.dimensions or self._dimension

    @property
    def modalities(self) -> frozenset[Modality]:
        """The modalities that it can embed."""
        return frozenset({"text"} if self.dialect == "openai" else {"text", "image"})

    # --- texts -----------------------------------------------------------------------------------

    def _embed_texts(self, texts: list[str], kind: Kind) -> list[Embedding]:
        refuse_what_is_no_text(texts)
        prompt = self.query_prompt if kind == "query" else self.document_prompt
        return self._embed([prompt + text for text in texts], kind, texts)

    # --- images ----------------------------------------------------------------------------------

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        if "image" not in self.modalities:
            raise InvalidValueError(
                "dialect='openai' takes texts only; for images pass the service's own dialect: "
                "'vllm', 'infinity', 'jina' or 'cohere'"
            )
        images = [
            image_data_uri(decode_image(opened, self.scale_to_pixels))
            for opened in (
                open_image(image, root=self.image_root, max_pixels=self.max_pixels)
                for image in img_file_paths
            )
        ]
        return self._embed(images, "image", img_file_paths)

    # --- asking ----------------------------------------------------------------------------------

    def _embed(self, inputs: list[str], role: _Role, given: Sequence[object]) -> list[Embedding]:
        """Embed texts with their prompts, or data URIs; messages name the inputs as ``given``."""
        if not inputs:
            return []
        most = 1 if role == "image" and self.dialect in _ONE_BY_ONE else self.embed_batch_size
        most = min(most, _MOST_TEXTS.get(self.dialect, most))
        batches = [inputs[start : start + most] for start in range(0, len(inputs), most)]
        with (
            self._service.connect() as client,
            ThreadPoolExecutor(min(self.requests_at_once, len(batches)), "ask") as pool,
        ):

            def ask(batch: list[str]) -> list[Any]:
                answer = self._service.ask(client, self._question(batch, role))
                return self._vectors_of(answer, len(batch))

            # Each runs in the caller's context, so that a cancelled search sends no more requests.
            asked = [pool.submit(copy_context().run, ask, batch) for batch in batches]
            try:
                found = [vector for each in asked for vector in each.result()]
            finally:
                for each in asked:
                    each.cancel()
        return self._checked(found, given)

    def _question(self, batch: list[str], role: _Role) -> dict[str, Any]:
        kind: Modality = "image" if role == "image" else "text"
        options: dict[_Role, dict[str, Any]] = {
            "query": self.query_options,
            "document": self.document_options,
            "image": self.image_options,
        }
        body = {"model": self.model_name, **_DIALECTS[self.dialect](batch, role)}
        if kind == "image" and self.image_prompt:
            body["messages"][0]["content"].append({"type": "text", "text": self.image_prompt})
        if self.dimensions is not None:
            name = "output_dimension" if self.dialect == "cohere" else "dimensions"
            body[name] = self.dimensions
        return body | options[role]

    def _vectors_of(self, answer: Any, count: int) -> list[Any]:
        """The vectors of an answer, in the order of the inputs."""
        name = self._service.name
        if self.dialect == "cohere":
            vectors = answer.get("embeddings") if isinstance(answer, dict) else None
            vectors = vectors.get("float") if isinstance(vectors, dict) else None
            if not isinstance(vectors, list):
                raise ModelError(f'{name}: its answer holds no list "float" in "embeddings"')
        else:
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
                raise ModelError(f'{name}: its answer holds no list "data" of objects')
            places = [each.get("index", place) for place, each in enumerate(data)]
            if sorted(place for place in places if type(place) is int) != list(range(count)):
                raise ModelError(
                    f"{name}: its answer must name each of {count} inputs once, from 0 to "
                    f"{count - 1}, but it names {places[:20]}"
                )
            by_place = dict(zip(places, data, strict=True))
            vectors = [by_place[place].get("embedding") for place in range(count)]
        if len(vectors) != count:
            raise ModelError(f"{name}: answers with {len(vectors)} vectors to {count} inputs")
        return vectors

    def _checked(self, found: list[Any], given: Sequence[object]) -> list[Embedding]:
        """Check that vectors hold numbers and have one length, and scale them to length 1."""
        expected = self.dimension
        for vector, asked in zip(found, given, strict=True):
            which = f"{self._service.name}: the vector of {describe(asked)!r}"
            if not isinstance(vector, list) or not vector:
                raise ModelError(f"{which} is {str(vector)[:40]!r}, not a list of numbers")
            if not all(isinstance(x, _TYPES) and not isinstance(x, bool) for x in vector):
                raise ModelError(f"{which} holds something that is not a number")
            if expected is not None and len(vector) != expected:
                way_out = "; its model may ignore dimensions" if self.dimensions else ""
                raise ModelError(f"{which} has {len(vector)} numbers, not {expected}{way_out}")
            expected = len(vector)
        numbers = np.asarray(found, dtype=np.float64)
        broken = np.flatnonzero(~np.isfinite(numbers).all(axis=1) | ~numbers.any(axis=1))
        if broken.size:
            raise ModelError(
                f"{self._service.name}: {broken.size} of {len(found)} vectors are zero or hold NaN "
                f"or infinity, the first for {describe(given[broken[0]])!r}"
            )
        self._dimension = expected
        embeddings: list[Embedding] = unit_rows(numbers.astype(np.float32)).tolist()
        return embeddings


def _openai(batch: list[str], role: _Role) -> dict[str, Any]:
    return {"input": batch, "encoding_format": "float"}


def _vllm(batch: list[str], role: _Role) -> dict[str, Any]:
    if role != "image":
        return _openai(batch, role)
    content = [{"type": "image_url", "image_url": {"url": batch[0]}}]
    return {"messages": [{"role": "user", "content": content}], "encoding_format": "float"}


def _infinity(batch: list[str], role: _Role) -> dict[str, Any]:
    modality = {"modality": "image"} if role == "image" else {}
    return _openai(batch, role) | modality


def _jina(batch: list[str], role: _Role) -> dict[str, Any]:
    key = "image" if role == "image" else "text"
    return {"input": [{key: each} for each in batch], "embedding_type": "float"}


def _cohere(batch: list[str], role: _Role) -> dict[str, Any]:
    if role == "image":
        inputs: Mapping[str, Any] = {"images": batch, "input_type": "image"}
    else:
        # With NONE, a text that is too long is an error; the service would cut it silently.
        inputs = {"texts": batch, "input_type": f"search_{role}", "truncate": "NONE"}
    return {**inputs, "embedding_types": ["float"]}


# OpenAI: platform.openai.com/docs/api-reference/embeddings. vLLM: examples/online_serving/
# openai_chat_embedding_client_for_multimodal.py. infinity: its POST /embeddings. Jina:
# https://api.jina.ai/openapi.json. Cohere: docs.cohere.com/v2/reference/embed.
_DIALECTS: dict[str, Callable[[list[str], _Role], dict[str, Any]]] = {
    "openai": _openai,
    "vllm": _vllm,
    "infinity": _infinity,
    "jina": _jina,
    "cohere": _cohere,
}
