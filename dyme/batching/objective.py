"""Objective: the sequences that train with their advantages, and the global weight of each of their tokens.

L = sum over live tokens of w * l. Counts are over all ranks, so the gradient does not depend on how many ranks or
micro-batches computed it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dyme.batching.packing import mover
from dyme.config import RunConfig
from dyme.selectors.base import Mode, ModeDecision
from dyme_kernels import LossSpec, preset


@dataclass(frozen=True)
class TrainSequence:
    """What trains: a completion (its index in the step) or the demonstration of a group (`completion` is -1).

    `advantage` is A of docs/method.md (1 for demonstrations); `share` is the factor within its group (rl_weight or
    sft_weight). Tokens are known once they are exchanged.
    """

    group: int
    completion: int
    advantage: float
    share: float

    @property
    def memorize(self) -> bool:
        return self.completion < 0


@dataclass(frozen=True)
class TrainSequences:
    """`trained` need a forward pass. `counted` also holds completions whose advantage is exactly 0: they weigh in every
    mean, but their gradient is zero, so they are not run."""

    trained: tuple[TrainSequence, ...]
    counted: tuple[TrainSequence, ...]

    def without(self, lost: Collection[TrainSequence]) -> TrainSequences:
        """The sequences but those `lost`."""
        if not lost:
            return self
        left = (tuple(each for each in of if each not in lost) for of in (self.trained, self.counted))
        return TrainSequences(*left)


def resolve(cfg: RunConfig) -> tuple[LossSpec, str]:
    """The loss of the kernels and the normalization, from `objective.preset` or the single settings."""
    o = cfg.objective
    memorize_temperature = cfg.rollout.temperature if cfg.memorize.temperature == "sampling" else 1.0
    base, normalization = preset(o.preset) if o.preset else (LossSpec(surrogate=o.surrogate), o.normalization)
    fields = dict(
        temperature=cfg.rollout.temperature, memorize_temperature=memorize_temperature, entropy_coef=o.entropy_coef
    )
    for name, value in (("epsilon_low", o.epsilon_low), ("epsilon_high", o.epsilon_high), ("beta", o.beta.peak)):
        if not o.preset or name in o.model_fields_set:  # a preset's own value stands unless it was set
            fields[name] = value
    return LossSpec(**{**base.__dict__, **fields}), normalization


def kl_share(cfg: RunConfig, step: int) -> float:
    """The KL weight of a step as a fraction of the highest one of the run, which is `LossSpec.beta` (see `resolve`): 1
    for a constant weight.

    A KL term that changes over training is GRPO-D's (OThink-MR1): little early, for exploration, more later. Its exact
    formula was not available here; `objective.beta` is a line or half a cosine wave between any two values.
    """
    beta = cfg.objective.beta
    return beta.at(step) / beta.peak if beta.changes and beta.peak else 1.0


def train_sequences(
    decision: ModeDecision, advantages: Tensor, trains: Tensor, offsets: Sequence[int], *, keep_zero: bool = False
) -> TrainSequences:
    """What trains under a decision, in group order, the demonstration after the completions.

    advantages: float64 [R]; trains: bool [R], False for unscored rows and truncated ones under `rollout.truncated:
    mask`. keep_zero: zero-advantage rows also need a forward pass (an entropy bonus gives them a gradient).
    """
    counted = []
    for group, mode in enumerate(decision.mode.tolist()):
        if mode in (Mode.EXPLORE, Mode.JOINT):
            weight = float(decision.rl_weight[group])
            counted += [
                TrainSequence(group, row, float(advantages[row]), weight)
                for row in range(offsets[group], offsets[group + 1])
                if trains[row]
            ]
        if mode in (Mode.MEMORIZE, Mode.JOINT):
            counted.append(TrainSequence(group, -1, 1.0, float(decision.sft_weight[group])))
    trained = tuple(s for s in counted if s.share > 0 and (keep_zero or s.memorize or s.advantage != 0.0))
    return TrainSequences(trained, tuple(counted))


def token_weights(
    sequences: TrainSequences,
    lengths: dict[TrainSequence, int],
    normalization: str,
    *,
    groups: int,
    rows: int,
    max_new_tokens: int,
    memorize_weight: float,
) -> list[float]:
    """The weight w of every token of each sequence that trains, [len(sequences.trained)].

    lengths: tokens of each counted sequence. `groups` = G and `rows` = B = G K of the whole step, dead ones included.
      group     1/G, sequences of a kind averaged, tokens averaged per row (the paper's formula)
      row       1/(B |y|) (the published code: a memorized group weighs 1/K of an explored one)
      token     1 / counted tokens of the step (DAPO)
      component explored tokens / N_explore + memorize_weight * memorized tokens / N_memorize
      constant  1/(B max_new_tokens) (Dr. GRPO)
    """
    tokens = {False: 0, True: 0}
    per_group: dict[tuple[int, bool], int] = {}
    for each in sequences.counted:
        tokens[each.memorize] += lengths[each]
        per_group[each.group, each.memorize] = per_group.get((each.group, each.memorize), 0) + 1
    total = sum(tokens.values())

    def weight(each: TrainSequence) -> float:
        if normalization == "group":
            return 1.0 / (groups * per_group[each.group, each.memorize] * lengths[each])
        if normalization == "row":
            return 1.0 / (rows * lengths[each])
        if normalization == "token":
            return 1.0 / total
        if normalization == "component":
            return (memorize_weight if each.memorize else 1.0) / tokens[each.memorize]
        assert normalization == "constant", normalization
        return 1.0 / (rows * max_new_tokens)

    return [each.share * weight(each) for each in sequences.trained]


@dataclass(frozen=True)
class LossInputs:
    """Per-token inputs of the loss head for one micro-batch, [N] each, aligned with `PackedBatch.targets`.

    old_logprobs, segments: from the second epoch of a rollout on; before, every ratio is 1 whatever row a token is of.
    ref_logprobs: with a reference policy (beta > 0).
    """

    advantages: Tensor  # float32
    weights: Tensor  # float32
    memorize: Tensor  # bool
    token_shaping: str = "none"  # of memorized tokens, see ModeDecision
    kl_share: float = 1.0  # factor of LossSpec.beta, see `kl_share`
    old_logprobs: Tensor | None = None  # float32
    ref_logprobs: Tensor | None = None  # float32
    segments: Tensor | None = None  # int64, index of the token's row in the micro-batch

    def to(self, device: torch.device) -> LossInputs:
        move = mover(device)
        held = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: move(value) for name, value in held.items()})  # type: ignore[arg-type]

    def off_policy(self, old_logprobs: Tensor, lengths: Sequence[int]) -> LossInputs:
        """The same tokens in a later epoch. old_logprobs: [N], of the rollout's first epoch; lengths: of the rows."""
        rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
        return replace(self, old_logprobs=old_logprobs, segments=rows)


def loss_inputs(sequences: Sequence[TrainSequence], weights: Sequence[float], lengths: Sequence[int]) -> LossInputs:
    """Spreads quantities of sequences over their tokens in one micro-batch, in packing order."""
    counts = torch.tensor(lengths, dtype=torch.int64)

    def spread(values: Sequence[float | bool | int], dtype: torch.dtype) -> Tensor:
        return torch.repeat_interleave(torch.tensor(values, dtype=dtype), counts)

    return LossInputs(
        advantages=spread([s.advantage for s in sequences], torch.float32),
        weights=spread(list(weights), torch.float32),
        memorize=spread([s.memorize for s in sequences], torch.bool),
    )
