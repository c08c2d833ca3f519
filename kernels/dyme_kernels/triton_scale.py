"""In-place scaling of a finished gradient that costs nothing where the scale is one, and never asks the host."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 8


@triton.jit(do_not_specialize=["n"])
def _scale_kernel(x, factor, n, BLOCK: tl.constexpr):
    f = tl.load(factor).to(tl.float32)
    if f != 1.0:
        offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(x + offsets, mask=offsets < n).to(tl.float32)
        tl.store(x + offsets, (value * f).to(x.dtype.element_ty), mask=offsets < n)


def scale_in_place(x: Tensor, factor: Tensor) -> Tensor:
    """x *= factor, a scalar on x's device. x: contiguous, float32, bfloat16 or float16."""
    n = x.numel()
    if n:
        _scale_kernel[(triton.cdiv(n, BLOCK),)](x, factor, n, BLOCK=BLOCK, num_warps=WARPS)
    return x
