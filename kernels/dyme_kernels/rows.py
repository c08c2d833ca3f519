"""What the row functions of a backend take and return, and the loss as two of them in a row.

A backend is a module (or object) with the three functions of `RowKernels`; torch_rows.py has the definition of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dyme_kernels.spec import LossSpec
from dyme_kernels.surrogates import Coefficients, TokenStats, coefficients
from dyme_kernels.tokens import TokenBatch

# Temporaries are float32 copies of this many bytes, a constant so that results do not depend on free memory.
BLOCK_BYTES = 64 << 20
# exp of it is exactly 0 in float64 too, and unlike -inf it survives a product with 0.
LOWEST = -1.0e4


@dataclass(frozen=True)
class Head:
    """What turns a raw product into logits: logits = softcap tanh(scale x / softcap), softcap None for no cap."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class RowStats:
    """Per row, [n] in the compute dtype: log-probability of the target, entropy of the distribution, argmax_match (1.0
    where no logit exceeds the target's), the largest logit x and the sum of exp((x - top) / T)."""

    logprobs: Tensor
    entropy: Tensor
    argmax_match: Tensor
    top: Tensor
    total: Tensor


@dataclass(frozen=True)
class RowLosses:
    """What `row_losses` gives, [n] each: the first three as in RowStats, weights * token loss, statistics of tokens."""

    logprobs: Tensor
    entropy: Tensor
    argmax_match: Tensor
    losses: Tensor
    tokens: TokenStats

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The statistics in the order of PolicyLossOutput."""
        t = self.tokens
        return (self.logprobs, self.entropy, t.ratio, t.clipped_low, t.clipped_high, t.kl, self.argmax_match)


class RowKernels(Protocol):
    """The vocabulary-wide functions of a backend."""

    def row_statistics(
        self, logits: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, rows: Tensor | None = None
    ) -> RowStats: ...

    def row_gradient(
        self, logits: Tensor, out: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, stats: RowStats,
        logprob_grad: Tensor, entropy_grad: Tensor | None, rows: Tensor | None = None,
    ) -> None: ...  # fmt: skip

    def row_losses(
        self, logits: Tensor, out: Tensor | None, tokens: TokenBatch, spec: LossSpec, head: Head,
        rows: Tensor | None = None,
    ) -> RowLosses: ...  # fmt: skip


def losses_in_two_steps(
    row_statistics: Callable[..., RowStats], row_gradient: Callable[..., None], logits: Tensor, out: Tensor | None,
    tokens: TokenBatch, spec: LossSpec, head: Head, rows: Tensor | None = None, found: Coefficients | None = None,
) -> tuple[RowLosses, Tensor | None]:  # fmt: skip
    """`row_losses` from the two other functions of a backend, which float16 and ratios of whole rows need.

    found: the coefficients, where they are known already. A float16 gradient is stored divided by the scalar that is
    returned beside the losses (None: by nothing).
    """
    inverse = tokens.inverse_temperature(spec)
    stats = row_statistics(logits, tokens.targets, inverse, head, rows)
    if found is None:
        found = coefficients(stats.logprobs, stats.entropy, tokens, spec, out is not None)
    c, e, unit = found.logprob, found.entropy, None
    if out is not None and c is not None:
        if logits.dtype == torch.float16 and c.numel() > 0:
            unit = _largest_coefficient(c, e)
            c, e = c / unit, None if e is None else e / unit
        row_gradient(logits, out, tokens.targets, inverse, head, stats, c, e, rows)
    return RowLosses(stats.logprobs, stats.entropy, stats.argmax_match, found.losses, found.stats), unit


def row_blocks(count: int, width: int, dtype: torch.dtype) -> list[slice]:
    """`count` rows of `width` entries in blocks of BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // (max(1, width) * dtype.itemsize))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _largest_coefficient(c: Tensor, e: Tensor | None) -> Tensor:
    """Scalar 2^k >= |c|, |e| (1 if all are 0), on their device. float16 gradients are stored divided by it: a weight of
    1e-7 would round to zero before a loss scaler could save it."""
    largest = (c.abs() if e is None else torch.maximum(c.abs(), e.abs())).amax()
    _, exponent = torch.frexp(largest)
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), torch.ones_like(largest))
