"""A model whose process is killed at a certain image, once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from llama_index_gap import DualEncoderEmbedding


class MortalEmbedding(DualEncoderEmbedding):
    """Kills its process (SIGKILL) when it gets an image of this name.

    It does so as often as there are files in the folder ``deaths``, and removes one each time.
    """

    deadly: str
    deaths: str

    @classmethod
    def class_name(cls) -> str:
        return "DualEncoderEmbedding"

    def get_image_embedding_batch(self, images: list[Any], *args: Any, **kwargs: Any) -> Any:
        if any(Path(str(image)).name == self.deadly for image in images):
            for left in sorted(Path(self.deaths).iterdir()):
                left.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().get_image_embedding_batch(images, *args, **kwargs)
