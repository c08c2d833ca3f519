"""The run whose steps are measured: the quickstart's, with a model of 70 thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.tiny import TINY

ROOT = Path(__file__).resolve().parents[3]
PERSISTENT = 1000
"""As in ds_configs/zero3.json with a real model, vectors stay whole on all ranks and matrices are gathered."""


def config(folder: Path, stage: int, prompts: int = 4, group_size: int = 4, **changes: Any) -> dict[str, Any]:
    """A RunConfig as a tree; nothing in the random model's replies is right, so that every group memorizes. Writes its
    DeepSpeed JSON, that of ds_configs with small parameters gathered too. changes: sections to replace."""
    tree = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text(encoding="utf-8"))
    if stage == 3:
        tree["zero_optimization"]["stage3_param_persistence_threshold"] = PERSISTENT
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"zero{stage}.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    return {
        "method": "dyme",
        "model": {"from_scratch": TINY},
        "data": {"train": {"source": "charts", "count": 200, "trace": "low", "charts": ["bar"]}},
        "prompt": {"template": "{question} think first."},
        "rollout": {"prompts_per_step": prompts, "group_size": group_size, "max_new_tokens": 8},
        "optim": {"lr": 1e-3},
        "train": {"max_steps": 100000, "token_budget": 8192},
        "run": {"dir": str(folder / "run"), "tensorboard": False, "report": False, "resume": "auto"},
        "deepspeed": str(file),
        **changes,
    }
