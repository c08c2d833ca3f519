"""Sampler: which records a step takes, and which rows of them belong to which rank. Pure functions, so nothing of it
is saved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from dyme.config import RunConfig
from dyme.methods import memorizes_only


@dataclass(frozen=True)
class StepBatch:
    """The rows of one step (`step`, from 0). Group g is record `records[g]` with `group_size` rows g*K .. g*K + K - 1.

    `starts` has world_size + 1 entries: rank r holds rows starts[r] .. starts[r + 1] - 1. Blocks are contiguous and
    differ by at most one row, so a group may span ranks. The last `extra` groups have no rows: records that are
    memorized besides the step's own.
    """

    records: tuple[int, ...]
    group_size: int
    starts: tuple[int, ...]
    epoch: float
    step: int = 0
    extra: int = 0

    @property
    def num_groups(self) -> int:
        return len(self.records)

    @property
    def num_rows(self) -> int:
        return (self.num_groups - self.extra) * self.group_size

    @property
    def offsets(self) -> list[int]:
        """First row of each group, and the number of rows."""
        return [*range(0, self.num_rows + 1, self.group_size), *[self.num_rows] * self.extra]

    @property
    def counts(self) -> list[int]:
        """Rows per rank."""
        return [b - a for a, b in zip(self.starts, self.starts[1:])]

    def rows(self, rank: int) -> range:
        return range(self.starts[rank], self.starts[rank + 1])

    def group_of(self, row: int) -> int:
        return row // self.group_size

    def groups_of(self, rank: int) -> list[int]:
        """The groups of which a rank holds rows."""
        return list(dict.fromkeys(self.group_of(row) for row in self.rows(rank)))

    def owner(self, group: int) -> int:
        """The rank that holds the group's record: the one with its first row. Groups without rows are split evenly."""
        if (place := group - self.num_groups + self.extra) >= 0:
            return place * (len(self.starts) - 1) // self.extra
        first = group * self.group_size
        return next(r for r in range(len(self.starts) - 1) if self.starts[r] <= first < self.starts[r + 1])

    def owned(self, rank: int) -> list[int]:
        return [g for g in range(self.num_groups) if self.owner(g) == rank]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_records: int) -> tuple[int, ...]:
    """Shuffled order of the records in an epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return tuple(torch.randperm(num_records, generator=generator).tolist())


def step_batch(
    step: int,
    num_records: int,
    prompts_per_step: int,
    group_size: int,
    world_size: int,
    seed: int,
    *,
    shuffle: bool = True,
) -> StepBatch:
    """Rows of step (0-based): every record once per epoch, in an order of the epoch's own or in that of the source."""
    first = step * prompts_per_step

    def record(place: int) -> int:
        epoch, at = divmod(place, num_records)
        return epoch_order(seed, epoch, num_records)[at] if shuffle else at

    records = tuple(record(place) for place in range(first, first + prompts_per_step))
    rows = prompts_per_step * group_size
    starts = tuple(r * rows // world_size for r in range(world_size + 1))
    return StepBatch(records, group_size, starts, (first + prompts_per_step) / num_records, step)


def makes_rollouts(cfg: RunConfig, step: int) -> bool:
    """Not in the SFT steps of a method, see `memorizes_only`."""
    return not memorizes_only(cfg.method, step, cfg.train.max_steps, cfg.train.switch_fraction)


def batch_at(cfg: RunConfig, step: int, num_records: int, world_size: int) -> StepBatch:
    """Rows of a step (0-based) of a run; one a group where it makes no rollouts."""
    size = cfg.rollout.group_size if makes_rollouts(cfg, step) else 1
    prompts, seed = cfg.rollout.prompts_per_step, cfg.run.seed
    return step_batch(step, num_records, prompts, size, world_size, seed, shuffle=cfg.data.shuffle)
