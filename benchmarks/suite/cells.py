"""Cell: one run of the grid, and the settings it trains with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.suite.methods import BASE, MERGE, MERGED, METHODS, SCHEDULES
from benchmarks.suite.tasks import BASE_STEPS, CAPACITIES, TASKS, Regime

DONE, FAILED = "cell.json", "failed.json"
MEASURED = 2  # goes up with what is measured of a cell, so that older ones are run again
KEYS = {
    "lr": "optim.lr",
    "K": "rollout.group_size",
    "tau": "selector.threshold",
    "steps": "train.max_steps",
    "norm": "objective.normalization",
    "thinking": "reward.weights.thinking",
    "refiner": "supervision.refiner",
}
"""Changes that are settings of dyme. `items`, `noise` and `flips` (of verdicts) are the suite's own."""
OWN = ("items", "noise", "flips")


@dataclass(frozen=True)
class Cell:
    """A task, a method, a quality of traces and a seed; `changes` are what differs from the regime, by short name."""

    task: str
    method: str
    trace: str = "medium"
    seed: int = 1
    capacity: str = "tiny"
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """Unique in a grid, and the name of its folder: charts-low-dyme-K4-s1."""
        if self.method == BASE:
            return f"{self.task}-base-{self.capacity}"
        words = [f"{key}{value}" for key, value in self.changes]
        capacity = [] if self.capacity in ("tiny", "large", "nano") else [self.capacity]
        return "-".join([self.task, self.trace, self.method, *capacity, *words, f"s{self.seed}"])

    @property
    def needs(self) -> tuple[Cell, ...]:
        """Cells whose exported models this one starts from."""
        if self.method == BASE:
            return ()
        if self.method == MERGE:
            return tuple(self.of(method) for method in MERGED)
        return (Cell(self.task, BASE, capacity=self.capacity),)

    def of(self, method: str) -> Cell:
        """The same cell with another method."""
        return Cell(self.task, method, self.trace, self.seed, self.capacity, self.changes)

    def change(self, name: str, default: Any) -> Any:
        return dict(self.changes).get(name, default)


def settings(cell: Cell, regime: Regime, out: Path, keep: bool = False) -> dict[str, Any]:
    """The configuration of a cell as a tree; files of the task are written below `out`. `keep`: export the model."""
    task, data = TASKS[cell.task], out / "data"
    base = cell.method == BASE
    held_out = task.held_out(data, regime.sizes)
    steps = max(2, int(BASE_STEPS[cell.task] * regime.base_share)) if base else cell.change("steps", regime.steps)
    tree: dict[str, Any] = {
        "method": "sft",
        "model": {"path": str(out / "cells" / cell.needs[0].id / "run" / "export")}
        if not base
        else {"family": task.family, "from_scratch": _scratch(cell, out)},
        "data": {"eval": held_out["validation"].source},
        "prompt": {"template": "{question}", "style": "direct"}
        if base
        else {"template": "{question} think first.", "style": "think"},
        "rollout": {
            "prompts_per_step": regime.base_prompts if base else regime.prompts,
            "group_size": regime.group,
            "max_new_tokens": 24 if base else task.max_new_tokens,
        },
        "optim": {"lr": regime.base_lr if base else regime.lr, "warmup_steps": regime.warmup}
        | {"schedule": "cosine", "min_lr_ratio": 0.1, "betas": [0.9, 0.98]},
        "train": {"max_steps": steps, "token_budget": 8192},
        "evaluate": {"direct_template": "{question}", "direct_max_new_tokens": 24},
        "run": {
            "dir": str(out / "cells" / cell.id / "run"),
            "seed": cell.seed,
            "eval_every": max(1, steps // regime.evals),
            "eval_records": regime.sizes.validation,
            "samples": 0,
            "tensorboard": False,
            "report": False,
            "export": keep,
        },
        "deepspeed": "ds_configs/zero1.json",
    }
    if base:
        tree["data"] |= {"train": task.base(data, steps, regime.base_prompts), "shuffle": False}
        tree["objective"] = {"normalization": "token"}
        return tree
    items, noise = cell.change("items", regime.items_of(cell.task)), cell.change("noise", regime.noise)
    tree["data"]["train"] = task.train(data, items, cell.seed, cell.trace, noise)
    for key, value in METHODS[cell.method].items():
        _set(tree, key, {**value, **SCHEDULES[key](steps)} if key in SCHEDULES else value)
    for name, value in cell.changes:
        if name not in OWN:
            _set(tree, KEYS[name], value)
    return tree


def digest(cell: Cell, regime: Regime, out: Path) -> str:
    """What a result depends on, wherever `out` lies, with what it starts from: a cell with another digest is run
    again."""
    splits = {name: asdict(split) for name, split in TASKS[cell.task].held_out(out / "data", regime.sizes).items()}
    needs = [digest(need, regime, out) for need in cell.needs]
    tree = json.dumps([MEASURED, settings(cell, regime, out), cell.changes, splits, needs], sort_keys=True)
    return hashlib.blake2b(tree.replace(str(out), "").encode(), digest_size=8).hexdigest()


def _scratch(cell: Cell, out: Path) -> Mapping[str, Any]:
    task = TASKS[cell.task]
    return {
        **CAPACITIES[cell.capacity],
        **task.picture,
        "vocab_size": 2048 if cell.capacity == "large" else 512,
        "tokenizer_sources": list(task.tokenizer(out / "data")),
        "tokenizer_texts": [" think first."],
    }


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value
