"""Tiny runs: their configuration, and comparisons of what two of them leave."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dyme.metrics.keys import KEYS
from tests.helpers.tiny import TINY


def write_config(folder: Path, **changes: object) -> Path:
    """A few seconds of DyME on a tiny model. The group size makes groups span ranks."""
    tree: dict = {
        "method": "dyme",
        "model": {"from_scratch": TINY},
        "data": {
            "train": {"source": "charts", "count": 40, "trace": "low"},
            "eval": {"source": "charts", "count": 8, "split": "test"},
        },
        "prompt": {"template": "{question}"},
        "rollout": {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 6},
        "optim": {"lr": 1e-3, "eps": 1e-5, "warmup_steps": 1, "schedule": "cosine", "weight_decay": 0.1},
        "train": {"max_steps": 3, "token_budget": 200},
        "run": {"samples": 3, "tensorboard": False, "report": False},
    }
    for key, value in changes.items():
        node = tree
        *parents, leaf = key.split("__")
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def undeclared(keys: Iterable[str]) -> list[str]:
    """Those of `keys` that no entry of `dyme.metrics.keys` matches, sorted."""
    return sorted(key for key in set(keys) if not any(entry.matches(key) for entry in KEYS))


def lines(run: Path) -> list[dict]:
    """What a run logged; every key is one of `dyme.metrics.keys`."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not (strange := undeclared(key for line in found for key in line)), strange
    return found


def same(a: list[dict], b: list[dict], *, rel: float = 0.0) -> None:
    """Equal but for times."""
    timing = ("time", "tokens_per_s")
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            if not key.startswith(timing):
                expected = pytest.approx(y[key], rel=rel, abs=rel) if rel and y[key] is not None else y[key]
                assert x[key] == expected, f"step {x['step']}: {key}"


def same_weights(a: Path, b: Path, atol: float = 0.0) -> None:
    left, right = (load_file(run / "export" / "model.safetensors") for run in (a, b))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.allclose(left[name], right[name], rtol=0, atol=atol), name
