"""The vocabulary-wide half of every loss, in plain PyTorch: one pass for statistics, one for the gradient.

With z the logits after scale, cap and temperature, p = softmax(z), H its entropy, c = dL/dlogp_y and e = dL/dH:

    dL/dz = c (onehot(y) - p) - e p (log p + H)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyme_kernels.dispatch import resolve_backend
from dyme_kernels.spec import LossSpec
from dyme_kernels.surrogates import Coefficients, TokenStats, coefficients
from dyme_kernels.tokens import TokenBatch, compute_dtype

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


def joined(rows: RowStats, found: Coefficients) -> RowLosses:
    return RowLosses(rows.logprobs, rows.entropy, rows.argmax_match, found.losses, found.stats)


def _blocks(count: int, vocabulary: int, dtype: torch.dtype) -> list[slice]:
    size = max(1, BLOCK_BYTES // (max(1, vocabulary) * dtype.itemsize))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _take(logits: Tensor, rows: Tensor | None, block: slice, head: Head) -> Tensor:
    """One block of logits after scale and cap in the compute dtype, possibly a view of the logits."""
    x = logits[block] if rows is None else logits.index_select(0, rows[block])
    x = x.to(compute_dtype(logits.dtype))
    if head.softcap is not None:
        return torch.tanh(x * (head.scale / head.softcap)) * head.softcap
    return x * head.scale if head.scale != 1.0 else x


def _divided(x: Tensor, inverse: Tensor | float, block: slice) -> Tensor:
    """x / T, for a vector or a block of rows."""
    if isinstance(inverse, Tensor):
        return x * (inverse[block] if x.dim() == 1 else inverse[block].unsqueeze(1))
    return x if inverse == 1.0 else x * inverse


def row_statistics(
    logits: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, rows: Tensor | None = None
) -> RowStats:
    """logits [N,V] (only `rows` [n] of them, if given), targets [n], inverse temperature [n] or a number. A target
    outside 0..V-1 gives a NaN log-probability."""
    dtype, count = compute_dtype(logits.dtype), targets.shape[0]
    logprobs, entropy, match, top, total = (logits.new_empty(count, dtype=dtype) for _ in range(5))
    inside = (targets >= 0) & (targets < logits.shape[1])
    at = targets.masked_fill(~inside, 0)
    for block in _blocks(count, logits.shape[1], dtype):
        x = _take(logits, rows, block, head)
        top[block] = x.amax(1)
        y = _divided(x - top[block].unsqueeze(1), inverse, block)
        e = y.exp()
        total[block] = e.sum(1)
        chosen = y.gather(1, at[block].unsqueeze(1)).squeeze(1)
        logprobs[block] = chosen - total[block].log()
        match[block] = (chosen >= 0).to(dtype)
        entropy[block] = total[block].log() - e.mul_(y.clamp_(min=LOWEST)).sum(1) / total[block]
    return RowStats(logprobs.masked_fill_(~inside, torch.nan), entropy, match, top, total)


def row_gradient(
    logits: Tensor,
    out: Tensor,
    targets: Tensor,
    inverse: Tensor | float,
    head: Head,
    stats: RowStats,
    logprob_grad: Tensor,
    entropy_grad: Tensor | None,
    rows: Tensor | None = None,
) -> None:
    """Write dL/dlogits of the rows into `out` [N,V]; `out` may be `logits`, for a row is read before it is written. A
    row whose target lies outside 0..V-1 gets the part of the distribution alone."""
    inside = (targets >= 0) & (targets < logits.shape[1])
    at = targets.masked_fill(~inside, 0)
    for block in _blocks(targets.shape[0], logits.shape[1], compute_dtype(logits.dtype)):
        c = _divided(logprob_grad[block], inverse, block) * head.scale
        x = _take(logits, rows, block, head)
        y = _divided(x - stats.top[block].unsqueeze(1), inverse, block)
        gradient = y.exp().div_(stats.total[block].unsqueeze(1))
        if entropy_grad is None:
            gradient.mul_(-c.unsqueeze(1))
        else:
            e = _divided(entropy_grad[block], inverse, block) * head.scale
            shift = (stats.entropy[block] - stats.total[block].log()) * e + c
            gradient.mul_(y.clamp_(min=LOWEST).mul_(e.unsqueeze(1)).add_(shift.unsqueeze(1)).neg_())
        gradient.scatter_add_(1, at[block].unsqueeze(1), c.masked_fill(~inside[block], 0.0).unsqueeze(1))
        if head.softcap is not None:
            gradient.mul_(1.0 - (x / head.softcap).square_())
        if rows is None:
            out[block] = gradient.to(out.dtype)
        else:
            out.index_copy_(0, rows[block], gradient.to(out.dtype))


def row_losses(
    logits: Tensor, out: Tensor | None, tokens: TokenBatch, spec: LossSpec, head: Head, rows: Tensor | None = None
) -> RowLosses:
    """Losses of logits [N,V] (only `rows` [n] of them, if given) under the surrogates that need one token alone; writes
    the gradient into `out` [N,V], None for none. `out` may be `logits`."""
    return losses_in_two_steps(row_statistics, row_gradient, logits, out, tokens, spec, head, rows)


def losses_in_two_steps(
    row_statistics: Any, row_gradient: Any, logits: Tensor, out: Tensor | None, tokens: TokenBatch, spec: LossSpec,
    head: Head, rows: Tensor | None = None,
) -> RowLosses:  # fmt: skip
    """`row_losses` from the two functions of a backend."""
    inverse = tokens.inverse_temperature(spec)
    stats = row_statistics(logits, tokens.targets, inverse, head, rows)
    found = coefficients(stats.logprobs, stats.entropy, tokens, spec, out is not None)
    if out is not None:
        assert found.logprob is not None
        row_gradient(logits, out, tokens.targets, inverse, head, stats, found.logprob, found.entropy, rows)
    return joined(stats, found)


def largest_coefficient(c: Tensor, e: Tensor | None) -> Tensor:
    """Scalar 2^k >= |c|, |e| (1 if all are 0), on their device. float16 gradients are stored divided by it: a weight of
    1e-7 would round to zero before a loss scaler could save it."""
    largest = (c.abs() if e is None else torch.maximum(c.abs(), e.abs())).amax()
    _, exponent = torch.frexp(largest)
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), torch.ones_like(largest))


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
    for block in _blocks(gradient.shape[0], gradient[:1].numel(), factor.dtype):
        out[block] = (gradient[block].to(factor.dtype) * factor).to(dtype)
    return out
