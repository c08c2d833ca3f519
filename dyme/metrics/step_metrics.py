"""Step metrics: the numbers of one step that go to metrics.jsonl, from gathered rows and decisions. What each means is
declared in keys.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dyme.config import RunConfig
from dyme.metrics.columns import RolloutColumns
from dyme.sampler import StepBatch
from dyme.selectors.base import GroupStats, Mode, ModeDecision

MAX_KINDS = 20
"""Kinds of question in the training records up to which each has metrics of its own."""


def logged_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds of training records that have metrics of their own: none where there are more than `MAX_KINDS`. Records
    without a kind ("") count in the metrics of all records only."""
    found = sorted(set(kinds) - {""})
    return tuple(found) if len(found) <= MAX_KINDS else ()


def step_metrics(
    cfg: RunConfig,
    batch: StepBatch,
    columns: RolloutColumns,
    decision: ModeDecision,
    stats: GroupStats | None,
    *,
    lr: float,
) -> dict[str, float]:
    """Of a step before its update; `stats` is None where it makes no rollouts."""
    out = {"epoch": batch.epoch, "lr": lr, **mode_metrics(decision)}
    if stats is not None:
        out |= rollout_metrics(columns, stats, batch.offsets)
        out |= {f"reward/user/{r.title}_weight": r.weight.at(batch.step) for r in cfg.reward.user}
    return out


def mode_metrics(decision: ModeDecision) -> dict[str, float]:
    return {f"mode/{mode.name.lower()}_ratio": decision.share(mode) for mode in Mode}


def kind_metrics(
    logged: Sequence[str], kinds: Sequence[str], decision: ModeDecision, columns: RolloutColumns
) -> dict[str, float]:
    """Modes, accuracy and truncated rollouts by kind of question. `kinds`: of each group. A kind of which the step has
    no group, or no scored rollout, lacks the key."""
    out: dict[str, float] = {}
    for kind in logged:
        groups = [mode for mode, own in zip(decision.mode.tolist(), kinds, strict=True) if own == kind]
        if groups:
            counts = Counter(groups)
            out |= {f"mode/{kind}/{mode.name.lower()}_ratio": counts[mode] / len(groups) for mode in Mode}
        if columns and kind in columns.kinds:
            mine = torch.tensor([own == kind for own in columns.kinds])
            scored, written = mine & (columns["scored"] > 0.5), mine & (columns["length"] > 0)
            if scored.any():
                out[f"accuracy/{kind}"] = _mean(columns["correct"][scored])
            if written.any():
                out[f"rollout/truncated/{kind}"] = _mean(columns["truncated"][written])
    return out


def rollout_metrics(columns: RolloutColumns, stats: GroupStats, offsets: Sequence[int]) -> dict[str, float]:
    """Rewards, accuracy, lengths and collapse rates of a step. Group rates are over groups with at least two scored
    rows."""
    scored = columns["scored"] > 0.5
    written = columns["length"] > 0  # a row whose prompt could not be encoded has no completion
    out = {
        "accuracy": _mean(columns["correct"][scored]),
        "format_rate": _mean(columns["format"][written]),
        "rollout/length_mean": _mean(columns["length"][written]),
        "rollout/truncated": _mean(columns["truncated"][written]),
        "rollout/eos": _mean(columns["stopped"][written]),
        "rollout/unscored": _mean(1.0 - columns["scored"]),
        "rollout/tokens": float(columns["length"].sum()),
    }
    if not columns["entropy"][written].isnan().any():
        out["rollout/entropy"] = _mean_over_tokens(columns["entropy"][written], columns["length"][written])
    bounds = list(pairwise(offsets))
    for name, column in (("total", "reward"), ("format", "format"), ("thinking", "thinking"), ("accuracy", "accuracy")):
        out |= _spread(name, columns[column], scored, bounds)
    if "length_reward" in columns.values:
        out |= _spread("length", columns["length_reward"], scored, bounds)
    for column in [name for name in columns.values if name.startswith("user/")]:
        out |= _spread(column, columns[column], scored & ~columns[column].isnan(), bounds)
        failed = columns[column.replace("user/", "user_failed/", 1)]
        out[f"reward/{column}_unscored"] = _mean(failed[written])
    known = stats.num_scored > 1
    correct, all_ = stats.num_correct[known], stats.num_scored[known]
    flat = stats.reward_std[known] < 1e-9
    for name, hit in (
        ("all_wrong", correct == 0),
        ("all_right", correct == all_),
        ("zero_std_accuracy", stats.accuracy_var[known] == 0),
        ("zero_std_reward", flat),
        ("shaped_only", (correct == 0) & ~flat),
    ):
        out[f"collapse/{name}"] = _mean(hit.double())
    return out


@dataclass
class MemorizeLog:
    """How often records were memorized, and whether they were solved when they came again."""

    times: dict[str, int] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)

    def metrics(self, ids: Sequence[str], stats: GroupStats | None, decision: ModeDecision) -> dict[str, float]:
        """repeat_count: times this step's memorized records were memorized before (mean). flip_rate: share of the
        records memorized at their last visit that have a right answer now."""
        out = {}
        if stats is not None:
            own = ids[: len(stats)]  # without the records that join the step's groups to be memorized
            again = [int(stats.num_correct[g]) > 0 for g, i in enumerate(own) if i in self.pending]
            out["memorize/flip_rate"] = sum(again) / len(again) if again else math.nan
        memorized = [i for i, mode in zip(ids, decision.mode.tolist()) if mode in (Mode.MEMORIZE, Mode.JOINT)]
        out["memorize/repeat_count"] = (
            sum(self.times.get(i, 0) for i in memorized) / len(memorized) if memorized else math.nan
        )
        for i in memorized:
            self.times[i] = self.times.get(i, 0) + 1
        self.pending = (self.pending - set(ids)) | set(memorized)
        return out

    def state_dict(self) -> dict[str, Any]:
        return {"times": dict(self.times), "pending": sorted(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.times, self.pending = dict(state["times"]), set(state["pending"])


def _spread(name: str, values: Tensor, counts: Tensor, bounds: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Mean of the rows that count, and how much they differ inside and between groups with two of them at least."""
    groups = [g for a, b in bounds if len(g := values[a:b][counts[a:b]]) > 1]
    means = torch.stack([g.mean() for g in groups]) if groups else torch.zeros(0, dtype=torch.float64)
    within = torch.stack([g.std() for g in groups]) if groups else means
    return {
        f"reward/{name}_mean": _mean(values[counts]),
        f"reward/{name}_std_within": _mean(within),
        f"reward/{name}_std_between": float(means.std()) if len(means) > 1 else math.nan,
    }


def group_entropy(columns: RolloutColumns, offsets: Sequence[int]) -> Tensor:
    """Mean of -logp over all tokens of each group, float64 [G]; 0 for groups without completions."""
    out = []
    for a, b in pairwise(offsets):
        written = columns["length"][a:b] > 0
        out.append(_mean_over_tokens(columns["entropy"][a:b][written], columns["length"][a:b][written]))
    return torch.tensor(out, dtype=torch.float64).nan_to_num(0.0)


def _mean_over_tokens(values: Tensor, lengths: Tensor) -> float:
    return float((values * lengths).sum() / lengths.sum()) if len(values) else math.nan


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
