"""DualEncoderEmbedding: a LlamaIndex embedding of texts and images into one space."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
)
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.schema import ImageType

from llama_index_gap.embedding.base import EmbeddingBase, refuse_what_is_no_text
from llama_index_gap.embedding.encoders import Encoders
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.align import Aligner, load_aligner
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.images.opening import describe, open_image
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import Folder, LoadingSettings, PathText, Pooling
from llama_index_gap.models import Encoder, ModelError
from llama_index_gap.models.worker import (
    EncoderSettings,
    ImagesRequest,
    LengthsRequest,
    Request,
    TextsRequest,
)
from llama_index_gap.processes import working_folder
from llama_index_gap.progress import Progress
from llama_index_gap.threads import DECODING_THREADS, read_ahead, stop_if_given_up

logger = logging.getLogger(__name__)


@dataclass
class _CutTexts:
    """Counts the texts of a call that are longer than the model reads."""

    cut: int = 0
    total: int = 0
    limit: int | None = None


_counting: ContextVar[_CutTexts | None] = ContextVar("_counting", default=None)
# The processes' answers to the batches of a call, in order.
_ahead: ContextVar[Iterator[Any] | None] = ContextVar("_ahead", default=None)
_Input = TypeVar("_Input")


class DualEncoderEmbedding(LoadingSettings, EmbeddingBase):
    """Embeds texts and images into one space with a dual encoder.

    Loads CLIP, SigLIP, SigLIP 2, jina-clip-v2, Nomic and any model that sentence-transformers
    loads, from a plain name, a hub name or a folder. An encoder for images only, such as DINOv2,
    embeds no texts; it serves the image queries of a ``DualIndex``. Vectors are float32 of length
    1. Threads decode images ahead of the model. Asynchronous methods run in a thread and never
    block the event loop.

    Raises:
        ModelError: a model cannot be found or loaded, or gives vectors with NaN or infinity.
        ValueError: a setting does not fit the model or this machine.
        ImageError: (when embedding) an image cannot be opened.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model_name: PathText = Field(
        frozen=True, description="Plain name, hub name or folder of the model."
    )
    image_model_name: PathText | None = Field(
        frozen=True,
        default=None,
        description="Another model for images, which must share the space of model_name; by "
        "default model_name embeds both.",
    )
    dimensions: int | None = Field(
        frozen=True,
        default=None,
        gt=0,
        description="Keep only this many dimensions, the first ones, then scale to length 1; for "
        "models that were trained for it (Matryoshka, arXiv 2205.13147).",
    )
    query_prompt: str | None = Field(
        frozen=True,
        default=None,
        description="Put before each query; by default the model's own prompt.",
    )
    document_prompt: str | None = Field(
        frozen=True,
        default=None,
        description="Put before each document; by default the model's own prompt.",
    )
    pooling: Pooling | None = Field(
        frozen=True,
        default=None,
        description="How token vectors become one: 'last', 'mean', or 'cls' for the first. Only "
        "for models whose files do not state it; see the model card.",
    )
    max_text_tokens: int | None = Field(
        frozen=True,
        default=None,
        gt=0,
        description="Cut texts to fewer tokens than the model reads.",
    )
    embed_batch_size: int = Field(
        default=32, gt=0, le=2048, description="Number of texts or images in a pass of the model."
    )
    workers: int | None = Field(
        frozen=True,
        default=None,
        gt=0,
        description="Number of processes that embed batches, each with its own copy of the model; "
        "they share the cores or the GPUs. By default this process embeds.",
    )
    devices: list[str] | None = Field(
        frozen=True,
        default=None,
        description="Like workers, with a process for each of these torch devices, such as "
        "['cuda:0', 'cuda:1'].",
    )
    image_root: Folder | None = Field(
        default=None, description="Only open image files in this folder; by default any file."
    )
    allow_urls: bool = Field(default=False, description="Fetch images from http(s) URLs.")
    max_pixels: int = Field(
        default=MAX_PIXELS, gt=0, description="Refuse images with more pixels than this."
    )
    aligner: Any = Field(
        frozen=True,
        default=None,
        description="Moves all vectors so that texts and images can share one index: an aligner "
        "fitted on vectors of this model and these dimensions, or the path of a saved one. A "
        "DualIndex remembers it and refuses another. With any other index, always pass the same "
        "aligner yourself.",
    )

    _encoders: Encoders = PrivateAttr()

    @field_validator("aligner")
    @classmethod
    def _as_aligner(cls, value: Any) -> Aligner | None:
        if value is None or isinstance(value, Aligner):
            return value
        if isinstance(value, str | Path):
            return load_aligner(value)
        if isinstance(value, Mapping):  # as to_dict names it
            path, fingerprint = value.get("path"), value.get("fingerprint")
            if path is None:
                raise InvalidValueError(
                    f"the aligner {fingerprint} was never saved; save it with aligner.save(path), "
                    "and pass that path as aligner"
                )
            aligner = load_aligner(path)
            if aligner.fingerprint == fingerprint:
                return aligner
            raise InvalidValueError(
                f"{path} now holds the aligner {aligner.fingerprint}, not {fingerprint}; restore "
                "the old file, or embed everything again with this one"
            )
        raise InvalidValueError(
            f"aligner={value!r}: must be an aligner, or the path of a saved one"
        )

    @field_serializer("aligner")
    def _aligner_by_name(self, aligner: Aligner | None) -> dict[str, str | None] | None:
        if aligner is None:
            return None
        path = None if aligner.path is None else str(aligner.path)
        return {"path": path, "fingerprint": aligner.fingerprint}

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the settings."""
        return "DualEncoderEmbedding"

    def model_post_init(self, context: Any, /) -> None:
        """Load the models and check the settings against them."""
        super().model_post_init(context)
        self._encoders = Encoders(
            EncoderSettings(
                self.model_name,
                self.image_model_name,
                self.loading.model_copy(update={"device": self.devices[0]})
                if self.devices
                else self.loading,
                {
                    "max_text_tokens": self.max_text_tokens,
                    "query_prompt": self.query_prompt,
                    "document_prompt": self.document_prompt,
                    "pooling": self.pooling,
                },
            ),
            self._devices(),
        )
        text, _ = self._encoders.facts
        if self.dimensions is not None and self.dimensions > text.dimension:
            raise InvalidValueError(
                f"dimensions={self.dimensions}: {text.name} has only {text.dimension}; pass at "
                "most that, or leave it out"
            )
        if self.aligner is None:
            return
        if self.aligner.dimension != self.dimension:
            raise InvalidValueError(
                f"the aligner moves vectors of {self.aligner.dimension} dimensions, but the model "
                f"gives {self.dimension}; fit an aligner on vectors of this model, with the same "
                "dimensions"
            )
        fitted_on = str(self.aligner.fitted_on.get("model_name", self.model_name))
        # Only the last part counts, because a folder may have moved.
        if Path(fitted_on).name not in {Path(name).name for name in (self.model_name, text.name)}:
            logger.warning(
                "The aligner was fitted on vectors of %s and now moves vectors of %s; if these are "
                "different models, fit an aligner on vectors of this one.",
                fitted_on,
                self.model_name,
            )

    def _devices(self) -> list[str | None]:
        """A device for each process; None for the best one of this machine."""
        if self.devices is None:
            return [self.device] * (self.workers or 0)
        for name in ("device", "workers"):
            if (given := getattr(self, name)) is not None:
                raise InvalidValueError(
                    f"devices={self.devices} and {name}={given!r}: pass only one of them; devices "
                    "starts a process for each device"
                )
        if not self.devices:
            raise InvalidValueError(
                "devices=[]: name at least one, such as ['cuda:0', 'cuda:1'], or leave it out"
            )
        return [*self.devices]

    def close(self) -> None:
        """End the processes of ``workers`` or ``devices``; the next batch starts them again.

        They also end with the last copy of this object, and with the process that made it.
        """
        self._encoders.close()

    @property
    def processes(self) -> int:
        """The number of processes that embed batches; 0 if this process does."""
        return len(self.devices or []) or self.workers or 0

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.dimensions or self._encoders.facts[0].dimension

    @property
    def modalities(self) -> frozenset[Modality]:
        """The modalities that it can embed."""
        text, image = self._encoders.facts
        return (text.modalities - {"image"}) | (image.modalities - {"text"})

    @property
    def _text_encoder(self) -> Encoder:
        return self._encoders.here[0]

    @property
    def _image_encoder(self) -> Encoder:
        return self._encoders.here[1]

    # --- texts -----------------------------------------------------------------------------------

    def get_query_embedding_batch(self, queries: list[str]) -> list[Embedding]:
        """Embed queries in batches of ``embed_batch_size``, each like ``get_query_embedding``.

        Args:
            queries: n texts.
        """
        batches = self._in_batches(queries)
        with warn_once_of_cuts(self), self._texts_ahead(batches, "query"):
            return [each for batch in batches for each in self._embed_texts(batch, "query")]

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed documents in batches of ``embed_batch_size``.

        Args:
            texts: n texts.
            show_progress: show a progress bar.
            **kwargs: as in LlamaIndex.

        Returns:
            n vectors of ``dimension`` numbers, of length 1.
        """
        with warn_once_of_cuts(self), self._texts_ahead(self._in_batches(texts), "document"):
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)

    @property
    def longest_text(self) -> int | None:
        """Maximum number of tokens that the model reads of a text; None if it states no limit."""
        return self._encoders.facts[0].max_text_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Count the tokens of documents, including prompt and special tokens.

        Args:
            texts: n texts.

        Returns:
            n numbers; None if the model has no tokenizer that can count.
        """
        pool = None if self._encoders.are_here else self._encoders.pool
        if pool is None:
            return self._text_encoder.count_tokens(texts, "document")
        lengths: list[int] | None
        (lengths,) = pool.map([LengthsRequest([*texts], "document")])
        return lengths

    def query_cut_at(self, query: str) -> int | None:
        """The number of tokens to which the model cuts this query; None if it reads all of it."""
        encoder = self._text_encoder
        if "text" in encoder.modalities and encoder.count_truncated([query], "query"):
            return encoder.max_text_tokens
        return None

    def _embed_texts(self, texts: list[str], kind: Kind) -> list[Embedding]:
        if not texts:
            return []
        refuse_what_is_no_text(texts)
        stop_if_given_up()
        with warn_once_of_cuts(self) as counter:
            counter.limit = self.longest_text
            counter.total += len(texts)
            ahead = _ahead.get()
            if ahead is not None:
                vectors, cut = next(ahead)
            else:
                encoder = self._text_encoder
                cut = encoder.count_truncated(texts, kind)
                vectors = encoder.encode_text(texts, kind)
            counter.cut += cut
            return self._finish(vectors, texts, "text", kind)

    def _in_batches(self, inputs: list[_Input]) -> list[list[_Input]]:
        size = self.embed_batch_size
        return [inputs[start : start + size] for start in range(0, len(inputs), size)]

    @contextmanager
    def _texts_ahead(self, batches: Iterable[list[str]], kind: Kind) -> Iterator[None]:
        """Let the processes, if there are any, embed batches of texts ahead of time."""
        requests = (TextsRequest(batch, kind) for batch in batches)
        with self._asked(requests) as answers:
            token = _ahead.set(answers)
            try:
                yield
            finally:
                _ahead.reset(token)

    @contextmanager
    def _asked(self, requests: Iterable[Request]) -> Iterator[Generator[Any, None, None] | None]:
        """Yield the processes' answers to requests; None if there are no processes."""
        pool = self._encoders.pool
        if pool is None:
            yield None
            return
        try:
            with closing(pool.map(requests)) as answers:
                yield answers
        except KeyboardInterrupt:  # do not wait for the batches that are running
            pool.close()
            raise

    # --- images ----------------------------------------------------------------------------------

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        if not img_file_paths:
            return []
        prepared = [self._prepare(image) for image in img_file_paths]
        stop_if_given_up()
        vectors = self._image_encoder.encode_prepared(prepared)
        # LlamaIndex has a single method for both images in documents and image queries.
        return self._finish(vectors, img_file_paths, "image", "document")

    def get_image_embedding_batch(
        self, img_file_paths: list[ImageType], show_progress: bool = False
    ) -> list[Embedding]:
        """Embed images in batches of ``embed_batch_size``, decoding ahead of the model.

        Args:
            img_file_paths: n paths, ``BytesIO`` or other sources that ``open_image`` opens.
            show_progress: show a progress bar.

        Returns:
            n vectors of ``dimension`` numbers, of length 1.

        Raises:
            ImageError: an image cannot be opened; names it.
        """
        batches = self._in_batches(img_file_paths)
        embeddings: list[Embedding] = []
        with (
            Progress(
                total=len(img_file_paths),
                desc="Generating image embeddings",
                unit="image",
                disable=not show_progress,
            ) as progress,
            self._asked(map(self._images_request, batches)) as answers,
            closing(answers or self._encoded(batches)) as vectors,
        ):
            for images in batches:
                payload: dict[str, Any] = {EventPayload.SERIALIZED: self.to_payload()}
                with self.callback_manager.event(CBEventType.EMBEDDING, payload) as event:
                    found = self._finish(next(vectors), images, "image", "document")
                    event.on_end({EventPayload.CHUNKS: images, EventPayload.EMBEDDINGS: found})
                embeddings += found
                progress.update(len(images))
        return embeddings

    def _prepare(self, image: ImageType) -> Any:
        return self._image_encoder.prepare_image(open_image(image, **self._opening))

    @property
    def _opening(self) -> dict[str, Any]:
        names = {"root": "image_root", "allow_urls": "allow_urls", "max_pixels": "max_pixels"}
        return {name: getattr(self, setting) for name, setting in names.items()}

    def _encoded(
        self, batches: Sequence[Sequence[ImageType]]
    ) -> Generator[VectorArray, None, None]:
        """Encode batches of images in this process, decoding ahead of the model."""
        images, size = (image for batch in batches for image in batch), self.embed_batch_size
        with (
            ThreadPoolExecutor(DECODING_THREADS, "decode") as pool,
            closing(read_ahead(pool, self._prepare, images, size)) as prepared,
        ):
            for batch in batches:
                ready = list(islice(prepared, len(batch)))
                stop_if_given_up()
                yield self._image_encoder.encode_prepared(ready)

    def _images_request(self, images: Sequence[ImageType]) -> ImagesRequest:
        return ImagesRequest(images, self._opening, working_folder())

    def _finish(
        self, vectors: VectorArray, inputs: Sequence[object], modality: Modality, kind: Kind
    ) -> list[Embedding]:
        """Check, cut and align a batch of vectors, and turn them into lists for LlamaIndex."""
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if broken.size:
            first = describe(inputs[broken[0]])
            name = self._encoders.facts[modality == "image"].name
            raise ModelError(
                f"{name}: {broken.size} of {len(vectors)} vectors hold NaN or infinity, the "
                f"first for {first!r}; its weights may be damaged, or dtype={self.dtype!r} may be "
                "too narrow for it: try dtype='float32'"
            )
        if self.dimensions is not None:
            vectors = unit_rows(vectors[:, : self.dimensions])
        if self.aligner is not None:
            vectors = self.aligner.apply(vectors, modality, kind)
        embeddings: list[Embedding] = vectors.tolist()
        return embeddings


@contextmanager
def warn_once_of_cuts(model: BaseEmbedding) -> Iterator[_CutTexts]:
    """Count the texts that are cut inside, and warn once at the end of the outermost call.

    Args:
        model: the embedding, for the message.
    """
    outer = _counting.get()
    if outer is not None:
        yield outer
        return
    counter = _CutTexts()
    token = _counting.set(counter)
    try:
        yield counter
    finally:
        _counting.reset(token)
        if counter.cut:
            logger.warning(
                "%d of %d texts are longer than %s reads%s; the rest of each was cut off. A text "
                "is embedded with its title and other metadata: exclude long ones such as file "
                "paths (excluded_embed_metadata_keys), split the texts into smaller chunks, or "
                "choose a model that reads longer texts.",
                counter.cut,
                counter.total,
                model.model_name,
                f" ({counter.limit} tokens)" if counter.limit else "",
            )
