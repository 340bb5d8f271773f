"""Where a model runs, and in which number format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from llama_index_gap.errors import InvalidValueError

if TYPE_CHECKING:
    import torch

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


def resolve_device(device: str | None) -> str:
    """The device to run on: the one asked for, else the first GPU, else the processor.

    Args:
        device: a torch device such as ``"cuda:1"``, or None to choose.

    Raises:
        ValueError: torch does not know such a device, or this machine has none.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidValueError(
            f"device={device!r} cannot be used here ({reason}); "
            "leave it out to take a GPU if there is one, or pass 'cpu'"
        ) from error
    return device


def resolve_dtype(dtype: Dtype, device: str) -> torch.dtype:
    """The number format of the weights.

    ``"auto"`` is bfloat16 where the hardware multiplies it natively (a GPU with bfloat16 units; a
    processor with AMX or AVX512-BF16: about three times faster there, at a cosine of at least
    0.9999 to float32), else float32.

    Args:
        dtype: ``"auto"`` or a format's name.
        device: where the model runs, as ``resolve_device`` gives it.
    """
    import torch

    if dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[dtype]
    return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32


def _has_native_bfloat16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
