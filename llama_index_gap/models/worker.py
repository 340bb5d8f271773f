"""A process that loads a model and encodes batches; ``embedding/pool.py`` starts it."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, Any, TypeAlias

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.images.opening import ImageSource, open_image
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Encoder
from llama_index_gap.models.loading import load_encoder
from llama_index_gap.processes import answers_to_parent
from llama_index_gap.threads import DECODING_THREADS

_MOST_CAUSES = 20
_LENGTH = struct.Struct("<Q")
_PACKAGE = "llama_index_gap"


@dataclass(frozen=True)
class EncoderSettings:
    """Which encoders to load for texts and images, and how.

    Attributes:
        model_name: the model for texts, and for images without ``image_model_name``.
        image_model_name: the model for images, if it is another.
        loading: how to find and load them.
        texts: further arguments of ``load_encoder`` for the text encoder.
    """

    model_name: str
    image_model_name: str | None
    loading: LoadingSettings
    texts: dict[str, Any] = field(default_factory=dict)

    def load(self) -> tuple[Encoder, Encoder]:
        """Load the text encoder and the image encoder, which may be the same.

        Raises:
            ModelError: a model cannot be found or loaded.
            ValueError: a setting does not fit the model or this machine, or the models do not share
                a space.
        """
        text = image = load_encoder(self.model_name, self.loading, **self.texts)
        if self.image_model_name is not None:
            # The revision belongs to the text model's checkpoint.
            settings = self.loading.model_copy(update={"revision": None})
            image = load_encoder(self.image_model_name, settings)
        if image is not text and not image.shares_text_space:
            raise InvalidValueError(
                f"{image.name} was trained on images only, so its vectors cannot be compared with "
                "those of texts; pass it to a DualIndex as image_query_embed_model"
            )
        if text.dimension != image.dimension:
            raise InvalidValueError(
                f"{text.name} gives {text.dimension} dimensions, {image.name} gives "
                f"{image.dimension}, but texts and images must share one space; pass two models "
                "that were trained together"
            )
        return text, image

    def on(self, device: str | None) -> EncoderSettings:
        """The same settings on a device; None keeps their own device."""
        if device is None:
            return self
        loading = self.loading.model_copy(update={"device": device})
        return EncoderSettings(self.model_name, self.image_model_name, loading, self.texts)


@dataclass(frozen=True)
class EncoderFacts:
    """Facts about a loaded encoder; see the attributes of ``Encoder``."""

    name: str
    dimension: int
    modalities: frozenset[Modality]
    max_text_tokens: int | None

    @classmethod
    def of(cls, encoder: Encoder) -> EncoderFacts:
        """The facts of a loaded encoder."""
        return cls(encoder.name, encoder.dimension, encoder.modalities, encoder.max_text_tokens)


@dataclass(frozen=True)
class LoadRequest:
    """Load the encoders; the answer is their facts.

    Attributes:
        settings: the encoders to load.
        number: number of this process, from 0.
        count: number of processes that share the machine.
    """

    settings: EncoderSettings
    number: int
    count: int


@dataclass(frozen=True)
class TextsRequest:
    """Embed n texts; the answer is an array of shape (n, dimension) and the number of cut texts."""

    texts: list[str]
    kind: Kind


@dataclass(frozen=True)
class LengthsRequest:
    """Count the tokens of n texts; the answer is that of ``Encoder.count_tokens``."""

    texts: list[str]
    kind: Kind


@dataclass(frozen=True)
class ImagesRequest:
    """Open and embed n images; the answer is an array of shape (n, dimension).

    Attributes:
        images: sources that ``open_image`` takes.
        opening: settings for ``open_image``.
        folder: the folder that relative paths start from.
    """

    images: Sequence[ImageSource]
    opening: dict[str, Any]
    folder: str | None


Request: TypeAlias = LoadRequest | TextsRequest | LengthsRequest | ImagesRequest


@dataclass
class Answer:
    """The outcome of a request.

    Attributes:
        value: the answer.
        errors: if it failed, the error and its chain of causes, each as a pickle and in words.
        logged: what the package logged meanwhile: logger, level, message.
    """

    value: Any = None
    errors: list[tuple[bytes, str]] = field(default_factory=list)
    logged: list[tuple[str, int, str]] = field(default_factory=list)

    def result(self) -> Any:
        """Return the value, or raise the error as if it had happened here."""
        if not self.errors:
            return self.value
        chain = [_unpickled(*each) for each in self.errors]
        for error, cause in pairwise(chain):
            error.__cause__ = cause
        raise chain[0]


def write_message(stream: IO[bytes], message: bytes) -> None:
    """Write the length of a message, then the message."""
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes:
    """Read a message.

    Raises:
        EOFError: the other process has ended.
    """
    head = stream.read(_LENGTH.size)
    if len(head) == _LENGTH.size:
        message = stream.read(*_LENGTH.unpack(head))
        if len(message) == _LENGTH.unpack(head)[0]:
            return message
    raise EOFError


class _Served:
    """The encoders of this process, and the threads that decode images ahead of them."""

    def __init__(self) -> None:
        self._text: Encoder
        self._image: Encoder
        self._decoding: ThreadPoolExecutor

    def load(self, request: LoadRequest) -> tuple[EncoderFacts, EncoderFacts]:
        import torch

        threads = max(1, torch.get_num_threads() // request.count)
        torch.set_num_threads(threads)
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # tokenizers'
        self._decoding = ThreadPoolExecutor(max(1, DECODING_THREADS // request.count), "decode")
        settings = request.settings
        if settings.loading.device is None and torch.cuda.is_available():
            settings = settings.on(f"cuda:{request.number % torch.cuda.device_count()}")
        self._text, self._image = settings.load()
        return EncoderFacts.of(self._text), EncoderFacts.of(self._image)

    def begin(self, request: Request) -> list[Future[Any]]:
        """Start decoding the images of a request while the model is busy with an earlier one."""
        if not isinstance(request, ImagesRequest):
            return []
        if request.folder is not None:
            os.chdir(request.folder)

        def prepare(image: ImageSource) -> Any:
            return self._image.prepare_image(open_image(image, **request.opening))

        return [self._decoding.submit(prepare, image) for image in request.images]

    def finish(self, request: Request, begun: list[Future[Any]]) -> Any:
        match request:
            case LoadRequest():
                return self.load(request)
            case TextsRequest(texts, kind):
                cut = self._text.count_truncated(texts, kind)
                return self._text.encode_text(texts, kind), cut
            case LengthsRequest(texts, kind):
                return self._text.count_tokens(texts, kind)
            case ImagesRequest():
                return self._embedded(begun)

    def _embedded(self, begun: list[Future[Any]]) -> VectorArray:
        try:
            return self._image.encode_prepared([each.result() for each in begun])
        finally:
            for each in begun:
                each.cancel()


class _Log(logging.Handler):
    """Keeps log records until the next answer carries them to the parent."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.SimpleQueue[tuple[str, int, str]] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.put((record.name, record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[str, int, str]]:
        return [self._records.get() for _ in range(self._records.qsize())]


def main() -> None:
    """Answer requests, in their order, until the parent has ended."""
    answers = answers_to_parent()
    # An image that is skipped for this reason is reported anyway.
    warnings.filterwarnings("ignore", message="Image size .* decompression bomb")
    log, logger = _Log(), logging.getLogger(_PACKAGE)
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    served = _Served()
    waiting: queue.SimpleQueue[tuple[Request | None, Any]] = queue.SimpleQueue()

    def read() -> None:
        # Runs beside the batches: when the parent is gone, the process ends in the middle of one.
        with suppress(EOFError, OSError):
            while True:
                message = read_message(sys.stdin.buffer)
                try:
                    request = pickle.loads(message)  # noqa: S301  # of the process that started this
                    waiting.put((request, served.begin(request)))
                except Exception as error:  # its pickle may need a class that only the parent has
                    waiting.put((None, error))
        os._exit(0)

    threading.Thread(target=read, name="read", daemon=True).start()
    import torch  # noqa: F401  # early: the first process may still be downloading the model

    while True:
        request, begun = waiting.get()
        answer = Answer()
        try:
            if request is None:
                raise begun
            answer.value = served.finish(request, begun)
        except Exception as error:  # the parent raises it
            answer.errors = _pickled_chain(error)
        answer.logged = log.taken()
        write_message(answers, pickle.dumps(answer))


def _pickled_chain(error: BaseException | None) -> list[tuple[bytes, str]]:
    """An error and its chain of causes, each as a pickle and in words."""
    if error is not None:
        error.add_note(f"In another process:\n{''.join(traceback.format_exception(error))}")
    chain: list[tuple[bytes, str]] = []
    while error is not None and len(chain) < _MOST_CAUSES:
        try:
            pickled = pickle.dumps(error)
        except Exception:  # it holds something that cannot be pickled
            pickled = b""
        chain.append((pickled, f"{type(error).__name__}: {error}"))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


def _unpickled(pickled: bytes, words: str) -> BaseException:
    with suppress(Exception):  # its class needs other arguments, or is unknown here
        error = pickle.loads(pickled)  # noqa: S301  # from a process that this one started
        if isinstance(error, BaseException):
            return error
    return RuntimeError(words)
