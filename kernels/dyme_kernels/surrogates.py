"""The loss of a token as a function of its log-probability and entropy: the one place where surrogates are written.

Everything is a vector over tokens. The derivatives (c = dL/dlogp, e = dL/dH, L the weighted sum) come from autograd
over these vectors; the vocabulary-wide part of the gradient is the same for all of them: reference.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dyme_kernels.spec import LossSpec
from dyme_kernels.tokens import TokenBatch

# exp(60) is finite in float32. Past it a ratio means a broken rollout, and inf * 0 would turn the whole loss into NaN.
MAX_LOG_RATIO = 60.0


@dataclass(frozen=True)
class TokenStats:
    """ratio, clipped_low, clipped_high, kl: [n], detached, as PolicyLossOutput describes them."""

    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Coefficients:
    """What the vocabulary-wide part needs of the tokens, all [n] and detached.

    losses: weights * token loss; logprob: dL/dlogp; entropy: dL/dH, None without an entropy bonus. The derivatives are
    None where no gradient is wanted.
    """

    losses: Tensor
    logprob: Tensor | None
    entropy: Tensor | None
    stats: TokenStats


def token_losses(logprobs: Tensor, entropy: Tensor, tokens: TokenBatch, spec: LossSpec) -> tuple[Tensor, TokenStats]:
    """logprobs, entropy [n] -> losses [n] (differentiable, not weighted yet) and their statistics.

    Formulas: LossSpec. For gspo with segments the vectors must hold whole rows.
    """
    memorize = tokens.memorize
    old = _explored(tokens.old_logprobs, logprobs.detach(), memorize)
    log_ratio = logprobs - (logprobs.detach() if old is None else old)
    if spec.surrogate == "gspo" and tokens.segments is not None:
        log_ratio = _row_mean(log_ratio, tokens.segments, memorize)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()

    losses, low, high = _surrogate(ratio, logprobs, tokens.advantages, spec)
    importance = _explored(tokens.importance, torch.ones_like(logprobs), memorize)
    if importance is not None:
        losses = losses * importance
    ref = _explored(tokens.ref_logprobs, logprobs.detach(), memorize)
    kl = torch.zeros_like(logprobs)
    if ref is not None:
        distance = ref - logprobs
        kl = distance.clamp(max=MAX_LOG_RATIO).exp() - distance - 1.0
    if spec.beta != 0.0:
        losses = losses + spec.beta * kl
    if spec.entropy_coef != 0.0:
        losses = losses - spec.entropy_coef * entropy

    if memorize is not None:
        likelihood = -tokens.advantages * logprobs
        if spec.token_shaping == "p(1-p)":
            p = logprobs.detach().exp()
            likelihood = likelihood * (p * (1.0 - p))
        losses = torch.where(memorize, likelihood, losses)
        ratio = ratio.masked_fill(memorize, 1.0)
        low, high = low & ~memorize, high & ~memorize
    dtype = logprobs.dtype
    return losses, TokenStats(ratio.detach(), low.to(dtype), high.to(dtype), kl.detach())


def _surrogate(ratio: Tensor, logprobs: Tensor, advantages: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor, Tensor]:
    never = torch.zeros_like(ratio, dtype=torch.bool)
    if spec.surrogate == "cispo":
        capped = ratio.detach().clamp(max=spec.cispo_cap)
        return -capped * advantages * logprobs, never, (ratio > spec.cispo_cap) & (advantages > 0)
    if spec.surrogate == "sapo":
        positive, negative = torch.full_like(ratio, spec.sapo_tau_pos), torch.full_like(ratio, spec.sapo_tau_neg)
        tau = torch.where(advantages > 0, positive, negative)
        return -(4.0 / tau) * torch.sigmoid(tau * (ratio - 1.0)) * advantages, never, never
    lower, upper = 1.0 - spec.epsilon_low, 1.0 + spec.epsilon_high
    bounded = ratio if spec.delta is None else ratio.clamp(max=spec.delta)
    losses = -torch.minimum(bounded * advantages, ratio.clamp(lower, upper) * advantages)
    return losses, (ratio < lower) & (advantages < 0), (ratio > upper) & (advantages > 0)


def _explored(values: Tensor | None, neutral: Tensor, memorize: Tensor | None) -> Tensor | None:
    """Replace the entries of memorized tokens: what the caller left there may be NaN, and a NaN in the branch that
    torch.where drops still reaches the gradient."""
    if values is None or memorize is None:
        return values
    return torch.where(memorize, neutral, values)


def _row_mean(values: Tensor, segments: Tensor, memorize: Tensor | None) -> Tensor:
    """Each token gets the mean of its row over explored tokens. `index_put` with accumulation is deterministic on
    every device, `index_add` is not."""
    counted = torch.ones_like(values) if memorize is None else (~memorize).to(values.dtype)
    zeros = torch.zeros_like(values)
    total = zeros.index_put((segments,), values * counted, accumulate=True)
    count = zeros.index_put((segments,), counted, accumulate=True).clamp(min=1.0)
    return (total / count)[segments]


def coefficients(logprobs: Tensor, entropy: Tensor, tokens: TokenBatch, spec: LossSpec, grad: bool) -> Coefficients:
    """Weighted losses of detached logprobs [n] and entropy [n], with their derivatives where `grad`."""
    if not grad:
        losses, stats = token_losses(logprobs, entropy, tokens, spec)
        return Coefficients(tokens.weights * losses, None, None, stats)
    bonus = spec.entropy_coef != 0.0
    with torch.enable_grad():
        x = logprobs.detach().requires_grad_()
        h = entropy.detach().requires_grad_(bonus)
        losses, stats = token_losses(x, h, tokens, spec)
        weighted = tokens.weights * losses
        inputs = (x, h) if bonus else (x,)
        grads = torch.autograd.grad(weighted.sum(), inputs)
    return Coefficients(weighted.detach(), grads[0], grads[1] if bonus else None, stats)
