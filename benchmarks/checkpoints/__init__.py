"""Random checkpoints of the models that the benchmarks run: tiny ones, and configurations with the dimensions of
published models. Those of the other families are in tests/helpers/checkpoints.

A family's file holds `CHECKPOINTS` (name -> function that makes a `Tiny`) and `SHAPES` (name -> function that makes one
whose `model` is the published configuration, without weights).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from benchmarks.checkpoints.common import Tiny

Makers = dict[str, tuple[str, Callable[[], Tiny]]]
"""Checkpoint name -> family name and function."""
MODULES = ("idefics3", "llava_onevision")


def collect(package: str, modules: Sequence[str], what: str) -> Makers:
    """The checkpoints of a package's files. what: CHECKPOINTS or SHAPES."""
    held = {module: getattr(importlib.import_module(f"{package}.{module}"), what) for module in modules}
    return {name: (module, make) for module, makes in held.items() for name, make in makes.items()}


def makers(what: str = "CHECKPOINTS") -> Makers:
    return collect(__name__, MODULES, what)
