"""Difficulty: explored groups weighed by how hard they are for the model now."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dyme.selectors.base import GroupStats, Mode, ModeDecision, Reason, SelectorKind, StatelessSelector, decide

ALL_WRONG = 0.25
"""Weight of a group without a right answer in the first stage; 0 in the later ones."""


def difficulty_weights(accuracy: Tensor, stage: int) -> Tensor:
    """w(acc) of PCuRL, float64 [G] -> [G], stage 0 (easy), 1 (medium) or 2 (hard). With c(acc) = cos(pi (acc - 1/2)):

    easy    1 where acc <= 1/2, else c(acc); 0.25 where acc = 0
    medium  c(acc); 0 where acc = 0
    hard    c(acc) where acc <= 1/2, else 1; 0 where acc = 0
    """
    # exactly 0 where all are right, so that such a group is skipped: cos(pi / 2) is 6e-17 in float64
    bell = torch.where(accuracy < 1, torch.cos(math.pi * (accuracy - 0.5)), 0.0)
    low, one = accuracy <= 0.5, torch.ones_like(accuracy)
    weight = (torch.where(low, one, bell), bell, torch.where(low, bell, one))[stage]
    return torch.where(accuracy == 0, ALL_WRONG if stage == 0 else 0.0, weight)


def difficulty_weighted(stats: GroupStats, progress: float) -> ModeDecision:
    """PCuRL of VL-Cogito: every group explores with weight `difficulty_weights`; nothing is memorized.

    Left open: when the stages change, which the authors choose by hand with data of their own for each; here every
    stage is a third of the run, on the same data. Their last stage also has a reward on the length, which is a
    reward and not part of this rule.
    """
    stage = min(2, int(3 * progress))
    n = len(stats)
    return decide(
        torch.full((n,), int(Mode.EXPLORE)),
        torch.full((n,), int(Reason.RULE)),
        stats,
        rl_weight=difficulty_weights(stats.accuracy_mean, stage),
    )


SELECTORS = {"difficulty_weighted": SelectorKind(lambda c: StatelessSelector(difficulty_weighted))}
