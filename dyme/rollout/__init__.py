"""Rollouts: completions sampled from a copy of the weights, with noise that is a pure function of its place."""

from dyme.rollout.hf import generate
from dyme.rollout.noise import gumbel, row_key
from dyme.rollout.types import Rollout, RolloutRow, Sampling

__all__ = ["Rollout", "RolloutRow", "Sampling", "generate", "gumbel", "row_key"]
