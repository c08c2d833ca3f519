"""Dynamic length reward: a penalty for wrong completions whose length differs from that of their group's right ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def length_rewards(lengths: Tensor, correct: Tensor, scored: Tensor, offsets: Sequence[int]) -> Tensor:
    """u of every row, float64 [R], in [-1, 0]. With L* the mean length of the group's right rows,

        u = -(1 + cos(pi min(L / L*, 2))) / 2     wrong rows: 0 at L = L*, -1 at L = 0 and from 2 L* on
        u = 0                                     right rows, unscored rows, groups without a right row

    lengths: tokens; correct: s, right above 1/2; both float64 [R]; scored: bool [R]; rows of group g are
    offsets[g]:offsets[g+1]. The rows are those of all ranks, so a group may span ranks.

    Source: the code of VL-Cogito (PCuRL, arXiv 2507.22607), where it weighs 0.5 and applies in the last stage. It also
    has a fixed target (`tar_len` = 750 tokens, at most -0.25) for groups without a right row. That is left out here:
    the weights of its last stage (`difficulty_weighted`) are 0 for such groups, and under `variance` they memorize.
    The length is that of the whole completion, as there.
    """
    right = scored & (correct > 0.5)
    out = torch.zeros(len(lengths), dtype=torch.float64, device=lengths.device)
    for a, b in pairwise(offsets):
        if right[a:b].any():
            share = lengths[a:b] / lengths[a:b][right[a:b]].mean()
            out[a:b] = -(1 + torch.cos(math.pi * share.clamp(max=2))) / 2
    return torch.where(scored & ~right, out, 0.0)


def add_length_reward(
    columns: Mapping[str, Tensor], weight: float, offsets: Sequence[int], *, require_format: bool
) -> dict[str, Tensor]:
    """The gathered columns with `length_reward` (u) and with w u in `reward`; R stays 0 where `require_format` makes it
    so."""
    u = length_rewards(columns["length"], columns["correct"], columns["scored"] > 0.5, offsets)
    counts = columns["format"] > 0.5 if require_format else torch.ones_like(u, dtype=torch.bool)
    return {**columns, "reward": columns["reward"] + weight * torch.where(counts, u, 0.0), "length_reward": u}
