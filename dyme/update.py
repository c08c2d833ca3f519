"""Update: a plan through the model. Packs each micro-batch, runs it, and gathers the statistics of the live tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dyme.engine import Engine
from dyme.families import Prompt
from dyme.objective import LiveRow, loss_inputs
from dyme.packing import pack
from dyme.plan import Plan


@dataclass(frozen=True)
class Work:
    """What a step trains, the same on all ranks but for `encode`.

    rows, weights, tokens: [R] live rows, their token weight and their token ids. `encode(group)` rebuilds a group's
    prompt on this rank, None where its picture fails here: then its rows weigh nothing.
    """

    plan: Plan
    rows: tuple[LiveRow, ...]
    weights: Sequence[float]
    tokens: Sequence[Sequence[int]]
    encode: Callable[[int], Prompt | None]
    token_shaping: str = "none"  # of memorized tokens, see ModeDecision


@dataclass(frozen=True)
class UpdateStats:
    """Means over the live tokens of all ranks; NaN where there were none. `lost_rows`: rows whose picture failed
    here."""

    applied: bool
    grad_norm: float
    loss: float
    live_tokens: int
    memorized_tokens: int
    lost_rows: int
    memorize_nll: float
    ratio: float
    clipped_low: float
    clipped_high: float
    entropy: float


@dataclass(frozen=True)
class ComponentNorms:
    """Gradient norms of the explored and of the memorized rows of a step, and the cosine between the two gradients."""

    explore: float
    memorize: float
    cosine: float

    def signals(self) -> dict[str, float]:
        return {"grad/explore_norm": self.explore, "grad/memorize_norm": self.memorize, "grad/cosine": self.cosine}


def run_update(engine: Engine, work: Work, lr_factor: float) -> UpdateStats:
    """Trains a plan and takes one optimizer step."""
    sums = _accumulate(engine, work, work.weights)
    result = engine.step(lr_factor)
    loss, live, memorized, nll, ratio, low, high, explored, entropy, lost = engine.all_reduce(sums.tolist())
    return UpdateStats(
        applied=result.applied,
        grad_norm=result.grad_norm,
        loss=loss,
        live_tokens=int(live),
        memorized_tokens=int(memorized),
        lost_rows=int(lost),
        memorize_nll=_mean(nll, memorized),
        ratio=_mean(ratio, explored),
        clipped_low=_mean(low, explored),
        clipped_high=_mean(high, explored),
        entropy=_mean(entropy, explored),
    )


def component_norms(engine: Engine, work: Work) -> ComponentNorms:
    """Two more passes over the plan, one with the weights of explored rows only and one with those of memorized
    rows."""
    gradients = []
    for memorize in (False, True):
        part = [w if row.memorize == memorize else 0.0 for row, w in zip(work.rows, work.weights)]
        _accumulate(engine, work, part)
        gradients.append([g.double().clone() for g in engine.local_gradients()])
        engine.discard()
    explore, memorized = gradients
    dots = [_dot(explore, explore), _dot(memorized, memorized), _dot(explore, memorized)]
    ee, mm, em = engine.all_reduce(dots)
    return ComponentNorms(math.sqrt(ee), math.sqrt(mm), em / math.sqrt(ee * mm) if ee and mm else math.nan)


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def _accumulate(engine: Engine, work: Work, weights: Sequence[float]) -> Tensor:
    """Forward and backward of every micro-batch of this rank; float64 sums of the statistics, [10]."""
    plan, rows, tokens, encode = work.plan, work.rows, work.tokens, work.encode
    sums = torch.zeros(10, dtype=torch.float64)
    for j, items in enumerate(plan.micro_batches[engine.rank]):
        readable = [(item, prompt) for item in items if (prompt := encode(item.group)) is not None]
        sums[9] += sum(len(item.rows) for item in items) - sum(len(item.rows) for item, _ in readable)
        index = [row for item, _ in readable for row in item.rows]
        batch = pack(
            engine.family, [(prompt, [tokens[r] for r in item.rows]) for item, prompt in readable], plan.modules[j]
        )
        inputs = loss_inputs([rows[r] for r in index], [weights[r] for r in index], [len(tokens[r]) for r in index])
        inputs = replace(inputs, token_shaping=work.token_shaping)
        out = engine.forward_backward(batch, inputs, last=j == plan.num_micro_batches - 1)
        memorized, explored = inputs.memorize, ~inputs.memorize
        logprobs = out.logprobs.double().cpu()
        sums[0] += out.loss.detach().double().cpu()
        sums[1] += len(memorized)
        sums[2] += memorized.sum()
        sums[3] -= logprobs[memorized].sum()
        for at, values in ((4, out.ratio), (5, out.clipped_low), (6, out.clipped_high), (8, out.entropy)):
            sums[at] += values.double().cpu()[explored].sum()
        sums[7] += explored.sum()
    return sums


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
