"""Which implementation of an operation runs."""

from __future__ import annotations

import torch

BACKENDS = ("auto", "triton", "torch")


def resolve_backend(backend: str, operation: str, device: torch.device) -> str:
    """The implementation to run; "auto" takes the fastest one that exists for the operation and the device.

    Raises ValueError for an unknown name and RuntimeError where the one asked for does not exist.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    if backend == "triton":
        raise RuntimeError(
            f"{operation} has no Triton implementation for device {str(device)!r}: use backend='auto' or 'torch'"
        )
    return "torch"
