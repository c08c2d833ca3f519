"""The row functions of a backend."""

from __future__ import annotations

from torch import Tensor

from dyme_kernels import torch_rows
from dyme_kernels.backends import resolve_backend
from dyme_kernels.rows import RowKernels


def row_kernels(backend: str, operation: str, x: Tensor) -> RowKernels:
    """For an `operation` on tensors like x. Raises as `resolve_backend` does."""
    if resolve_backend(backend, operation, x.device, x.dtype) == "torch":
        return torch_rows
    from dyme_kernels import triton_rows

    return triton_rows
