"""Completions from a model in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dyme.families import Family
from dyme.rollout.engine import FixedWeights
from dyme.rollout.registry import open_engine
from dyme.rollout.types import Finished, Rollout, RolloutRequest, Sampling, ignore


def generate(
    family: Family,
    model: nn.Module,
    requests: Sequence[RolloutRequest],
    sampling: Sampling,
    finished: Finished = ignore,
    engine: str = "auto",
) -> list[Rollout]:
    """What an engine that was just started makes of the requests."""
    return open_engine(engine, family, FixedWeights(model)).generate(requests, sampling, finished)
