"""The vocabulary-wide half of every loss, in plain PyTorch: one pass for statistics, one for the gradient.

With z the logits after scale, cap and temperature, p = softmax(z), H its entropy, c = dL/dlogp_y and e = dL/dH:

    dL/dz = c (onehot(y) - p) - e p (log p + H)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dyme_kernels.dispatch import resolve_backend
from dyme_kernels.spec import LossSpec
from dyme_kernels.surrogates import TokenStats, coefficients
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
    """Per row, [n] in the compute dtype: log-probability of the target, entropy of the distribution, and argmax_match
    (1.0 where no logit exceeds the target's). top, total: largest logit and sum of exp((x - top) / T), where a backend
    needs them for its gradient."""

    logprobs: Tensor
    entropy: Tensor
    argmax_match: Tensor
    top: Tensor | None = None
    total: Tensor | None = None


@dataclass(frozen=True)
class RowLosses:
    """What `row_losses` gives, [n] each: statistics of the rows, weights * token loss, statistics of the tokens."""

    rows: RowStats
    losses: Tensor
    tokens: TokenStats


def _blocks(count: int, vocabulary: int, dtype: torch.dtype) -> list[slice]:
    size = max(1, BLOCK_BYTES // (max(1, vocabulary) * dtype.itemsize))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _take(logits: Tensor, rows: Tensor | None, block: slice, head: Head, inverse: Tensor | float) -> Tensor:
    """One block of z in the compute dtype, possibly a view of the logits."""
    z = logits[block] if rows is None else logits.index_select(0, rows[block])
    z = z.to(compute_dtype(logits.dtype))
    if head.softcap is not None:
        z = torch.tanh(z * (head.scale / head.softcap)) * head.softcap
    elif head.scale != 1.0:
        z = z * head.scale
    if isinstance(inverse, Tensor):
        return z * inverse[block].unsqueeze(1)
    return z if inverse == 1.0 else z * inverse


def row_statistics(
    logits: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, rows: Tensor | None = None
) -> RowStats:
    """logits [N,V] (only `rows` [n] of them, if given), targets [n], inverse temperature [n] or a number."""
    dtype, count = compute_dtype(logits.dtype), targets.shape[0]
    logprobs, entropy, match = (logits.new_empty(count, dtype=dtype) for _ in range(3))
    for block in _blocks(count, logits.shape[1], dtype):
        table = torch.log_softmax(_take(logits, rows, block, head, inverse), 1)
        logprobs[block] = table.gather(1, targets[block].unsqueeze(1)).squeeze(1)
        match[block] = (logprobs[block] >= table.amax(1)).to(dtype)
        entropy[block] = table.exp().mul_(table.clamp_(min=LOWEST)).sum(1).neg_()
    return RowStats(logprobs, entropy, match)


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
    """Write dL/dlogits of the rows into `out` [N,V]; `out` may be `logits`, for a row is read before it is written."""
    for block in _blocks(targets.shape[0], logits.shape[1], compute_dtype(logits.dtype)):
        scale = inverse[block] if isinstance(inverse, Tensor) else inverse
        c = logprob_grad[block] * (scale * head.scale)
        z = _take(logits, rows, block, head, inverse)
        if entropy_grad is None:
            gradient = torch.softmax(z, 1).mul_(-c.unsqueeze(1))
        else:
            e = entropy_grad[block] * (scale * head.scale)
            table = torch.log_softmax(z, 1).clamp_(min=LOWEST)
            gradient = table.exp()
            shift = stats.entropy[block] * e + c
            gradient.mul_(table.mul_(e.unsqueeze(1)).add_(shift.unsqueeze(1)).neg_())
        gradient.scatter_add_(1, targets[block].unsqueeze(1), c.unsqueeze(1))
        if head.softcap is not None:
            capped = z / (head.softcap * (scale.unsqueeze(1) if isinstance(scale, Tensor) else scale))
            gradient.mul_(1.0 - capped.square_())
        if rows is None:
            out[block] = gradient.to(out.dtype)
        else:
            out.index_copy_(0, rows[block], gradient.to(out.dtype))


def row_losses(
    logits: Tensor, out: Tensor | None, tokens: TokenBatch, spec: LossSpec, head: Head, rows: Tensor | None = None
) -> RowLosses:
    """Losses of logits [N,V] (only `rows` [n] of them, if given) under the surrogates that need one token alone; writes
    the gradient into `out` [N,V], None for none. `out` may be `logits`."""
    inverse = tokens.inverse_temperature(spec)
    stats = row_statistics(logits, tokens.targets, inverse, head, rows)
    found = coefficients(stats.logprobs, stats.entropy, tokens, spec, out is not None)
    if out is not None:
        assert found.logprob is not None
        row_gradient(logits, out, tokens.targets, inverse, head, stats, found.logprob, found.entropy, rows)
    return RowLosses(stats, found.losses, found.stats)


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
