"""Ranks as threads of one process: the collectives of `TrainEngine`, without a process group."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class FakeEngine:
    """One of `world_size` ranks. What its stages ask of the model is given by `attributes`."""

    def __init__(self, rank: int, slots: list[Any], barrier: Barrier, attributes: dict[str, Any]) -> None:
        self.rank, self.world_size = rank, len(slots)
        self._slots, self._barrier = slots, barrier
        vars(self).update(attributes)

    def gather_json(self, value: Any) -> list[Any]:
        return self._gather(json.loads(json.dumps(value)))  # no rank sees what another one does to its own

    def _gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait(10)
        gathered = list(self._slots)
        self._barrier.wait(10)
        return gathered

    def gather_rows(self, local: Tensor, counts: Sequence[int]) -> Tensor:
        assert local.dtype == torch.float64 and len(local) == counts[self.rank]
        return torch.cat(self._gather(local))

    def broadcast(self, values: Tensor) -> Tensor:
        return self._gather(values)[0].clone()

    def gather_tokens(self, local: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        return self.gather_json([list(tokens) for tokens in local])


def on_ranks(world_size: int, stage: Callable[[FakeEngine], T], **attributes: Any) -> list[T]:
    """What `stage` returns on every rank; all of them run at the same time."""
    slots, barrier = [None] * world_size, Barrier(world_size)
    engines = [FakeEngine(rank, slots, barrier, attributes) for rank in range(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(stage, engines))
