"""Columns: the numbers of a step's rollouts by name, built where the rollouts are and read on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dyme.rewards.compose import Scores, UserScores
from dyme.rollout.types import Rollout


@dataclass(frozen=True)
class RolloutColumns:
    """The R rollouts of a step on all ranks, in row order. `values`: float64 [R] by name, see `rollout_columns`;
    `kinds`: of the record of each row. Empty in a step without rollouts."""

    values: Mapping[str, Tensor] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __bool__(self) -> bool:
        return bool(self.values)

    def on_host(self) -> RolloutColumns:
        return RolloutColumns({name: column.cpu() for name, column in self.values.items()}, self.kinds)

    @property
    def any_failed(self) -> bool:
        """Whether a row is unscored, or a user reward failed for one."""
        failed = (column for name, column in self.values.items() if name.startswith("user_failed/"))
        return bool((self["scored"] < 0.5).any()) or any(bool((column > 0.5).any()) for column in failed)


def rollout_columns(
    rollouts: Sequence[Rollout], scores: Scores, user: UserScores, titles: Sequence[str]
) -> dict[str, Tensor]:
    """The columns of n rollouts, float64 [n]; `titles` name the user rewards. A number more is a line here.

    The first six are those of `Scores`, `length` is in tokens. `entropy` is the mean of -logp over the tokens, NaN
    where the engine gives no log-probabilities; the mean over draws estimates the entropy of the policy at the sampling
    temperature. A `user/` column is NaN where the reward does not apply or failed.
    """
    columns = {
        "format": scores.format,
        "thinking": scores.thinking,
        "accuracy": scores.accuracy,
        "reward": scores.reward,
        "correct": scores.correct,
        "scored": scores.scored,
        "truncated": [r.truncated for r in rollouts],
        "length": [len(r.tokens) for r in rollouts],
        "stopped": [not r.truncated for r in rollouts],
        "entropy": [-sum(r.logprobs) / len(r.logprobs) if r.logprobs else math.nan for r in rollouts],
        **{f"user/{title}": user.values[:, j] for j, title in enumerate(titles)},
        **{f"user_failed/{title}": user.failed[:, j] for j, title in enumerate(titles)},
    }
    return {name: torch.as_tensor(values, dtype=torch.float64) for name, values in columns.items()}


def place_rows(columns: Mapping[str, Tensor], rows: Sequence[int], count: int) -> dict[str, Tensor]:
    """Columns of `rows` as columns of `count` rows. The others have no completion: 0, and NaN for user rewards."""
    index, out = torch.tensor(rows, dtype=torch.int64), {}
    for name, values in columns.items():
        empty = math.nan if name.startswith("user/") else 0.0
        out[name] = torch.full((count,), empty, dtype=torch.float64).index_copy(0, index, values)
    return out


def gather_columns(
    gather_rows: Callable[[Tensor, Sequence[int]], Tensor], columns: Mapping[str, Any], counts: Sequence[int]
) -> dict[str, Tensor]:
    """Columns of all ranks through `TrainEngine.gather_rows`, float64 [sum(counts)] on its device. A rank with n rows
    gives n numbers a column; all ranks give the same names in the same order."""
    local = [torch.as_tensor(values, dtype=torch.float64) for values in columns.values()]
    table = gather_rows(torch.stack(local, dim=1), counts)
    return dict(zip(columns, table.unbind(1), strict=True))
