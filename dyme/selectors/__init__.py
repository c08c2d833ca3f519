"""Selectors: how statistics of groups become modes, one family of rules per file.

gates.py: one mode per group. joint.py: both parts in each group, by a schedule or by entropy. difficulty.py: explored
groups weighed by their accuracy. buffered.py: records that wait. replay.py: modes that were recorded. Each rule is a
pure function of gathered float64 numbers (and, buffered, of the steps before), so every rank decides the same. Each
file says in `SELECTORS` how its selectors are made and what they need; `dyme.settings.selector` lists all names.
"""

from __future__ import annotations

from importlib import import_module

from dyme.selectors.base import ModeSelector, Needs, SelectorKind, StatelessSelector
from dyme.selectors.gates import alternate, always_explore
from dyme.settings.selector import SELECTORS, SelectorConfig


def _kind(name: str) -> SelectorKind:
    kind: SelectorKind = import_module(f"dyme.selectors.{SELECTORS[name]}").SELECTORS[name]
    return kind


def make_selector(config: SelectorConfig) -> ModeSelector:
    """The selector a configuration asks for."""
    return _kind(config.name).make(config)


def fixed_selector(method: str) -> ModeSelector:
    """The selector of the steps with rollouts of a method that has no choice: of mixed, every second group
    memorizes."""
    return StatelessSelector(alternate if method == "mixed" else always_explore)


def needs_of(method: str, config: SelectorConfig) -> Needs:
    """What the selector of a run needs; the settings of selectors count in method dyme only."""
    return _kind(config.name).needs if method == "dyme" else Needs()
