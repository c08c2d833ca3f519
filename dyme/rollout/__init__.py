"""Rollouts: completions sampled from a copy of the weights, with noise that is a pure function of its place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dyme.families.base import Family, ModelError
from dyme.rollout import hf, shared_prefix
from dyme.rollout.noise import gumbel, row_key
from dyme.rollout.types import Rollout, RolloutRow, Sampling, sampling_of

__all__ = ["Rollout", "RolloutRow", "Sampling", "generate", "gumbel", "row_key", "sampling_of"]


def generate(family: Family, model: nn.Module, rows: Sequence[RolloutRow], sampling: Sampling) -> list[Rollout]:
    """Completions of `rows`, in their order, through the engine that `sampling.engine` names. `model` is a plain (not
    partitioned) copy of the weights in eval mode. Raises `ModelError` where the family cannot use the engine."""
    if sampling.engine == "shared_prefix" and not family.packs_trees:
        raise ModelError(
            f"rollout.engine=shared_prefix: family '{family.name}' takes no masks of ours: set it to hf or auto"
        )
    shared = family.packs_trees and sampling.engine != "hf"
    return (shared_prefix if shared else hf).generate(family, model, rows, sampling)
