"""Finds and starts the rollout engine that `rollout.engine` names."""

from __future__ import annotations

from importlib import import_module

from dyme.families.base import Family, ModelError
from dyme.rollout.engine import RolloutEngine, Weights
from dyme.settings.engines import ENGINES


def engine_class(name: str, family: Family) -> type[RolloutEngine]:
    """The class for a value of `rollout.engine`. Raises `ModelError` where it cannot serve the family."""
    if name == "auto":
        return next(found for found in map(_load, ENGINES.values()) if not found.obstacle(family))
    found = _load(ENGINES[name])
    if why := found.obstacle(family):
        raise ModelError(f"rollout.engine={name}: {why}")
    return found


def open_engine(name: str, family: Family, weights: Weights) -> RolloutEngine:
    """Starts the engine for a value of `rollout.engine`. Raises `ModelError` where it cannot serve the family."""
    return engine_class(name, family)(family, weights)


def _load(path: str) -> type[RolloutEngine]:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
