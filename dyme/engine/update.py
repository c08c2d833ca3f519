"""Update: a plan through the model. Packs each micro-batch, runs it, and gathers the statistics of the live tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dyme.batching.objective import LossInputs, TrainSequence, loss_inputs
from dyme.batching.packing import PackedBatch, pack
from dyme.batching.plan import Plan
from dyme.engine.gradient_modulation import UNCHANGED, GradientModulation
from dyme.engine.train_engine import TrainEngine
from dyme.families import Prompt
from dyme_kernels import PolicyLossOutput

EXPLORED = ("ratio", "clipped_low", "clipped_high", "entropy", "kl")
"""Statistics of explored tokens: fields of `PolicyLossOutput` and of `UpdateStats`."""


@dataclass(frozen=True)
class TrainBatch:
    """What a step trains, the same on all ranks but for `encode` and `ref_logprobs`.

    sequences, weights, tokens: [R] those that train, their token weight and their token ids. `encode(group)` rebuilds a
    group's prompt on this rank, None where its picture fails here: then its sequences weigh nothing. `ref_logprobs`: of
    each micro-batch of this rank, [N] float32 on the device, see `with_reference_logprobs`.
    """

    plan: Plan
    sequences: tuple[TrainSequence, ...]
    weights: Sequence[float]
    tokens: Sequence[Sequence[int]]
    encode: Callable[[int], Prompt | None]
    token_shaping: str = "none"  # of memorized tokens, see ModeDecision
    ref_logprobs: Sequence[Tensor] | None = None
    kl_share: float = 1.0  # of the step, see `dyme.batching.objective.kl_share`


@dataclass(frozen=True)
class UpdateStats:
    """Means over the live tokens of all ranks and over the epochs that ran; NaN where there were none.

    `applied`: every epoch took its step; if not, `bad_ranks` saw a non-finite value. `lost_rows`: sequences whose
    picture failed here.
    """

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
    kl: float
    bad_ranks: tuple[int, ...] = ()
    modulation: GradientModulation = UNCHANGED  # of the last epoch

    def metrics(self, sequences: Sequence[TrainSequence], *, kl: bool, modulation: bool) -> dict[str, float]:
        """`sequences`: those of the batch. `kl`, `modulation`: whether the run has a KL term, or slows a part down."""
        memorized = sum(each.memorize for each in sequences)
        out = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "skipped_update": float(not self.applied),
            "effective_rows": float(len(sequences)),
            "effective_tokens": float(self.live_tokens),
            "lost_rows": float(self.lost_rows),
            "policy/ratio_mean": self.ratio,
            "policy/clipped_low": self.clipped_low,
            "policy/clipped_high": self.clipped_high,
            "policy/entropy": self.entropy,
        }
        if kl:
            out["policy/kl"] = self.kl
        if modulation:
            out |= {"optim/vision_factor": self.modulation.vision, "optim/language_factor": self.modulation.language}
        if memorized:
            out |= {"memorize/nll": self.memorize_nll, "memorize/ref_len": self.memorized_tokens / memorized}
        return out


@dataclass(frozen=True)
class ComponentNorms:
    """Gradient norms of the completions and of the demonstrations of a step, and the cosine between these gradients."""

    explore: float
    memorize: float
    cosine: float

    def metrics(self) -> dict[str, float]:
        return {"grad/explore_norm": self.explore, "grad/memorize_norm": self.memorize, "grad/cosine": self.cosine}


def with_reference_logprobs(engine: TrainEngine, train_batch: TrainBatch) -> TrainBatch:
    """The same batch with the log-probabilities of the reference policy, for all epochs; as it is where there is
    none."""
    if not engine.has_reference_policy:
        return train_batch
    micro = [
        engine.reference_logprobs(m.batch, m.inputs) for m in _micro_batches(engine, train_batch, train_batch.weights)
    ]
    return replace(train_batch, ref_logprobs=micro)


def run_update(engine: TrainEngine, train_batch: TrainBatch, lr_factor: float, epochs: int = 1) -> UpdateStats:
    """Trains a plan `epochs` times with an optimizer step each. Ratios of later epochs are against the
    log-probabilities of the first. A step that is dropped (a non-finite value on any rank) ends the epochs."""
    sums, norms, applied = dict[str, float](), list[float](), True
    old: list[Tensor] | None = None
    for _ in range(epochs):
        part, logprobs = _accumulate(engine, train_batch, train_batch.weights, old)
        sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
        old = old or logprobs
        result = engine.step(lr_factor)
        norms.append(result.grad_norm)
        applied &= result.applied
        if not applied:
            break
    total = dict(zip(sums, engine.all_reduce(list(sums.values())), strict=True))
    return UpdateStats(
        applied=applied,
        grad_norm=sum(norms) / len(norms),
        loss=total["loss"] / len(norms),
        live_tokens=int(total["tokens"]) // len(norms),
        memorized_tokens=int(total["memorized"]) // len(norms),
        lost_rows=int(total["lost"]) // len(norms),
        memorize_nll=_mean(total["nll"], total["memorized"]),
        bad_ranks=result.bad_ranks,
        modulation=result.modulation,
        **{name: _mean(total[name], total["explored"]) for name in EXPLORED},
    )


def component_norms(engine: TrainEngine, train_batch: TrainBatch) -> ComponentNorms:
    """Two more passes over the plan, one with the weights of completions only and one with those of
    demonstrations."""
    gradients = []
    for memorize in (False, True):
        part = [w if each.memorize == memorize else 0.0 for each, w in zip(train_batch.sequences, train_batch.weights)]
        _accumulate(engine, train_batch, part)
        gradients.append([g.double().clone() for g in engine.local_gradients()])
        engine.discard()
    explore, memorized = gradients
    dots = [_dot(explore, explore), _dot(memorized, memorized), _dot(explore, memorized)]
    ee, mm, em = engine.all_reduce(dots)
    return ComponentNorms(math.sqrt(ee), math.sqrt(mm), em / math.sqrt(ee * mm) if ee and mm else math.nan)


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class _MicroBatch:
    """One micro-batch of this rank. `lengths`: tokens of its sequences; `lost`: those without a readable picture."""

    batch: PackedBatch
    inputs: LossInputs
    lengths: list[int]
    lost: int


def _micro_batches(engine: TrainEngine, train_batch: TrainBatch, weights: Sequence[float]) -> Iterator[_MicroBatch]:
    for items, modules in zip(train_batch.plan.micro_batches[engine.rank], train_batch.plan.modules, strict=True):
        readable = [(item, prompt) for item in items if (prompt := train_batch.encode(item.group)) is not None]
        index = [sequence for item, _ in readable for sequence in item.sequences]
        lengths = [len(train_batch.tokens[r]) for r in index]
        sequences = [(prompt, [train_batch.tokens[r] for r in item.sequences]) for item, prompt in readable]
        batch = pack(engine.family, sequences, modules, joined=train_batch.plan.joined)
        inputs = loss_inputs([train_batch.sequences[r] for r in index], [weights[r] for r in index], lengths)
        lost = sum(len(item.sequences) for item in items) - len(index)
        yield _MicroBatch(
            batch,
            replace(inputs, token_shaping=train_batch.token_shaping, kl_share=train_batch.kl_share),
            lengths,
            lost,
        )


def _accumulate(
    engine: TrainEngine, train_batch: TrainBatch, weights: Sequence[float], old: Sequence[Tensor] | None = None
) -> tuple[dict[str, float], list[Tensor]]:
    """Forward and backward of every micro-batch of this rank. Returns sums over its tokens, by the same names on every
    rank, and the log-probabilities of each micro-batch, [N] on the host."""
    done: list[tuple[int, LossInputs, PolicyLossOutput]] = []
    for j, micro in enumerate(_micro_batches(engine, train_batch, weights)):
        inputs = micro.inputs
        if train_batch.ref_logprobs is not None:
            inputs = replace(inputs, ref_logprobs=train_batch.ref_logprobs[j])
        if old is not None:
            inputs = inputs.off_policy(old[j], micro.lengths)
        out = engine.forward_backward(micro.batch, inputs, last=j == train_batch.plan.num_micro_batches - 1)
        # read after the last one: the host packs the next while the device still works on this one
        done.append((micro.lost, inputs, replace(out, loss=out.loss.detach())))
    sums = dict.fromkeys(("loss", "tokens", "memorized", "explored", "nll", "lost", *EXPLORED), 0.0)
    logprobs = []
    for lost, inputs, out in done:
        memorized, explored = inputs.memorize, ~inputs.memorize
        logprobs.append(out.logprobs.float().cpu())
        sums["loss"] += float(out.loss)
        sums["tokens"] += len(memorized)
        sums["memorized"] += int(memorized.sum())
        sums["explored"] += int(explored.sum())
        sums["nll"] -= float(logprobs[-1][memorized].double().sum())
        sums["lost"] += lost
        for name in EXPLORED:
            sums[name] += float(getattr(out, name).double().cpu()[explored].sum())
    return sums, logprobs


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
