"""Processes that each load a model and embed batches; if one ends, another takes over its work."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from llama_index.core.schema import BaseNode, NodeWithScore

from llama_index_gap.errors import EmbeddingError, GapError
from llama_index_gap.images.opening import ImageSource, describe, open_image
from llama_index_gap.models.worker import (
    Answer,
    EncoderFacts,
    EncoderSettings,
    ImagesRequest,
    LoadRequest,
    Request,
    TextsRequest,
    read_message,
    write_message,
)
from llama_index_gap.processes import end_own, start_own
from llama_index_gap.threads import read_ahead, stop_if_given_up

logger = logging.getLogger(__name__)

_AT_ONCE = 2  # batches in a process: it decodes the next while its model embeds one
_AHEAD = 4  # batches of a call that are requested ahead, for each process
_TRIES = 3  # for each batch; one that ends three processes would end a fourth
_CLOSED = "the processes that embed have been closed"


class _EndedError(Exception):
    """A process ended before it answered a request."""


class _Process:
    """A running process with a model."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] = start_own(
            "llama_index_gap.models.worker", working_folder=True
        )
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._waiting: deque[Future[bytes]] = deque()

    def ask(self, request: Request) -> Answer:
        """Send a request from any thread, and wait for its answer.

        Raises:
            _EndedError: the process ended before it answered.
        """
        message = pickle.dumps(request)
        mine: Future[bytes] = Future()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._sending:
            self._waiting.append(mine)
            with suppress(OSError, ValueError):  # reading, below, shows that it has ended
                write_message(self._process.stdin, message)
        with self._receiving:
            oldest = self._waiting.popleft()  # answers come in the order of the requests
            try:
                oldest.set_result(read_message(self._process.stdout))
            except (EOFError, OSError, ValueError):
                oldest.set_exception(_EndedError(self._exit()))
        answer: Answer = pickle.loads(mine.result())  # noqa: S301  # from our own process
        return answer

    def end(self) -> None:
        """End the process at once."""
        end_own(self._process)

    def _exit(self) -> str:
        code = self._process.wait()
        if code == -9:  # SIGKILL; Windows does not know this name
            return "was killed, perhaps because the system was short of memory"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with code {code}"


class EncoderPool:
    """Processes that embed batches, one for each device.

    Any thread may send requests. A process that ends is replaced, and its requests go to the first
    process that is free. The processes end with this object, with ``close``, and with the process
    that made this object, however that ends.

    Args:
        settings: the encoders that each process loads.
        devices: the device of each process; None for the best one.

    Attributes:
        facts: facts of the text encoder and of the image encoder.
        process_id: id of the process that made this object; no other process may use it.

    Raises:
        ModelError: a model cannot be found or loaded.
        ValueError: the settings do not fit each other, the models or this machine.
        EmbeddingError: a process cannot be started, or ends while it loads.
    """

    def __init__(self, settings: EncoderSettings, devices: Sequence[str | None]) -> None:
        count = len(devices)
        self.process_id = os.getpid()
        self._loads = [
            LoadRequest(settings.on(device), number, count) for number, device in enumerate(devices)
        ]
        self._free = threading.Condition()
        self._loading = [threading.Lock() for _ in devices]
        self._asked = [0] * count
        self._closed = threading.Event()
        self._processes: dict[int, _Process] = {}
        self._executor = ThreadPoolExecutor(_AT_ONCE * count, "embed")
        self._end = weakref.finalize(self, _end_all, self._processes, self.process_id)
        try:
            # All import their libraries at the same time; then the first downloads the model.
            for number in range(count):
                self._processes[number] = self._started()
            first, *others = self._processes.items()
            self.facts: tuple[EncoderFacts, EncoderFacts]
            self.facts = self._executor.submit(self._loaded, *first, logs=True).result()
            for load in [self._executor.submit(self._loaded, *each) for each in others]:
                load.result()
        except BaseException:
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether the processes were ended by ``close``."""
        return self._closed.is_set()

    def __len__(self) -> int:
        return len(self._loads)

    def map(self, requests: Iterable[Request]) -> Generator[Any, None, None]:
        """Send requests, and yield their answers in order while later requests are running.

        Raises:
            EmbeddingError: several processes ended with the same request, or ``close`` was called.
            Exception: a request's own error, in place of its answer.
        """
        ahead = _AHEAD * len(self)
        with closing(read_ahead(self._executor, self._answer, requests, ahead)) as answers:
            try:
                for answer in answers:
                    stop_if_given_up()
                    yield answer
            except (CancelledError, RuntimeError) as error:
                if self.is_closed and not isinstance(error, GapError):
                    raise EmbeddingError(_CLOSED) from error
                raise

    def close(self) -> None:
        """End the processes at once; their open requests fail."""
        self._closed.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._free:
            self._free.notify_all()
        self._end()

    def _answer(self, request: Request) -> Any:
        """Send a request to the process with the least work; if it ends, to another one."""
        if isinstance(request, ImagesRequest):
            request = replace(request, images=[_portable(request, each) for each in request.images])
        for left in reversed(range(_TRIES)):
            # A retry is alone in its process: of two requests, either may have ended the last one.
            share = 1 if left == _TRIES - 1 else _AT_ONCE
            with self._free:
                while min(self._asked) > _AT_ONCE - share and not self.is_closed:
                    self._free.wait()
                number = min(range(len(self)), key=self._asked.__getitem__)
                self._asked[number] += share
            process: _Process | None = None
            try:
                process = self._ready(number)
                return _taken(process.ask(request))
            except _EndedError as ended:
                self._drop(number, process)
                if self.is_closed:
                    raise EmbeddingError(_CLOSED) from ended
                problem = self._in_words(number, ended, request)
                if not left:
                    raise EmbeddingError(
                        f"{problem}, like {_TRIES - 1} others before it; if memory is short, use "
                        "fewer processes (workers, devices), or lower embed_batch_size"
                    ) from ended
                logger.warning("%s; another process embeds the batch again", problem)
            finally:
                with self._free:
                    self._asked[number] -= share
                    self._free.notify_all()
        raise AssertionError

    def _ready(self, number: int) -> _Process:
        """A running process; if it has ended, a new one is started."""
        with self._loading[number]:
            if self.is_closed:
                raise EmbeddingError(_CLOSED)
            process = self._processes.get(number)
            if process is None:
                process = self._processes[number] = self._started()
                try:
                    self._loaded(number, process)
                except BaseException:
                    self._drop(number, process)
                    raise
            return process

    def _started(self) -> _Process:
        try:
            return _Process()
        except OSError as error:
            raise EmbeddingError(
                f"{self._loads[0].settings.model_name}: cannot start a process for it ({error}); "
                "use fewer processes (workers, devices)"
            ) from error

    def _loaded(self, number: int, process: _Process, *, logs: bool = False) -> Any:
        """Let a process load its encoders; only one process passes on its log records."""
        load = self._loads[number]
        try:
            answer = process.ask(load)
        except _EndedError as ended:
            raise EmbeddingError(
                f"{self._in_words(number, ended, load)}; if memory is short, use fewer processes "
                "(workers, devices)"
            ) from ended
        return _taken(answer) if logs else answer.result()

    def _drop(self, number: int, process: _Process | None) -> None:
        """Forget a process that has ended."""
        with self._free:
            if process is not None and self._processes.get(number) is process:
                self._processes.pop(number).end()

    def _in_words(self, number: int, ended: _EndedError, request: Request) -> str:
        settings = self._loads[number].settings
        device = settings.loading.device
        problem = f"{settings.model_name}: process {number + 1} of {len(self)}"
        problem += f" (on {device})" if device else ""
        problem += f" {ended}"
        match request:
            case TextsRequest(texts=inputs) | ImagesRequest(images=inputs):
                first = describe(inputs[0])
                return f"{problem}, in a batch of {len(inputs)} that starts with {first[:200]!r}"
            case LoadRequest():
                return f"{problem}, while it loaded the model"
        return problem


def _portable(request: ImagesRequest, image: ImageSource) -> ImageSource:
    """An image that another process can read; that process does not know the caller's classes."""
    node = image.node if isinstance(image, NodeWithScore) else image
    known = (
        type(node).__module__.partition(".")[0] in {"llama_index", "llama_index_gap"}
        if isinstance(node, BaseNode)
        else isinstance(node, (str, Path, bytes, BytesIO))
    )
    return image if known else open_image(image, **request.opening)


def _taken(answer: Answer) -> Any:
    """The value of an answer; its log records are logged here."""
    for name, level, message in answer.logged:
        logging.getLogger(name).log(level, "%s", message)
    return answer.result()


def _end_all(processes: dict[int, _Process], process_id: int) -> None:
    if os.getpid() == process_id:  # a fork did not start them
        while processes:
            processes.popitem()[1].end()
