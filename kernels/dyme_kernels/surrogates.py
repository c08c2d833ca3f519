"""The loss of a token as a function of its log-probability and entropy, with its derivatives: the torch implementation.
The Triton implementation is triton_surrogates.py; no other file knows what a surrogate is.

Everything is a vector over tokens. The derivatives c = dL/dlogp and e = dL/dH, L the weighted sum, are written out:
inside an operator of torch.compile there is no autograd. The vocabulary-wide part of the gradient is the same for all
surrogates: torch_rows.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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

    def rows(self, start: int, stop: int) -> TokenStats:
        return TokenStats(*(getattr(self, f.name)[start:stop] for f in fields(self)))


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

    def rows(self, start: int, stop: int) -> Coefficients:
        """Tokens start..stop-1. Views, no copies."""

        def cut(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[start:stop]

        stats = self.stats.rows(start, stop)
        return Coefficients(self.losses[start:stop], cut(self.logprob), cut(self.entropy), stats)


def coefficients(logprobs: Tensor, entropy: Tensor, tokens: TokenBatch, spec: LossSpec, grad: bool) -> Coefficients:
    """Weighted losses of detached logprobs [n] and entropy [n], with their derivatives where `grad`.

    Formulas: LossSpec. For gspo with segments the vectors must hold whole rows.
    """
    memorize, weights = tokens.memorize, tokens.weights
    log_ratio = torch.zeros_like(logprobs) if tokens.old_logprobs is None else logprobs - tokens.old_logprobs
    whole_rows = tokens.needs_whole_rows(spec)
    if whole_rows:
        log_ratio = _row_mean(log_ratio, tokens)
    losses, c, stats = _surrogate(log_ratio, logprobs, tokens.advantages, spec)
    if tokens.importance is not None:
        losses, c = losses * tokens.importance, c * tokens.importance
    losses, c = losses * weights, c * weights
    if whole_rows:  # every token of a row moves its ratio
        c = _row_mean(c, tokens)
    kl = torch.zeros_like(logprobs)
    if tokens.ref_logprobs is not None:
        distance = tokens.ref_logprobs - logprobs
        grown = distance.clamp(max=MAX_LOG_RATIO).exp()
        kl = grown - distance - 1.0
        if spec.beta != 0.0:
            losses = losses + spec.beta * weights * kl
            c = c + spec.beta * weights * (1.0 - grown.masked_fill(distance > MAX_LOG_RATIO, 0.0))
    e = None
    if spec.entropy_coef != 0.0:
        losses = losses - spec.entropy_coef * weights * entropy
        e = -spec.entropy_coef * weights
    ratio, low, high = stats
    if memorize is not None:  # torch.where: what the caller left there for a memorized token may be NaN
        likelihood = weights * tokens.advantages
        if spec.token_shaping == "p(1-p)":
            p = logprobs.exp()
            likelihood = likelihood * (p * (1.0 - p))
        losses, c = torch.where(memorize, -likelihood * logprobs, losses), torch.where(memorize, -likelihood, c)
        e = None if e is None else e.masked_fill(memorize, 0.0)
        ratio, kl = ratio.masked_fill(memorize, 1.0), kl.masked_fill(memorize, 0.0)
        low, high = low & ~memorize, high & ~memorize
    dtype = logprobs.dtype
    found = TokenStats(ratio, low.to(dtype), high.to(dtype), kl)
    return Coefficients(losses, c if grad else None, e if grad else None, found)


def _surrogate(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, spec: LossSpec
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Losses [n], their derivatives by the log-ratio, and (ratio, clipped low, clipped high)."""
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    slope = ratio.masked_fill(log_ratio > MAX_LOG_RATIO, 0.0)
    never = torch.zeros_like(ratio, dtype=torch.bool)
    if spec.surrogate == "cispo":
        c = -ratio.clamp(max=spec.cispo_cap) * advantages
        return c * logprobs, c, (ratio, never, (ratio > spec.cispo_cap) & (advantages > 0))
    if spec.surrogate == "sapo":
        positive, negative = torch.full_like(ratio, spec.sapo_tau_pos), torch.full_like(ratio, spec.sapo_tau_neg)
        tau = torch.where(advantages > 0, positive, negative)
        gate = torch.sigmoid(tau * (ratio - 1.0))
        return -(4.0 / tau) * gate * advantages, -4.0 * gate * (1.0 - gate) * advantages * slope, (ratio, never, never)
    lower, upper = 1.0 - spec.epsilon_low, 1.0 + spec.epsilon_high
    bounded = ratio if spec.delta is None else ratio.clamp(max=spec.delta)
    free, held = bounded * advantages, ratio.clamp(lower, upper) * advantages
    moves_free = advantages if spec.delta is None else advantages.masked_fill(ratio > spec.delta, 0.0)
    moves_held = advantages.masked_fill((ratio < lower) | (ratio > upper), 0.0)
    # where both are equal either side counts half, as in torch.minimum
    chosen = torch.where(free < held, moves_free, torch.where(held < free, moves_held, 0.5 * (moves_free + moves_held)))
    clipped = (ratio < lower) & (advantages < 0), (ratio > upper) & (advantages > 0)
    return -torch.minimum(free, held), -chosen * slope, (ratio, *clipped)


def _row_mean(values: Tensor, tokens: TokenBatch) -> Tensor:
    """Each token gets the mean of its row over explored tokens. `index_put` with accumulation is deterministic on
    every device, `index_add` is not."""
    assert tokens.segments is not None
    if tokens.memorize is None:
        counted, kept = torch.ones_like(values), values
    else:
        counted, kept = (~tokens.memorize).to(values.dtype), values.masked_fill(tokens.memorize, 0.0)
    zeros = torch.zeros_like(values)
    total = zeros.index_put((tokens.segments,), kept, accumulate=True)
    count = zeros.index_put((tokens.segments,), counted, accumulate=True).clamp(min=1.0)
    return (total / count)[tokens.segments]
