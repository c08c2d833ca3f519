"""Gates: rules that give each group one mode. All look at the group alone, whatever the progress."""

from __future__ import annotations

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


def _three_way(explore: Tensor, memorize: Tensor, stats: GroupStats) -> ModeDecision:
    mode = torch.where(explore, int(Mode.EXPLORE), torch.where(memorize, int(Mode.MEMORIZE), int(Mode.SKIP)))
    reason = torch.where(explore, int(Reason.RANKED), torch.where(memorize, int(Reason.COLLAPSE), int(Reason.MASTERED)))
    return decide(mode, reason, stats)


def memorize_nothing(stats: GroupStats, progress: float) -> ModeDecision:
    """Explore where 0 < n < scored rows, skip the rest with the reason of `any_correct`."""
    none, all_ = stats.num_correct == 0, stats.num_correct == stats.num_scored
    mode = torch.where(~none & ~all_, int(Mode.EXPLORE), int(Mode.SKIP))
    reason = torch.where(none, int(Reason.COLLAPSE), torch.where(all_, int(Reason.MASTERED), int(Reason.RANKED)))
    return decide(mode, reason, stats)


def _fixed(mode: Tensor, stats: GroupStats) -> ModeDecision:
    return decide(mode, torch.full((len(stats),), int(Reason.RULE)), stats)


def variance(stats: GroupStats, progress: float, threshold: float = 0.0) -> ModeDecision:
    """DyME (arXiv 2506.23061): explore where var(s) > threshold; else memorize where mean(s) <= 1/2, skip where
    above."""
    return _three_way(stats.accuracy_var > threshold, stats.accuracy_mean <= 0.5, stats)


def any_correct(stats: GroupStats, progress: float) -> ModeDecision:
    """The published code: explore where 0 < n < scored rows, memorize where n = 0, skip where all are right."""
    none, all_ = stats.num_correct == 0, stats.num_correct == stats.num_scored
    return _three_way(~none & ~all_, none, stats)


def accuracy_gate(stats: GroupStats, progress: float, gamma: float = 0.0) -> ModeDecision:
    """HPT (Unify-Post-Training): memorize where mean(s) <= gamma, else explore; a group that is all right teaches
    nothing and is skipped."""
    memorize = stats.accuracy_mean <= gamma
    return _three_way(~memorize & (stats.num_correct < stats.num_scored), memorize, stats)


def reward_threshold(stats: GroupStats, progress: float, threshold: float = 0.0) -> ModeDecision:
    """The paper's ablation: memorize where the mean reward is at most the threshold, else explore."""
    memorize = stats.reward_mean <= threshold
    return _three_way(~memorize, memorize, stats)


def always_explore(stats: GroupStats, progress: float) -> ModeDecision:
    """GRPO."""
    return _fixed(torch.full((len(stats),), int(Mode.EXPLORE)), stats)


def always_memorize(stats: GroupStats, progress: float) -> ModeDecision:
    """SFT on the demonstration of every group, rollouts only measured."""
    return _fixed(torch.full((len(stats),), int(Mode.MEMORIZE)), stats)


def alternate(stats: GroupStats, progress: float) -> ModeDecision:
    """Data mixing, after "The Synergy Dilemma": groups 0, 2, 4 ... of the step memorize, the others explore, whatever
    their rewards. The study mixes the data of both trainings; the ratio and whether a batch holds both are left open
    here: one half each, in every batch."""
    even = stats.group_id % 2 == 0
    return _fixed(torch.where(even, int(Mode.MEMORIZE), int(Mode.EXPLORE)), stats)


GATED = Needs(trains_solved=False, trains_unsolved=False)

SELECTORS = {
    "variance": SelectorKind(lambda c: StatelessSelector(partial(variance, threshold=c.threshold)), GATED),
    "any_correct": SelectorKind(lambda c: StatelessSelector(any_correct), GATED),
    "accuracy_gate": SelectorKind(lambda c: StatelessSelector(partial(accuracy_gate, gamma=c.gamma)), GATED),
    "reward_threshold": SelectorKind(lambda c: StatelessSelector(partial(reward_threshold, threshold=c.threshold))),
    "always_explore": SelectorKind(lambda c: StatelessSelector(always_explore)),
    "always_memorize": SelectorKind(lambda c: StatelessSelector(always_memorize)),
}
