"""The regime: every number of the suite that is a choice, and the tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.suite.arithmetic import ARITHMETIC
from benchmarks.suite.charts import CHARTS, CHARTS_FULL
from benchmarks.suite.easy_vqa import EASY_VQA
from benchmarks.suite.real import NLVR, PUZZLEVQA
from benchmarks.suite.task import Sizes, Task


@dataclass(frozen=True)
class Regime:
    """Stage 2 sees `items` records of each task, 128 where it is not named: so few that SFT learns them by heart. It
    takes `prompts` a step, K = `group`, for `steps` steps at the learning rate `lr`.

    `noise` is the probability that a low trace holds a wrong reading. A base has BASE_STEPS times `base_share` steps.
    `evals` are made over a run.
    """

    sizes: Sizes
    items: Mapping[str, int] = field(default_factory=lambda: {"easy_vqa": 64})
    prompts: int = 32
    group: int = 8
    steps: int = 120
    lr: float = 1e-3
    warmup: int = 10
    noise: float = 0.3
    base_prompts: int = 64
    base_lr: float = 1e-3
    base_share: float = 1.0
    evals: int = 6

    def items_of(self, task: str) -> int:
        return self.items.get(task, 128)


CPU = Regime(Sizes(validation=192, test=512, ood=256))
GPU_ITEMS, SMOKE_ITEMS = dict.fromkeys(("charts_full", "nlvr", "puzzlevqa"), 512), {"charts": 16, "arithmetic": 16}
GPU = Regime(Sizes(256, 1024, 512), GPU_ITEMS, prompts=64, steps=300, lr=3e-4, base_lr=5e-4, base_share=4.0)
SMOKE = Regime(
    Sizes(8, 16, 8), SMOKE_ITEMS, prompts=4, group=4, steps=3, warmup=1, base_prompts=8, base_share=0.004, evals=2
)

BASE_STEPS = {"charts": 700, "easy_vqa": 900, "arithmetic": 1500, "charts_full": 1500, "nlvr": 100, "puzzlevqa": 100}

CAPACITIES: Mapping[str, Mapping[str, Any]] = {
    "nano": {"hidden_size": 32, "layers": 1, "vision_hidden_size": 32, "vision_layers": 1},
    "small": {"hidden_size": 64, "layers": 3, "vision_hidden_size": 48, "vision_layers": 2},
    "tiny": {"hidden_size": 128, "layers": 4, "vision_hidden_size": 96, "vision_layers": 2},
    "large": {"hidden_size": 640, "layers": 10, "heads": 8, "vision_hidden_size": 384, "vision_layers": 6},
}
"""Models from scratch: on charts 0.05M, 0.24M, 1.1M and 64M parameters."""

TASKS: Mapping[str, Task] = {t.name: t for t in (CHARTS, EASY_VQA, ARITHMETIC, CHARTS_FULL, NLVR, PUZZLEVQA)}
