"""The encoders of a DualEncoderEmbedding: in this process, in others, or both."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from llama_index_gap.embedding.pool import EncoderPool
from llama_index_gap.models import Encoder
from llama_index_gap.models.worker import EncoderFacts, EncoderSettings


class Encoders:
    """The text encoder and the image encoder.

    Without devices, they are loaded at once, in this process. With devices, a process on each
    device embeds batches; single inputs, such as a query, are embedded in this process, whose model
    is loaded with the first of them.

    A copy is the object itself, with the same weights and processes.

    Args:
        settings: the encoders to load.
        devices: one device for each process; None for the best one. Empty for no processes.

    Attributes:
        facts: facts of the text encoder and of the image encoder.

    Raises:
        ModelError: a model cannot be found or loaded.
        ValueError: the settings do not fit each other, the models or this machine.
    """

    def __init__(self, settings: EncoderSettings, devices: Sequence[str | None] = ()) -> None:
        self._settings, self._devices = settings, devices
        self._lock = threading.Lock()
        self._loaded: tuple[Encoder, Encoder] | None = None
        self._pool: EncoderPool | None = None
        self.facts: tuple[EncoderFacts, EncoderFacts]
        if devices:
            self._pool = EncoderPool(settings, devices)
            self.facts = self._pool.facts
        else:
            self._loaded = settings.load()
            text, image = self._loaded
            self.facts = EncoderFacts.of(text), EncoderFacts.of(image)

    @property
    def here(self) -> tuple[Encoder, Encoder]:
        """The encoders of this process, which are loaded on the first access."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._settings.load()
            return self._loaded

    @property
    def are_here(self) -> bool:
        """Whether the encoders are loaded in this process."""
        return self._loaded is not None

    @property
    def pool(self) -> EncoderPool | None:
        """The processes, started again if they were closed; None without devices."""
        if not self._devices:
            return None
        with self._lock:
            # A fork of the process that started them must not use the same pipes.
            if self._pool is None or self._pool.is_closed or self._pool.process_id != os.getpid():
                self._pool = EncoderPool(self._settings, self._devices)
            return self._pool

    def close(self) -> None:
        """End the processes, if there are any."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoders:
        return self
