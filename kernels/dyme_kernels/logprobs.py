"""Log-probability and entropy of given tokens under given logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyme_kernels.dispatch import row_kernels
from dyme_kernels.rows import Head, RowStats
from dyme_kernels.tokens import check_targets


@dataclass(frozen=True)
class TokenLogprobs:
    """logprobs [N]; entropy [N] in nats, or None where it was not asked for. float32, or float64 for float64 logits."""

    logprobs: Tensor
    entropy: Tensor | None


def token_logprobs(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False, backend: str = "auto"
) -> TokenLogprobs:
    """log softmax(logits / temperature)[target], differentiable with respect to the logits.

    logits [N,V] float64, float32, bfloat16 or float16, left as they are; targets [N] int64 in 0..V-1. Computed in
    float32 at least. Beside the logits it holds blocks of constant size, and in the backward the gradient.

    Raises ValueError for shapes that do not fit, a target outside the vocabulary (CPU only) or temperature <= 0.
    """
    kernels = row_kernels(backend, "token_logprobs", logits)
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [N,V] and targets [N], got {tuple(logits.shape)} and {tuple(targets.shape)}: flatten them"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature={temperature}: allowed are numbers above 0; take the argmax for greedy decoding")
    check_targets(targets, logits.shape[1])
    logprobs, entropies = _TokenLogprobs.apply(logits, targets, 1.0 / temperature, kernels)
    return TokenLogprobs(logprobs, entropies if entropy else None)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, inverse: float, kernels: Any) -> tuple[Tensor, Tensor]:
        stats = kernels.row_statistics(logits, targets, inverse, Head())
        ctx.set_materialize_grads(False)
        ctx.inverse, ctx.kernels = inverse, kernels
        ctx.save_for_backward(
            logits, targets, stats.logprobs, stats.entropy, stats.argmax_match, stats.top, stats.total
        )
        return stats.logprobs, stats.entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprob_grad: Tensor | None, entropy_grad: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        if logprob_grad is None and entropy_grad is None:
            return None, None, None, None
        logits, targets, *rows = ctx.saved_tensors
        stats = RowStats(*rows)
        c = torch.zeros_like(stats.logprobs) if logprob_grad is None else logprob_grad
        gradient = torch.empty_like(logits)
        ctx.kernels.row_gradient(logits, gradient, targets, ctx.inverse, Head(), stats, c, entropy_grad)
        return gradient, None, None, None
