"""Rollouts: completions sampled from a copy of the weights, with noise that is a pure function of its place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dyme.families.base import Family, ModelError
from dyme.rollout import hf, shared_prefix
from dyme.rollout.noise import gumbel, row_key
from dyme.rollout.types import Finished, Rollout, RolloutRequest, Sampling, ignore, sampling_of

__all__ = ["Rollout", "RolloutRequest", "Sampling", "engine_of", "generate", "gumbel", "row_key", "sampling_of"]


ENGINES = {"hf": hf.generate, "shared_prefix": shared_prefix.generate}


def generate(
    family: Family,
    model: nn.Module,
    rows: Sequence[RolloutRequest],
    sampling: Sampling,
    finished: Finished = ignore,
) -> list[Rollout]:
    """Completions of `rows`, in their order, through the engine that `sampling.engine` names. `model` is a plain (not
    partitioned) copy of the weights in eval mode. `finished` gets the index of each row and its completion as soon as
    the engine knows it, while others still decode. Raises `ModelError` where the family cannot use the engine."""
    return ENGINES[engine_of(family, sampling.engine)](family, model, rows, sampling, finished)


def engine_of(family: Family, engine: str) -> str:
    """hf or shared_prefix, for a value of `rollout.engine`. Raises `ModelError` where the family cannot use it."""
    if engine == "shared_prefix" and not family.packs_trees:
        raise ModelError(
            f"rollout.engine=shared_prefix: family '{family.name}' takes no masks of ours: set it to hf or auto"
        )
    return "shared_prefix" if family.packs_trees and engine != "hf" else "hf"
