"""Tiny random checkpoints of every family, and configurations with the dimensions of the real models.

`python -m tests.make_checkpoints DIR` writes them. A family's file here holds `CHECKPOINTS` (name -> function that
makes a `Tiny`) and `SHAPES` (name -> function that makes one whose `model` is the real configuration, without weights).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

from tests.tiny_checkpoints.common import Tiny

MODULES = (
    "causal_lm",
    "gemma3",
    "idefics3",
    "internvl",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)


@lru_cache
def makers(what: str = "CHECKPOINTS") -> dict[str, tuple[str, Callable[[], Tiny]]]:
    """Checkpoint name -> family name and function."""
    found = {}
    for module in MODULES:
        held = getattr(importlib.import_module(f"{__name__}.{module}"), what)
        found |= {name: (module, make) for name, make in held.items()}
    return found
