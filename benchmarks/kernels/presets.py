"""Which cases are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.case import Case
from benchmarks.kernels.timing import Effort

QWEN, SMALL, LARGE, SMOL = (151936, 896), (151936, 2048), (152064, 3584), (49280, 960)


@dataclass(frozen=True)
class Preset:
    """cases in order of importance: a run that ends early has the first ones. memory: those whose peak memory is
    measured too. churn: the case whose length varies in the length test; lengths: how many lengths."""

    cases: tuple[Case, ...]
    memory: tuple[Case, ...]
    churn: tuple[Case, ...]
    lengths: int
    effort: Effort
    small: bool


def full() -> Preset:
    """A star around N = 16384, V = 151936, H = 896 rather than a product of all sweeps, which would take hours."""
    goals = (
        Case("logits_policy", 16384, QWEN[0]),
        Case("linear_policy", 16384, *QWEN),
        Case("linear_policy", 16384, *SMALL),
        Case("linear_ce", 16384, *QWEN),
        Case("linear_policy", 16384, *QWEN, live=0.25),
        Case("linear_ce", 16384, *SMALL),
    )
    live = (
        *(Case("linear_policy", 16384, *s, live=f) for s in (QWEN, SMALL) for f in (0.5, 0.25, 0.0)),
        *(Case("logits_policy", 16384, QWEN[0], live=f) for f in (0.5, 0.25, 0.0)),
    )
    groups = tuple(Case("linear_policy", 16384, *QWEN, group=k) for k in (4, 8, 16))
    shapes = (
        *(Case("linear_policy", n, *s) for s in (QWEN, SMALL, SMOL, LARGE) for n in (600, 4096, 16384)),
        *(Case("linear_ce", n, *QWEN) for n in (600, 4096)),
        *(Case("linear_ce", 16384, *s) for s in (SMOL, LARGE)),
        *(Case("logits_policy", n, v) for v in (QWEN[0], SMOL[0]) for n in (600, 4096, 16384)),
        *(Case("logprobs", n, QWEN[0]) for n in (16384, 4096, 600)),
        *(Case("sample", n, QWEN[0]) for n in (64, 256, 8)),
        Case("sample", 64, SMOL[0]),
        Case("advantages", 4096, group=8, dtype="float32"),
    )
    peaked = (
        *(Case(task, 16384, *QWEN, peaked=True) for task in ("linear_policy", "linear_ce")),
        Case("logits_policy", 16384, QWEN[0], peaked=True),
    )
    cases = tuple(dict.fromkeys((*goals, *groups, *live, *peaked, *shapes)))
    churn = (Case("logits_policy", 4096, SMOL[0]), Case("linear_policy", 4096, *SMOL))
    return Preset(cases, (*goals, *groups), churn, 50, Effort(), small=False)


def tiny() -> Preset:
    """Every task, option and code path in seconds on a CPU. Its times say nothing about speed."""

    def case(task: str, tokens: int = 48, **options: Any) -> Case:
        return Case(task, tokens, 257, 16 if task.startswith("linear") else 0, **{"dtype": "float32", **options})

    cases = (
        *(case("linear_policy", live=f) for f in (1.0, 0.25, 0.0)),
        case("linear_policy", group=2),
        case("linear_ce", peaked=True),
        *(case("logits_policy", live=f) for f in (1.0, 0.5)),
        case("logprobs"),
        case("sample", 8),
        case("linear_policy", dtype="bfloat16"),
        Case("advantages", 32, group=4, dtype="float32"),
    )
    churn = (case("linear_policy", 24),)
    return Preset(cases, cases[:1], churn, 50, Effort(warmup=1, least=3, most=5, seconds=0.02), small=True)


PRESETS = {"tiny": tiny, "full": full}
