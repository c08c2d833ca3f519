"""The vocabulary-wide half of every loss, in plain PyTorch: one pass for statistics, one for the gradient.

With z the logits after scale, cap and temperature, p = softmax(z), H its entropy, c = dL/dlogp_y and e = dL/dH:

    dL/dz = c (onehot(y) - p) - e p (log p + H)
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyme_kernels.rows import LOWEST, Head, RowLosses, RowStats, losses_in_two_steps, row_blocks
from dyme_kernels.spec import LossSpec
from dyme_kernels.tokens import TokenBatch, compute_dtype


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
    for block in row_blocks(count, logits.shape[1], dtype):
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
    for block in row_blocks(targets.shape[0], logits.shape[1], compute_dtype(logits.dtype)):
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
    return losses_in_two_steps(row_statistics, row_gradient, logits, out, tokens, spec, head, rows)[0]
