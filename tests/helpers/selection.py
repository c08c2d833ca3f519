"""Group statistics from rewards written out, for the tests of selectors."""

from __future__ import annotations

import torch

from dyme.selectors.base import GroupStats, Mode, group_stats

NAN = float("nan")
E, M, S = Mode.EXPLORE, Mode.MEMORIZE, Mode.SKIP


def stats(*groups, scored=None, has_demonstration=None, rewards=None) -> GroupStats:
    """Stats of groups given as lists of s; NaN is an unscored row."""
    flat = torch.tensor([s for g in groups for s in g], dtype=torch.float64)
    offsets = torch.tensor([0, *torch.tensor([len(g) for g in groups]).cumsum(0).tolist()])
    scored = ~flat.isnan() if scored is None else scored
    reference = (
        torch.ones(len(groups), dtype=torch.bool) if has_demonstration is None else torch.tensor(has_demonstration)
    )
    reward = flat if rewards is None else torch.tensor([r for g in rewards for r in g], dtype=torch.float64)
    return group_stats(reward, flat, torch.ones_like(flat), scored, reference, offsets, "std")
