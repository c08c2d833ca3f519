"""Selection: what each group of rollouts does in this step, decided from gathered numbers alone.

The rules are in dyme/selectors/. All numbers are float64. `group_stats` reduces the gathered table where it lies;
everything after it runs on the host, from the statistics of one rank (`agree`), so that every rank comes to the same
decision whatever its GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from dyme.settings.errors import ConfigError
from dyme.settings.selector import SelectorConfig
from dyme_kernels import group_advantages


class Mode(IntEnum):
    """What a group trains: nothing, its rollouts, its demonstration, or both."""

    SKIP = 0
    EXPLORE = 1
    MEMORIZE = 2
    JOINT = 3


class Reason(IntEnum):
    """Why a group got its mode (logged)."""

    RANKED = 0  # the group ranks its rollouts
    COLLAPSE = 1  # nobody (or almost nobody) is right
    MASTERED = 2  # everybody (or almost everybody) is right
    UNSCORED = 3  # fewer than two scored rows
    NO_DEMONSTRATION = 4  # would memorize, but has nothing to memorize
    RULE = 5  # a fixed rule, whatever the rewards


@dataclass(frozen=True)
class GroupStats:
    """One row per group, reduced over all ranks. All tensors are [G] on the host, float64 unless said otherwise.

    `accuracy_*` are over s = accuracy * format of the scored rows; `accuracy_var` is the population variance,
    exactly 0 when
    max(s) - min(s) < 1e-9. `reward_std` is unbiased. `advantages` is [R], in row order, 0 for unscored rows.
    """

    group_id: Tensor  # int64
    accuracy_mean: Tensor
    accuracy_var: Tensor
    reward_mean: Tensor
    reward_std: Tensor
    num_scored: Tensor  # int64
    num_correct: Tensor  # int64, scored rows with s > 0.5
    num_valid_format: Tensor  # int64
    has_demonstration: Tensor  # bool
    advantages: Tensor  # [R]
    records: tuple[int, ...] = ()  # number of each group's record in the data
    step: int = 0  # finished steps
    entropy: Tensor | None = None  # mean of -log p over the tokens of the group's rollouts, at the sampling temperature

    def __len__(self) -> int:
        return len(self.group_id)


@dataclass(frozen=True)
class ModeDecision:
    """What each group trains in this step. `mode` and `reason` are int64 [G]; weights are float64 [G], >= 0.

    `token_shaping` names a function of the log-prob that weighs memorized tokens
    (`dyme_kernels.LossSpec.token_shaping`). `extra_records`: numbers of records of earlier steps that are memorized
    too, with weight 1.
    """

    mode: Tensor
    rl_weight: Tensor
    sft_weight: Tensor
    reason: Tensor
    token_shaping: str = "none"
    extra_records: tuple[int, ...] = ()

    def share(self, mode: Mode) -> float:
        return float((self.mode == mode).double().mean()) if len(self.mode) else 0.0


@dataclass(frozen=True)
class Needs:
    """What a selector asks of a step. `logprobs`: of the rollouts (`GroupStats.entropy`). `trains_solved`: whether
    rollouts of a group may train where all are right; `trains_unsolved`: where all are wrong. Where they may not, a
    judge need not score their thinking."""

    logprobs: bool = False
    trains_solved: bool = True
    trains_unsolved: bool = True


class ModeSelector(Protocol):
    """`select` is a pure function of its arguments and of the state that `state_dict` returns."""

    def select(self, stats: GroupStats, progress: float) -> ModeDecision: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class StatelessSelector:
    """A rule of statistics and progress (finished steps / train.max_steps, in [0, 1)); nothing to save."""

    rule: Callable[[GroupStats, float], ModeDecision]

    def select(self, stats: GroupStats, progress: float) -> ModeDecision:
        return self.rule(stats, progress)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ConfigError(
                "selector.name has changed since the checkpoint, which holds what its selector keeps "
                f"({', '.join(state)}): set it back, or start in a new run.dir"
            )


@dataclass(frozen=True)
class SelectorKind:
    """What stands behind a name: how it is made from its settings, and what it needs."""

    make: Callable[[SelectorConfig], ModeSelector]
    needs: Needs = Needs()


def group_stats(
    rewards: Tensor,
    correct: Tensor,
    valid_format: Tensor,
    scored: Tensor,
    has_demonstration: Tensor,
    offsets: Tensor,
    scale: str,
) -> GroupStats:
    """Statistics and advantages of gathered rows.

    rewards, correct (s), valid_format: float64 [R]; scored: bool [R]; all on the device that computes.
    has_demonstration: bool [G]; offsets: int64 [G+1], rows of group g are offsets[g]:offsets[g+1]; both on the host,
    as the result is. `scale` is `std` or `none` (objective.scale).
    """
    offsets = offsets.to(rewards.device)
    out = group_advantages(rewards, offsets, accuracy=correct, scored=scored, scale=scale)
    groups = len(offsets) - 1
    row_group = torch.repeat_interleave(torch.arange(groups, device=rewards.device), offsets.diff())

    def count(rows: Tensor) -> Tensor:
        return torch.zeros_like(out.num_scored).index_add_(0, row_group, (rows & scored).long()).cpu()

    return GroupStats(
        group_id=torch.arange(groups),
        accuracy_mean=out.accuracy_mean.cpu(),
        accuracy_var=out.accuracy_var.cpu(),
        reward_mean=out.mean.cpu(),
        reward_std=out.std.cpu(),
        num_scored=out.num_scored.cpu(),
        num_correct=count(correct > 0.5),
        num_valid_format=count(valid_format > 0.5),
        has_demonstration=has_demonstration,
        advantages=out.advantages.cpu(),
    )


def agree(stats: GroupStats, broadcast: Callable[[Tensor], Tensor]) -> GroupStats:
    """The statistics of one rank on all ranks: GPUs of different kinds may round differently. `broadcast` gives every
    rank that rank's values of a float64 vector, on the host."""
    own = {f.name: getattr(stats, f.name) for f in fields(stats) if isinstance(getattr(stats, f.name), Tensor)}
    flat = broadcast(torch.cat([x.double() for x in own.values()]))
    parts = flat.split([len(x) for x in own.values()])
    return replace(stats, **{name: part.to(own[name].dtype) for name, part in zip(own, parts, strict=True)})


def decide(
    mode: Tensor,
    reason: Tensor,
    stats: GroupStats,
    *,
    rl_weight: Tensor | None = None,
    sft_weight: Tensor | None = None,
    token_shaping: str = "none",
) -> ModeDecision:
    """Applies the rules that hold for every selector: two scored rows to train, a reference to memorize, and no mode
    for a part that weighs 0. Weights are float64 [G], 1 by default."""
    mode, reason = mode.clone(), reason.clone()
    ones = torch.ones(len(stats), dtype=torch.float64)
    rl, sft = (ones.clone() if w is None else w for w in (rl_weight, sft_weight))
    unscored = stats.num_scored < 2
    mode[unscored], reason[unscored] = int(Mode.SKIP), int(Reason.UNSCORED)
    lacking = (mode == Mode.MEMORIZE) & ~stats.has_demonstration
    mode[lacking], reason[lacking] = int(Mode.SKIP), int(Reason.NO_DEMONSTRATION)
    # a row that weighs nothing must not be planned, nor counted in a mean over tokens
    explores = ((mode == Mode.EXPLORE) | (mode == Mode.JOINT)) & (rl > 0)
    memorizes = ((mode == Mode.MEMORIZE) | (mode == Mode.JOINT)) & (sft > 0) & stats.has_demonstration
    mode = explores * int(Mode.EXPLORE) + memorizes * int(Mode.MEMORIZE)
    return ModeDecision(mode=mode, rl_weight=rl, sft_weight=sft, reason=reason, token_shaping=token_shaping)


def with_extra(decision: ModeDecision, readable: Tensor) -> ModeDecision:
    """The decision with its `extra_records` as groups behind the step's own; `readable`: bool [E], of their prompts."""
    extra = memorize_all(readable)
    return replace(
        decision,
        mode=torch.cat([decision.mode, extra.mode]),
        rl_weight=torch.cat([decision.rl_weight, extra.rl_weight]),
        sft_weight=torch.cat([decision.sft_weight, extra.sft_weight]),
        reason=torch.cat([decision.reason, extra.reason]),
    )


def mode_line(decision: ModeDecision, records: Sequence[int], ids: Sequence[str]) -> dict[str, Any]:
    """A decision as JSON, with the number and id of each group's record; the last `extra` groups are its
    `extra_records`."""
    return {
        "record": list(records),
        "id": list(ids),
        "mode": [Mode(mode).name for mode in decision.mode.tolist()],
        "rl_weight": decision.rl_weight.tolist(),
        "sft_weight": decision.sft_weight.tolist(),
        "token_shaping": decision.token_shaping,
        "extra": len(decision.extra_records),
    }


def memorize_all(has_demonstration: Tensor) -> ModeDecision:
    """The decision of a step without rollouts (method sft): every group with a reference memorizes it.
    has_demonstration: bool [G]."""
    mode = torch.where(has_demonstration, int(Mode.MEMORIZE), int(Mode.SKIP))
    reason = torch.where(has_demonstration, int(Reason.RULE), int(Reason.NO_DEMONSTRATION))
    ones = torch.ones(len(mode), dtype=torch.float64)
    return ModeDecision(mode=mode, rl_weight=ones, sft_weight=ones.clone(), reason=reason)
