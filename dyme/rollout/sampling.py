"""Sampler: one token a row from logits, on the device and without a word to the host.

The order is that of transformers: banned tokens, repetition penalty, temperature, top-k, top-p, min-p; then the keyed
noise, whose arg-max is the sample. Both engines go through `restrict`, so they draw from the same distribution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dyme.rollout.noise import gumbel
from dyme.rollout.types import Sampling


def draw(
    logits: Tensor, seen: Tensor | None, keys: Tensor, positions: Tensor, banned: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B] and their log-probabilities float32 [B].

    logits [B, V]; seen: bool [B, V] for the repetition penalty, else None; keys int64 [B]; positions int64 [B], of the
    token in its completion; banned int64 [n].

    The log-probability is that of the policy at the sampling temperature (1 where it is greedy) over the whole
    vocabulary, as training takes it: before bans, penalty and cuts.
    """
    if logits.is_cuda:
        return draw_fused(logits, seen, keys, positions, banned, sampling)
    logits = logits.float()
    scores = restrict(logits, seen, banned, sampling)
    if not sampling.greedy:
        scores = scores + gumbel(keys, positions, scores.shape[1])
    tokens = scores.argmax(-1)
    policy = logits if sampling.greedy or sampling.temperature == 1.0 else logits / sampling.temperature
    return tokens, policy.gather(1, tokens[:, None])[:, 0] - policy.logsumexp(-1)


def draw_fused(
    logits: Tensor,
    seen: Tensor | None,
    keys: Tensor,
    positions: Tensor,
    banned: Tensor,
    sampling: Sampling,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`draw` through `dyme_kernels.sample_tokens`, whose `backend` it is: noise, arg-max and log-probability in one
    read of the logits. Top-k, top-p and min-p are done here before it."""
    from dyme_kernels import sample_tokens  # predicting on a CPU loads no kernels

    cuts = 0 < sampling.top_k < logits.shape[1] or sampling.top_p < 1.0 or sampling.min_p > 0.0
    if cuts and not sampling.greedy:
        scores = restrict(logits, seen, banned, sampling)
        return sample_tokens(logits, keys, positions, temperature=sampling.temperature, scores=scores, backend=backend)
    return sample_tokens(
        logits, keys, positions, temperature=sampling.temperature, banned=banned, seen=seen,
        penalty=sampling.repetition_penalty, backend=backend,
    )  # fmt: skip


def restrict(logits: Tensor, seen: Tensor | None, banned: Tensor, sampling: Sampling) -> Tensor:
    """float32 [B, V]: logits whose softmax is sampled (whose arg-max is taken where it is greedy), -inf for what may
    not be."""
    scores = logits.float().index_fill(1, banned, -torch.inf)
    if seen is not None:
        scores = _penalize(scores, seen, sampling.repetition_penalty)
    if sampling.greedy:
        return scores
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    scores = _top_k(scores, sampling.top_k)
    return _min_p(_top_p(scores, sampling.top_p), sampling.min_p)


def seen_tokens(ids: Tensor, valid: Tensor, vocab_size: int) -> Tensor:
    """bool [B, V]: which tokens a row holds. ids int64 [B, L]; valid bool [B, L], False at padding."""
    seen = torch.zeros(len(ids), vocab_size + 1, dtype=torch.bool, device=ids.device)
    return seen.scatter_(1, ids.masked_fill(~valid, vocab_size), True)[:, :vocab_size]


def _penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Keskar et al. 2019 (CTRL), section 4.1, for scores of both signs."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _top_k(scores: Tensor, k: int) -> Tensor:
    if not 0 < k < scores.shape[1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k).values[:, -1:], -torch.inf)


def _top_p(scores: Tensor, p: float) -> Tensor:
    if p >= 1.0:
        return scores
    ordered, index = scores.sort(descending=True)
    probability = ordered.softmax(-1)
    outside = probability.cumsum(-1) - probability >= p  # the token that crosses p stays in
    return scores.masked_fill(torch.zeros_like(outside).scatter(1, index, outside), -torch.inf)


def _min_p(scores: Tensor, p: float) -> Tensor:
    """Keeps tokens that are at least p times as likely as the likeliest (2407.01082)."""
    if p <= 0.0:
        return scores
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(p), -torch.inf)
