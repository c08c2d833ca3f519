"""Keyed sampling noise: the Gumbel noise of a token is a hash of (seed, step, record, k, position, vocabulary entry).

So the tokens of a row do not depend on ranks, batch split or what was sampled before, and no random state is saved.
Adding Gumbel noise to log-probabilities and taking the arg-max samples from the distribution (Gumbel-max trick).
The hash is the finalizer of SplitMix64 (Steele, Lea, Flood 2014) in wrapping int64 arithmetic, the same on CPU and GPU.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def row_key(seed: int, step: int, record_id: str, k: int) -> int:
    """64-bit key (as signed int) of completion k of a record in a step."""
    digest = hashlib.blake2b(f"{seed}/{step}/{k}/{record_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gumbel(keys: Tensor, position: int | Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, float32 [B, V]. keys: int64 [B], one per row; position: of the token in the completion,
    int64 [B] where rows are at different ones."""
    offset = (position + 1) * _GOLDEN
    row = _mix(keys + (offset if isinstance(offset, Tensor) else _wrap(offset)))
    entries = torch.arange(vocab_size, device=keys.device, dtype=torch.int64)
    bits = _shift(_mix(row[:, None] + entries * _GOLDEN), 12)
    uniform = bits.double().add_(0.5).mul_(2.0**-52)  # exact in float64, so never 0 nor 1
    return uniform.log_().neg_().log_().float().neg_()


def _wrap(x: int) -> int:
    """x modulo 2**64 as a signed integer, as int64 tensors wrap."""
    return (x + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """Of x, which it writes over."""
    x ^= _shift(x, 30)
    x *= _MIX1
    x ^= _shift(x, 27)
    x *= _MIX2
    x ^= _shift(x, 31)
    return x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    shifted = x >> bits
    shifted &= (1 << (64 - bits)) - 1
    return shifted
