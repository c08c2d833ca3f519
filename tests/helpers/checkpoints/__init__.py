"""Random checkpoints of every family: those of benchmarks/checkpoints, and one file here for each other family.

`python -m tests.make_checkpoints DIR` writes them.
"""

from __future__ import annotations

from functools import lru_cache

from benchmarks import checkpoints
from benchmarks.checkpoints import Makers

MODULES = ("causal_lm", "gemma3", "internvl", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")


@lru_cache
def makers(what: str = "CHECKPOINTS") -> Makers:
    """Checkpoint name -> family name and function."""
    return checkpoints.makers(what) | checkpoints.collect(__name__, MODULES, what)
