"""Converts grey images of more than 8 bits to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BAND_PIXELS = 2**20


def grey_of_8_bits(image: Image.Image) -> Image.Image:
    """Scale greys of 16 or 32 bits, or in floating point, by the image's range of values.

    Cameras, scanners and microscopes store 10, 12 or 14 bits in 16, and no file says so. White is
    therefore:

    - for whole numbers from 0 to 65,535: the largest number of as many bits as the brightest value
      needs, at least 8: 4,095 for a brightest value of 3,000, 65,535 for 40,000;
    - for other whole numbers: the brightest value, with the darkest value as black;
    - for floating-point numbers: 1 if all lie between 0 and 1; else as for other whole numbers.
      Values that are not finite numbers are black.

    Args:
        image: decoded, in one of Pillow's modes ``I;16``, ``I`` and ``F``.
    """
    values = np.asarray(image)
    lowest, highest = _range(values)
    black, white = lowest, highest
    if values.dtype.kind == "f":
        if lowest >= 0 and highest <= 1:
            black, white = 0.0, 1.0
    elif lowest >= 0 and highest < 2**16:
        black, white = 0.0, float(2 ** max(8, int(highest).bit_length()) - 1)
    width = max(white - black, np.finfo(np.float64).tiny)
    result = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // values.shape[1])
    for top in range(0, len(values), rows):  # the whole image takes several copies
        band = (values[top : top + rows].astype(np.float64) - black) / width
        band = np.nan_to_num(band, nan=0.0, posinf=0.0, neginf=0.0)
        result[top : top + rows] = np.rint(band.clip(0, 1) * 255)
    return Image.fromarray(result)


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """The lowest and the highest finite value."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    lowest, highest = np.inf, -np.inf
    rows = max(1, _BAND_PIXELS // values.shape[1])
    for top in range(0, len(values), rows):
        band = values[top : top + rows]
        band = band[np.isfinite(band)]
        if band.size:
            lowest, highest = min(lowest, float(band.min())), max(highest, float(band.max()))
    return (lowest, highest) if lowest <= highest else (0.0, 1.0)
