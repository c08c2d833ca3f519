"""Joint: rules that explore and memorize in every group, with weights that follow the progress of the run or the
entropy of the policy."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from dyme.selectors.base import (
    GroupStats,
    Mode,
    ModeDecision,
    Needs,
    Reason,
    SelectorKind,
    StatelessSelector,
    decide,
)
from dyme.settings.selector import SelectorConfig


def _joint(
    stats: GroupStats, rl_weight: float | Tensor, sft_weight: float | Tensor, token_shaping: str = "none"
) -> ModeDecision:
    """Weights: one for all groups, or float64 [G]."""
    n = len(stats)
    rl, sft = (torch.as_tensor(w, dtype=torch.float64).expand(n).clone() for w in (rl_weight, sft_weight))
    return decide(
        torch.full((n,), int(Mode.JOINT)),
        torch.full((n,), int(Reason.RULE)),
        stats,
        rl_weight=rl,
        sft_weight=sft,
        token_shaping=token_shaping,
    )


def annealed(stats: GroupStats, progress: float) -> ModeDecision:
    """SFT annealing, the paper's ablation (CHANGE 2 of the published code): L = L_RL + w L_SFT with
    w = (1 + cos(pi progress)) / 2, from 1 to 0 over the run.

    The published code gives the reference one of the K rows and so takes that rollout away; here all K stay.
    """
    return _joint(stats, 1.0, (1.0 + math.cos(math.pi * progress)) / 2)


def mu(progress: float, peak: float, valley: float, warmup: float, decay: float) -> float:
    """CHORD's share of the memorized part. With x = progress: peak x / warmup while x < warmup, then
    valley + (peak - valley) (1 + cos(pi (x - warmup) / decay)) / 2 while x < warmup + decay, then valley."""
    if progress < warmup:
        return peak * progress / warmup
    if progress >= warmup + decay:
        return valley
    return valley + (peak - valley) * (1.0 + math.cos(math.pi * (progress - warmup) / decay)) / 2


def scheduled(
    stats: GroupStats,
    progress: float,
    peak: float = 0.9,
    valley: float = 0.05,
    warmup: float = 0.0,
    decay: float = 1.0,
    token_shaping: str = "p(1-p)",
) -> ModeDecision:
    """CHORD (arXiv 2508.11408): L = (1 - mu) L_RL + mu L_SFT with `mu`; each memorized token weighs p (1 - p), p its
    detached probability.

    Steps are fractions of the run here. Left open: the published values of mu go with batches that hold expert and
    rollout prompts apart; here every group trains both.
    """
    share = mu(progress, peak, valley, warmup, decay)
    return _joint(stats, 1.0 - share, share, token_shaping)


def entropy_weighted(stats: GroupStats, progress: float) -> ModeDecision:
    """SRFT (arXiv 2506.19767): L = 0.1 exp(H) L_RL + 0.5 exp(-H) L_SFT, H a detached mean entropy per token in nats. An
    uncertain policy explores more and imitates less.

    H is known before the update here, from the rollout: the mean of -log p over the tokens that the group's rollouts
    drew, which estimates the policy's entropy at the sampling temperature where nothing is cut off (top_p, top_k,
    min_p). Left open: which rows H is of. A re-implementation (HPT's) takes it row by row in the training pass, so
    that of L_SFT is over the reference; here it is one number per group, over its rollouts, for both parts. Nothing
    bounds exp(H): a random model over V tokens has the weight 0.1 V.
    """
    assert stats.entropy is not None, "entropy_weighted needs rollouts that tell their log-probabilities"
    return _joint(stats, 0.1 * torch.exp(stats.entropy), 0.5 * torch.exp(-stats.entropy))


def _scheduled(c: SelectorConfig) -> StatelessSelector:
    return StatelessSelector(
        partial(
            scheduled,
            peak=c.peak,
            valley=c.valley,
            warmup=c.warmup,
            decay=c.decay,
            token_shaping=c.token_shaping,
        )
    )


SELECTORS = {
    "annealed": SelectorKind(lambda c: StatelessSelector(annealed)),
    "scheduled": SelectorKind(_scheduled),
    "entropy_weighted": SelectorKind(lambda c: StatelessSelector(entropy_weighted), Needs(logprobs=True)),
}
