from __future__ import annotations

import pytest
import torch

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.runtime import placement


def test_takes_the_processor_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    assert placement(LoadingSettings())[0] == "cpu"
    assert placement(LoadingSettings(device="cpu"))[0] == "cpu"


def test_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert placement(LoadingSettings(dtype="float16")) == ("cuda", torch.float16)


@pytest.mark.parametrize("device", ["quantum", "cuda:99", ""])
def test_refuses_devices_that_are_not_here(device: str) -> None:
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        placement(LoadingSettings(device=device))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx2": True, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bfloat16_where_the_processor_has_it(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    assert placement(LoadingSettings(device="cpu")) == ("cpu", expected)
    assert placement(LoadingSettings(device="cpu", dtype="float32")) == ("cpu", torch.float32)


def test_float32_on_other_devices() -> None:
    assert placement(LoadingSettings(device="meta")) == ("meta", torch.float32)
