"""The backward of every loss: a finished gradient times a scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from dyme_kernels.backends import resolve_backend
from dyme_kernels.rows import row_blocks


def scale_gradient(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor in `dtype`, in place when the graph is about to be freed (a vocabulary-wide copy would double
    the peak), never when it is kept: a second backward needs the unscaled values. Where it is in place and the factor
    one, nothing is read or written. No host synchronisation."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    reuse = gradient.dtype == dtype and kept is not None and not kept()
    if reuse and gradient.device.type == "cpu" and float(factor) == 1.0:
        return gradient
    if reuse and gradient.is_contiguous() and resolve_backend("auto", "scaling", gradient.device, dtype) == "triton":
        from dyme_kernels.triton_scale import scale_in_place

        return scale_in_place(gradient, factor)
    if gradient.dtype == factor.dtype == dtype:
        return gradient.mul_(factor) if reuse else gradient * factor
    out = gradient if reuse else torch.empty_like(gradient, dtype=dtype)
    # A product in bfloat16 would round the factor first and shift every gradient by the same 0.2 %.
    for block in row_blocks(gradient.shape[0], gradient[:1].numel(), factor.dtype):
        out[block] = (gradient[block].to(factor.dtype) * factor).to(dtype)
    return out
