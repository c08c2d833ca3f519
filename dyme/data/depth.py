"""Depth: pixels of more than 8 bits, signed ones and floats, as 8-bit levels. docs/data.md states the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 32
"""A picture whose brightest pixel would come out below this level of 255 is stretched to white."""
OUTLIERS = 0.001
"""Share of the pixels above black, the brightest ones, that have no say in that: hot pixels, marks burnt in."""


def levels(
    values: NDArray[np.generic], *, white: float | None = None, missing: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """`values` of any shape and type as 0 to 255. Missing pixels, NaN and infinities are black; a picture of
    nothing else is a `ValueError`.

    `white` is the value that the file itself calls white, if it does. It holds where no pixel is above it.
    """
    known = np.isfinite(values)
    if missing is not None:
        known &= ~missing
    if not known.any():
        raise ValueError("none of its pixels has a value, only NaN, infinity or nodata")
    seen = values[known]
    low, high = float(seen.min()), float(seen.max())
    black, top = bounds(low, high, floats=values.dtype.kind == "f")
    if white is not None and low >= 0 and high <= white:
        black, top = 0.0, white
    bright = _without_outliers(seen, black, black + (top - black) * DIM / 255)
    if bright is not None:
        top = bright
    if top <= black:  # all pixels are the same
        black = min(black, 0.0)
    if top <= black:
        return np.zeros(values.shape, np.uint8)
    # 24 bits are enough for 16-bit values and half the memory
    scaled: NDArray[Any] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    scaled[~known] = black
    scaled -= black
    scaled *= 255.0 / (top - black)
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)


def _without_outliers(seen: NDArray[Any], black: float, dim: float) -> float | None:
    """The highest value but for outliers, where it is below `dim` and above `black`."""
    lit = seen[seen > black]
    spared = int(lit.size * OUTLIERS)
    if not lit.size or np.count_nonzero(lit >= dim) > spared:
        return None
    return float(np.partition(lit, lit.size - 1 - spared)[lit.size - 1 - spared])


def bounds(low: float, high: float, *, floats: bool) -> tuple[float, float]:
    """The values that become black and white, from the lowest and highest of a picture.

    Floats within 0 to 1: 0 and 1. Whole numbers without a negative one: 0, and the largest number of as many bits as
    the highest has, 8 at least. Anything else: the lowest and the highest.
    """
    if floats:
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    return (0.0, float(2 ** max(8, int(high).bit_length()) - 1)) if low >= 0 else (low, high)
