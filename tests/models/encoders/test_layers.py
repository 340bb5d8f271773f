"""Functions and layers that the native towers share."""

import numpy as np
import torch
from PIL import Image

from llama_index_gap.models.encoders.layers import (
    PatchRotation,
    masked_mean,
    pixel_values,
    split_heads,
    to_numpy,
)


def test_pixel_values():
    image = Image.new("RGB", (3, 2), (0, 255, 51))
    values = pixel_values(image, mean=[0.5, 0.5, 0.2], std=[0.5, 0.25, 1.0])
    assert (values.shape, values.dtype) == ((3, 2, 3), np.float32)
    np.testing.assert_allclose(values[:, 1, 2], [-1, 2, 0], atol=1e-7)


def test_masked_mean():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]], dtype=torch.bfloat16)
    mean = masked_mean(hidden, torch.tensor([[1, 1, 0]]))
    assert mean.dtype == torch.float32
    assert mean.tolist() == [[2.0, 4.0]]


def test_to_numpy():
    array = to_numpy(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    assert (array.dtype, array.tolist()) == (np.float32, [1.0, 2.0])


def test_split_heads():
    heads = split_heads(torch.arange(12.0).reshape(1, 2, 6), heads=3)
    assert heads.shape == (1, 3, 2, 2)
    assert heads[0, 1].tolist() == [[2.0, 3.0], [8.0, 9.0]]


def test_patch_rotation_by_hand():
    heads = torch.tensor([[1.0, 0, 1, 0]] * 5)[None, None]
    turned = PatchRotation(patches=2, head_dim=4, extent=3.0)(heads)[0, 0]
    one = (np.cos(1.5), np.sin(1.5))  # the second of 2 patches that together are 3 wide
    zero = (1, 0)
    wanted = [zero + zero, zero + zero, zero + one, one + zero, one + one]
    np.testing.assert_allclose(turned, wanted, atol=1e-6)


def test_patch_rotation_slows_down_along_the_head():
    rotation = PatchRotation(patches=2, head_dim=8, extent=2.0)
    # Pairs of one patch below the first: 1 and 1/100 of a turn's radian, then columns: none.
    np.testing.assert_allclose(rotation.cosine[2, ::2], np.cos([1, 0.01, 0, 0]), atol=1e-6)


def test_patch_rotation_keeps_lengths_and_number_format():
    heads = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    turned = PatchRotation(patches=2, head_dim=8, extent=2.0)(heads)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1), rtol=0.02, atol=0)
