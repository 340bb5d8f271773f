"""DualEncoderEmbedding: a LlamaIndex embedding whose texts and images share one space."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
)
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.schema import BaseNode, ImageNode, ImageType
from tqdm import tqdm

from llama_index_gap.embedding.base import EmbeddingBase, refuse_what_is_no_text
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.align import (
    Aligner,
    CenterAligner,
    LinearAligner,
    OffsetAligner,
    load_aligner,
)
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.images.opening import describe, open_image
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import Folder, LoadingSettings, PathText, Pooling
from llama_index_gap.models import Encoder, ModelError, load_encoder
from llama_index_gap.threads import DECODING_THREADS, read_ahead, stop_if_given_up

logger = logging.getLogger(__name__)


@dataclass
class _CutTexts:
    """How many texts of one call were longer than the model reads."""

    cut: int = 0
    total: int = 0
    limit: int | None = None


_counting: ContextVar[_CutTexts | None] = ContextVar("_counting", default=None)


class DualEncoderEmbedding(LoadingSettings, EmbeddingBase):
    """Embeds texts and images into one space with a dual encoder.

    Loads CLIP, SigLIP, SigLIP 2 and whatever else sentence-transformers loads, from a hub name or a
    folder. An encoder of images alone, such as DINOv2, embeds no texts: it is for the image queries
    of a ``DualIndex``. Vectors are float32 of length 1. Images are decoded in threads ahead of the
    model; asynchronous methods run in a thread and never block the event loop.

    Raises:
        ModelError: a model cannot be found or loaded, or gives vectors that are no numbers.
        ValueError: a setting does not fit the model or this machine.
        ImageError: (when embedding) an image cannot be opened.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model_name: PathText = Field(frozen=True, description="Hub name or folder of the model.")
    image_model_name: PathText | None = Field(
        frozen=True,
        default=None,
        description="Hub name or folder of the model for images, where it is another one that "
        "shares the space; by default model_name embeds both.",
    )
    dimensions: int | None = Field(
        frozen=True,
        default=None,
        gt=0,
        description="Keep the first so many dimensions (Matryoshka, arXiv 2205.13147), then scale "
        "to length 1; only for models trained for it.",
    )
    query_prompt: str | None = Field(
        frozen=True,
        default=None,
        description="Put before each query; by default what the model says.",
    )
    document_prompt: str | None = Field(
        frozen=True,
        default=None,
        description="Put before each document; by default what the model says.",
    )
    pooling: Pooling | None = Field(
        frozen=True,
        default=None,
        description="How token vectors become one: the 'last', their 'mean', or 'cls', the first; "
        "only for models that do not say so themselves, and as their model card says.",
    )
    max_text_tokens: int | None = Field(
        frozen=True, default=None, gt=0, description="Cut texts earlier than the model does."
    )
    embed_batch_size: int = Field(
        default=32, gt=0, le=2048, description="Texts or images in one pass through the model."
    )
    image_root: Folder | None = Field(
        default=None, description="Folder that image files must lie in; by default anywhere."
    )
    allow_urls: bool = Field(default=False, description="Fetch images from http(s) URLs.")
    max_pixels: int = Field(
        default=MAX_PIXELS, gt=0, description="Refuse images with more pixels than this."
    )
    aligner: Any = Field(
        frozen=True,
        default=None,
        description="Moves all vectors so that texts and images can share one index: an aligner "
        "fitted on this model's vectors with the same dimensions, or the path of a saved one. Only "
        "a DualIndex remembers it and refuses another. With any other index, always pass the same "
        "aligner yourself.",
    )

    _text_encoder: Encoder = PrivateAttr()
    _image_encoder: Encoder = PrivateAttr()

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
                    f"the aligner {fingerprint} was never in a file: keep it with "
                    "aligner.save(path), and pass that path as aligner"
                )
            aligner = load_aligner(path)
            if aligner.fingerprint == fingerprint:
                return aligner
            raise InvalidValueError(
                f"{path} now holds the aligner {aligner.fingerprint}, not {fingerprint}; put the "
                "old file back, or embed everything anew with this one"
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
        self._text_encoder = self._image_encoder = text = image = load_encoder(
            self.model_name,
            self.loading,
            max_text_tokens=self.max_text_tokens,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            pooling=self.pooling,
        )
        if self.image_model_name is not None:
            # A revision belongs to one checkpoint.
            settings = self.loading.model_copy(update={"revision": None})
            self._image_encoder = image = load_encoder(self.image_model_name, settings)
        if image is not text and not image.shares_text_space:
            raise InvalidValueError(
                f"{image.name} was trained on images alone, so that texts cannot be compared with "
                "its vectors; give it to a DualIndex as image_query_embed_model"
            )
        if text.dimension != image.dimension:
            raise InvalidValueError(
                f"{text.name} gives {text.dimension} dimensions, {image.name} {image.dimension}; "
                "texts and images must share one space: pass two models that were trained together"
            )
        if self.dimensions is not None and self.dimensions > text.dimension:
            raise InvalidValueError(
                f"dimensions={self.dimensions}: {text.name} has {text.dimension}; "
                "pass at most that, or leave it out"
            )
        if self.aligner is None:
            return
        if self.aligner.dimension != self.dimension:
            raise InvalidValueError(
                f"the aligner moves vectors of {self.aligner.dimension} dimensions, the model "
                f"gives {self.dimension}; fit one on vectors of this model, with the same "
                "dimensions"
            )
        fitted_on = str(self.aligner.fitted_on.get("model_name", self.model_name))
        # By the last part: a folder may have moved.
        if Path(fitted_on).name not in {Path(name).name for name in (self.model_name, text.name)}:
            logger.warning(
                "The aligner was fitted on vectors of %s and now moves those of %s; if they are "
                "not the same model, fit one on this model's.",
                fitted_on,
                self.model_name,
            )

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.dimensions or self._text_encoder.dimension

    @property
    def modalities(self) -> frozenset[Modality]:
        """What it can embed."""
        return (self._text_encoder.modalities - {"image"}) | (
            self._image_encoder.modalities - {"text"}
        )

    # --- texts -----------------------------------------------------------------------------------

    def get_query_embedding_batch(self, queries: list[str]) -> list[Embedding]:
        """Embed queries, in batches of ``embed_batch_size``, as ``get_query_embedding`` does each.

        Args:
            queries: n texts.
        """
        with warn_once_of_cuts(self):
            starts = range(0, len(queries), self.embed_batch_size)
            batches = (queries[start : start + self.embed_batch_size] for start in starts)
            return [each for batch in batches for each in self._embed_texts(batch, "query")]

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed documents, in batches of ``embed_batch_size``.

        Args:
            texts: n texts.
            show_progress: show a progress bar.
            **kwargs: as in LlamaIndex.

        Returns:
            n vectors of ``dimension`` numbers, of length 1.
        """
        with warn_once_of_cuts(self):
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)

    @property
    def longest_text(self) -> int | None:
        """The most tokens that the model reads of a text; None where it states no limit."""
        return self._text_encoder.max_text_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int] | None:
        """How many tokens the model makes of documents, prompt and special tokens included.

        Args:
            texts: n texts.

        Returns:
            n numbers; None where the model has no tokenizer that could count.
        """
        return self._text_encoder.count_tokens(texts, "document")

    def query_cut_at(self, query: str) -> int | None:
        """The tokens that the model reads of this query; None where it reads all of it."""
        encoder = self._text_encoder
        if "text" in encoder.modalities and encoder.count_truncated([query], "query"):
            return encoder.max_text_tokens
        return None

    def _embed_texts(self, texts: list[str], kind: Kind) -> list[Embedding]:
        if not texts:
            return []
        refuse_what_is_no_text(texts)
        encoder = self._text_encoder
        stop_if_given_up()
        with warn_once_of_cuts(self) as counter:
            counter.limit = encoder.max_text_tokens
            counter.total += len(texts)
            counter.cut += encoder.count_truncated(texts, kind)
            return self._finish(encoder, encoder.encode_text(texts, kind), texts, "text", kind)

    # --- images ----------------------------------------------------------------------------------

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        prepared = [self._prepare(image) for image in img_file_paths]
        return self._embed_prepared(prepared, img_file_paths)

    def get_image_embedding_batch(
        self, img_file_paths: list[ImageType], show_progress: bool = False
    ) -> list[Embedding]:
        """Embed images, in batches of ``embed_batch_size``, decoding ahead of the model.

        Args:
            img_file_paths: n paths or ``BytesIO``; in fact anything that ``open_image`` opens.
            show_progress: show a progress bar.

        Returns:
            n vectors of ``dimension`` numbers, of length 1.

        Raises:
            ImageError: an image cannot be opened; names it.
        """
        size = self.embed_batch_size
        embeddings: list[Embedding] = []
        with (
            tqdm(
                total=len(img_file_paths),
                desc="Generating image embeddings",
                unit="image",
                disable=not show_progress,
            ) as progress,
            ThreadPoolExecutor(DECODING_THREADS, "decode") as pool,
            closing(read_ahead(pool, self._prepare, img_file_paths, size)) as prepared,
        ):
            for start in range(0, len(img_file_paths), size):
                images = img_file_paths[start : start + size]
                payload: dict[str, Any] = {EventPayload.SERIALIZED: self.to_payload()}
                with self.callback_manager.event(CBEventType.EMBEDDING, payload) as event:
                    vectors = self._embed_prepared(list(islice(prepared, len(images))), images)
                    event.on_end({EventPayload.CHUNKS: images, EventPayload.EMBEDDINGS: vectors})
                embeddings += vectors
                progress.update(len(images))
        return embeddings

    def _prepare(self, image: ImageType) -> Any:
        opened = open_image(
            image, root=self.image_root, allow_urls=self.allow_urls, max_pixels=self.max_pixels
        )
        return self._image_encoder.prepare_image(opened)

    def _embed_prepared(self, prepared: list[Any], images: Sequence[ImageType]) -> list[Embedding]:
        if not prepared:
            return []
        stop_if_given_up()
        encoder = self._image_encoder
        vectors = encoder.encode_prepared(prepared)
        # LlamaIndex has one method for images that are documents and images that are queries.
        return self._finish(encoder, vectors, images, "image", "document")

    def _finish(
        self,
        encoder: Encoder,
        vectors: VectorArray,
        inputs: Sequence[object],
        modality: Modality,
        kind: Kind,
    ) -> list[Embedding]:
        """Check a batch of vectors, cut and align them, and give what LlamaIndex takes."""
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if broken.size:
            first = describe(inputs[broken[0]])
            raise ModelError(
                f"{encoder.name}: {broken.size} of {len(vectors)} vectors hold NaN or infinity, "
                f"the first for {first!r}; its weights may be damaged, or dtype={self.dtype!r} too "
                "narrow for it: try dtype='float32'"
            )
        if self.dimensions is not None:
            vectors = unit_rows(vectors[:, : self.dimensions])
        if self.aligner is not None:
            vectors = self.aligner.apply(vectors, modality, kind)
        embeddings: list[Embedding] = vectors.tolist()
        return embeddings


def aligner_from_nodes(
    nodes: Sequence[BaseNode],
    embed_model: DualEncoderEmbedding,
    aligner: type[OffsetAligner] | type[CenterAligner] = LinearAligner,
    *,
    queries: Sequence[str] | None = None,
    show_progress: bool = False,
    **settings: Any,
) -> Aligner:
    """Fit an aligner on a model's vectors of nodes.

    Args:
        nodes: a ``LinearAligner`` learns from images with captions, and from nothing else; the
            others from all texts, captions too, and all images. A few hundred of each are good.
        embed_model: the model; one without an aligner.
        aligner: which one to fit.
        queries: a sample of queries, where the aligner centres them by themselves: for models with
            a prompt for queries, or queries that do not read like the texts.
        show_progress: show progress bars.
        **settings: as for its ``fit``.

    Returns:
        The aligner, for ``DualEncoderEmbedding(aligner=…)``; ``save`` keeps it.

    Raises:
        ValueError: too few nodes of a sort, or a model that aligns already.
    """
    if embed_model.aligner is not None:
        raise InvalidValueError(
            f"{embed_model.model_name} aligns already; fit on vectors of a model without an aligner"
        )
    if issubclass(aligner, LinearAligner):
        nodes = [node for node in nodes if isinstance(node, ImageNode) and node.text]
    embedded = embed_model(nodes, show_progress=show_progress)
    images = [node for node in embedded if isinstance(node, ImageNode)]
    captions = [node.text_embedding for node in images if node.text_embedding is not None]
    texts = [node.embedding for node in embedded if not isinstance(node, ImageNode)]

    def rows(vectors: Iterable[Any]) -> npt.NDArray[np.float32]:
        return np.reshape(np.array([*vectors], dtype=np.float32), (-1, embed_model.dimension))

    if queries is not None:
        settings["queries"] = rows(map(embed_model.get_query_embedding, queries))
    return aligner.fit(
        rows(texts + captions),
        rows(node.embedding for node in images),
        model_name=embed_model.model_name,
        **settings,
    )


@contextmanager
def warn_once_of_cuts(model: BaseEmbedding) -> Iterator[_CutTexts]:
    """Count the texts that are cut meanwhile, and warn once at the end of the outermost call.

    Args:
        model: what embeds them, for the message.
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
                "%d of %d texts are longer than %s reads%s; the rest of each was left out. Cut "
                "them into smaller chunks, or choose a model that reads more.",
                counter.cut,
                counter.total,
                model.model_name,
                f" ({counter.limit} tokens)" if counter.limit else "",
            )
