"""Loss of tokens whose logits exist already; the gradient takes the place of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyme_kernels.dispatch import row_kernels
from dyme_kernels.rows import Head, RowKernels, losses_in_two_steps
from dyme_kernels.scaling import scale_gradient
from dyme_kernels.spec import LossSpec
from dyme_kernels.tokens import PolicyLossOutput, TokenBatch, compute_dtype, make_batch, spread


def policy_loss(
    logits: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    memorize: Tensor | None = None,
    importance: Tensor | None = None,
    segments: Tensor | None = None,
    live: Tensor | None = None,
    spec: LossSpec = LossSpec(),  # noqa: B008  frozen
    backend: str = "auto",
) -> PolicyLossOutput:
    """sum over tokens of weights * l, with l as `LossSpec` says.

    logits [N,V] as the model returns them (scale and soft-cap done): float64, float32, bfloat16 or float16.
    targets [N] int64; advantages, weights [N].
    old_logprobs [N]: the policy that sampled; None is on-policy: ratio 1, with the gradient of the log-prob.
    ref_logprobs [N]: the reference of the KL term. memorize [N] bool: plain likelihood tokens.
    importance [N]: factor of the surrogate of explored tokens (not of KL or entropy), for rollouts from another engine.
    segments [N] int64: row index of each token, for gspo. Needed with old_logprobs; on-policy it may be None, which is
    the same where advantage, weight and importance are constant within a row.
    live [n] int64, distinct: the tokens that count, all if None. The others may hold anything, NaN included.

    Only logits receive a gradient. It is computed here, in the forward pass, and OVERWRITES THE LOGITS, unless nothing
    needs a gradient, or the logits are a leaf or a view of one (then it is a buffer of its own). So do not read logits
    after the call, and clone them before it if the operation that made them saves its output (tanh, exp, softmax);
    autograd says so if that is forgotten.

    Raises ValueError naming the argument.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected [N,V]: pass logits.flatten(0, -2)")
    size, vocabulary = logits.shape
    kernels = row_kernels(backend, "policy_loss", logits)
    dtype = compute_dtype(logits.dtype)
    vectors = (targets, advantages, weights, old_logprobs, ref_logprobs, memorize, importance, segments)
    tokens = make_batch(size, dtype, vocabulary, vectors, live, spec)
    grad = torch.is_grad_enabled() and logits.requires_grad
    loss, *stats = _PolicyLoss.apply(logits, tokens, live, spec, kernels, grad, grad and _may_overwrite(logits))
    return PolicyLossOutput(loss, *stats)


def _may_overwrite(logits: Tensor) -> bool:
    """A leaf is the caller's own data, and an expanded tensor has fewer elements than its shape says."""
    base = logits if logits._base is None else logits._base
    return not base.is_leaf and 0 not in logits.stride()


class _PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: TokenBatch, live: Tensor | None, spec: LossSpec,
        kernels: RowKernels, grad: bool, overwrite: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        size = logits.shape[0]
        gradient = None
        if grad:
            # detach shares the version counter: an operation that saved these logits will find out.
            gradient = logits.detach() if overwrite else torch.empty_like(logits)
        unit = None
        if tokens.needs_whole_rows(spec) or logits.dtype == torch.float16:
            found, unit = losses_in_two_steps(
                kernels.row_statistics, kernels.row_gradient, logits, gradient, tokens, spec, Head(), live
            )
        else:
            found = kernels.row_losses(logits, gradient, tokens, spec, Head(), live)
        if gradient is not None:
            if live is not None:
                dead = torch.ones(size, dtype=torch.bool, device=logits.device).index_fill_(0, live, False)
                gradient.masked_fill_(dead.unsqueeze(1), 0)
            # save_for_backward frees the buffer after the backward even while the caller keeps the loss.
            ctx.save_for_backward(gradient, unit)
        out = spread(found.columns, live, size)
        ctx.mark_non_differentiable(*out)
        ctx.set_materialize_grads(False)
        return (found.losses.sum(), *out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if loss_grad is None:
            return (None,) * 7
        gradient, unit = ctx.saved_tensors
        return (scale_gradient(gradient, loss_grad if unit is None else unit * loss_grad, gradient.dtype), *(None,) * 6)
