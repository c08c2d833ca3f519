"""Gumbel noise from a hash: the finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def gumbel_noise(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """The standard Gumbel noise of `sample_tokens`, float32 [B,V]. keys, positions: int64 [B]."""
    rows = _mix(keys + (positions + 1) * _signed(GOLDEN))
    entries = torch.arange(vocabulary, device=keys.device, dtype=torch.int64)
    bits = _shift(_mix(rows[:, None] + entries * _signed(GOLDEN)), 12)
    uniform = (bits.double() + 0.5) * 2.0**-52  # exact in float64, so never 0 nor 1
    return -torch.log(-torch.log(uniform)).float()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(MIX1)
    x = (x ^ _shift(x, 27)) * _signed(MIX2)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """An unsigned 64-bit number as int64 tensors wrap it."""
    return x - 2**64 if x >= 2**63 else x
