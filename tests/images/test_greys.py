from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llama_index_gap.images.opening import open_image


def greys(values: list[float], kind: str) -> list[int]:
    image = Image.fromarray(np.array([values], dtype=kind))
    stream = BytesIO()
    image.save(stream, "TIFF")
    return [int(pixel) for pixel in np.asarray(open_image(stream.getvalue()))[0, :, 0]]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 2048, 4095], "uint16", [0, 128, 255]),  # 12 bits in 16
        ([0, 1023], "uint16", [0, 255]),  # 10 bits
        ([0, 3000], "uint16", [0, 187]),  # of 4,095
        ([0, 32768, 65535], "uint16", [0, 128, 255]),
        ([0, 200], "uint16", [0, 200]),  # 8 bits
        ([0, 4095], "int32", [0, 255]),
        ([-100, 0, 100], "int32", [0, 128, 255]),
        ([0, 70_000], "int32", [0, 255]),
        ([0, 0.5, 1], "float32", [0, 128, 255]),
        ([0, 0.25], "float32", [0, 64]),
        ([-1, 3], "float32", [0, 255]),
        ([float("nan"), 5, 10, float("inf")], "float32", [0, 0, 255, 0]),
        ([7, 7], "float32", [0, 0]),
    ],
)
def test_greys_are_scaled_by_what_they_hold(
    values: list[float], kind: str, expected: list[int]
) -> None:
    assert greys(values, kind) == expected


def test_12_bits_in_a_png_file_are_not_black() -> None:
    image = Image.fromarray(np.array([[0, 4095]], dtype=np.uint16))
    stream = BytesIO()
    image.save(stream, "PNG")

    assert [pixel[0] for pixel in np.asarray(open_image(stream.getvalue()))[0]] == [0, 255]


def test_a_grey_map_of_12_bits() -> None:
    data = b"P5 2 1 4095\n\x00\x00\x0f\xff"

    assert [pixel[0] for pixel in np.asarray(open_image(data))[0]] == [0, 255]
