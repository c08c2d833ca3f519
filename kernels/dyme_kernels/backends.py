"""Which implementation of an operation runs."""

from __future__ import annotations

import importlib.util
import os

import torch

BACKENDS = ("auto", "triton", "torch")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def resolve_backend(backend: str, operation: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The implementation to run: "triton" or "torch". "auto" takes Triton on a GPU and PyTorch elsewhere.

    Triton also runs on CPU tensors with TRITON_INTERPRET=1 in the environment, slowly, for tests. float64 is PyTorch's.

    Raises ValueError for an unknown name and RuntimeError where the one asked for cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    if backend == "torch":
        return "torch"
    obstacle = _obstacle(device, dtype)
    if backend == "auto":
        return "triton" if device.type == "cuda" and obstacle is None else "torch"
    if obstacle is not None:
        raise RuntimeError(f"{operation}: backend='triton' {obstacle}: use backend='auto' or 'torch'")
    return "triton"


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"does not run on device {str(device)!r} (on CPU with TRITON_INTERPRET=1 only)"
    if dtype not in TRITON_DTYPES:
        return f"does not compute in {dtype}"
    return None
