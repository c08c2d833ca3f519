"""Methods of the suite by name, each as the settings that make it. One that the configuration refuses is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MAIN = ("sft", "grpo", "two_stage", "dyme")
MERGE, BASE = "merge", "base"
MERGED = ("sft", "grpo")
"""Whose ends are merged, half of each."""


def _selected(*names: str) -> dict[str, dict[str, str]]:
    """DyME with other selectors."""
    return {name: {"method": "dyme", "selector.name": name} for name in names}


METHODS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"method": name} for name in MAIN},
    "reward_threshold": {"method": "dyme", "selector.name": "reward_threshold", "selector.threshold": 1.5},
    **_selected("annealed", "buffered", "any_correct", "accuracy_gate", "scheduled"),
    "scheduled_mu": {"method": "dyme", "selector.name": "scheduled", "selector.token_shaping": "none"},
    **_selected("entropy_weighted", "difficulty_weighted"),
    **{name: {"method": name} for name in ("interleaved", "progressive", "mixed")},
    "grpo_kl": {"method": "grpo", "objective.beta": {"start": 0.0, "end": 0.04}},
    "ogm": {"method": "dyme", "optim.modulation": 0.2},
    "length_reward": {
        "method": "dyme",
        "selector.name": "difficulty_weighted",
        "reward.length": {"start": 0.0, "end": 0.5},
    },
    MERGE: {"method": "sft"},
}
SCHEDULES: Mapping[str, Callable[[int], Mapping[str, int]]] = {
    "objective.beta": lambda steps: {"steps": steps},
    "reward.length": lambda steps: {"begin": 2 * steps // 3, "steps": 1},
}
"""When the weights above change, by the steps of a run: that of the KL term over all of it, that of the length in its
last third (VL-Cogito's last stage)."""

OTHERS = tuple(name for name in METHODS if name not in MAIN)

LABELS: Mapping[str, str] = {
    "sft": "SFT",
    "grpo": "GRPO",
    "two_stage": "SFT then GRPO",
    "dyme": "DyME",
    "reward_threshold": "threshold on the reward",
    "annealed": "annealed weights",
    "buffered": "buffer (ReLIFT)",
    "any_correct": "any right (published code)",
    "accuracy_gate": "accuracy gate (HPT)",
    "scheduled": "schedule (CHORD)",
    "scheduled_mu": "schedule without token weights (CHORD-mu)",
    "entropy_weighted": "entropy (SRFT)",
    "difficulty_weighted": "difficulty (PCuRL)",
    "length_reward": "difficulty and length (PCuRL)",
    "interleaved": "interleaved",
    "progressive": "progressive",
    "mixed": "mixed",
    "grpo_kl": "GRPO, scheduled KL",
    "ogm": "DyME with OGM",
    MERGE: "merge of SFT and GRPO",
    BASE: "base, direct answers",
}
