"""Functions of scalars and blocks that the Triton kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def smaller(x, y):
    """NaN if either is: a broken log-probability must not hide behind a clip."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exponential(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def tanh(x):
    """Through exp away from 0, by its series near 0, where 1 - exp would cancel."""
    square = x * x
    series = x * (
        1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * 62.0 / 2835.0)))
    )
    e = exponential(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0.0, -far, far))
