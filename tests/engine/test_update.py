"""Update on an engine that does no training: what is summed over micro-batches, epochs and ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dyme.batching.objective import LossInputs, TrainSequence
from dyme.batching.packing import PackedBatch
from dyme.batching.plan import Plan, PlannedGroup
from dyme.engine.gradient_modulation import UNCHANGED
from dyme.engine.train_engine import UpdateResult
from dyme.engine.update import TrainBatch, component_norms, run_update, with_reference_logprobs
from dyme.families import Prompt
from dyme_kernels import PolicyLossOutput

NONE = frozenset[str]()
PROMPT = Prompt(torch.tensor([9, 9]))
FAMILY = SimpleNamespace(
    pad_id=0,
    anchors={NONE: PROMPT},
    prompt_positions=lambda prompt: (torch.arange(len(prompt)), len(prompt)),
    image_blocks=lambda prompt: None,
    collate_pixels=lambda prompts: {},
)
EXPLORED = (TrainSequence(0, 0, 1.0, 1.0), TrainSequence(0, 1, -1.0, 1.0))
MEMORIZED = TrainSequence(1, -1, 1.0, 1.0)
BATCH = TrainBatch(
    Plan((((PlannedGroup(0, (0, 1), 6),), (PlannedGroup(1, (2,), 4),)),), (NONE, NONE)),
    (*EXPLORED, MEMORIZED),
    [0.5, 0.25, 0.125],
    [[1, 2, 3], [4], [5, 6]],
    lambda group: PROMPT,
)


class Engine:
    """One of two ranks that do the same. The loss of a micro-batch is the sum of its weights, log-probabilities and
    statistics are multiples of the target ids."""

    family, rank, has_reference_policy = FAMILY, 0, False

    def __init__(self, *results: UpdateResult) -> None:
        self.results = list(results) or [UpdateResult(True, 2.0)]
        self.inputs: list[LossInputs] = []
        self.last: list[bool] = []
        self.factors: list[float] = []
        self.gradient = torch.zeros(3)
        self.discarded = 0

    def forward_backward(self, batch: PackedBatch, inputs: LossInputs, *, last: bool) -> PolicyLossOutput:
        self.inputs.append(inputs)
        self.last.append(last)
        explore, memorize = inputs.weights[~inputs.memorize].sum(), inputs.weights[inputs.memorize].sum()
        self.gradient = self.gradient + torch.stack([explore, memorize, explore + memorize])
        t = batch.targets.float()
        loss = inputs.weights.sum() * (1 + len(self.factors))  # doubled in the second epoch
        return PolicyLossOutput(loss, -t / 8, t * 2, t, t / 4, t / 2, t * 3, t)

    def step(self, factor: float) -> UpdateResult:
        self.factors.append(factor)
        return self.results[min(len(self.factors), len(self.results)) - 1]

    def reference_logprobs(self, batch: PackedBatch, inputs: LossInputs) -> Tensor:
        return -batch.targets.float()

    def all_reduce(self, values: list[float]) -> list[float]:
        return [2 * value for value in values]

    def local_gradients(self) -> list[Tensor]:
        return [self.gradient[:2], self.gradient[2:]]

    def discard(self) -> None:
        self.gradient = torch.zeros(3)
        self.discarded += 1


def test_sums_over_micro_batches_and_ranks():
    engine = Engine()
    stats = run_update(engine, BATCH, 0.5)
    assert engine.last == [False, True] and engine.factors == [0.5]
    assert stats.applied and stats.grad_norm == 2.0 and stats.modulation == UNCHANGED
    assert stats.loss == 2 * (3 * 0.5 + 0.25 + 2 * 0.125)
    assert (stats.live_tokens, stats.memorized_tokens, stats.lost_rows) == (12, 4, 0)
    assert stats.memorize_nll == (5 + 6) / 2 / 8
    assert (stats.ratio, stats.entropy, stats.kl) == (2.5, 5.0, 7.5)  # means over the tokens 1, 2, 3 and 4
    assert (stats.clipped_low, stats.clipped_high) == (0.625, 1.25)
    first, second = engine.inputs
    assert first.weights.tolist() == [0.5, 0.5, 0.5, 0.25] and first.advantages.tolist() == [1, 1, 1, -1]
    assert second.memorize.tolist() == [True, True] and first.old_logprobs is None


def test_later_epochs_are_against_the_first():
    engine = Engine(UpdateResult(True, 2.0), UpdateResult(True, 4.0))
    stats = run_update(engine, BATCH, 1.0, epochs=2)
    assert stats.loss == (4.0 + 8.0) / 2 and stats.grad_norm == 3.0
    assert (stats.live_tokens, stats.memorized_tokens) == (12, 4) and stats.ratio == 2.5
    assert engine.last == [False, True] * 2
    *_, third, fourth = engine.inputs
    assert third.old_logprobs is not None and third.segments is not None and fourth.old_logprobs is not None
    assert third.old_logprobs.tolist() == [-1 / 8, -2 / 8, -3 / 8, -4 / 8]
    assert third.segments.tolist() == [0, 0, 0, 1]
    assert fourth.old_logprobs.tolist() == [-5 / 8, -6 / 8]


@pytest.mark.parametrize(("taken", "steps", "loss"), [(0, 1, 4.0), (1, 2, 6.0)])
def test_a_dropped_step_ends_the_epochs(taken, steps, loss):
    dropped = UpdateResult(False, math.nan, bad_ranks=(1,))
    engine = Engine(*[UpdateResult(True, 2.0)] * taken, dropped)
    stats = run_update(engine, BATCH, 1.0, epochs=3)
    assert not stats.applied and stats.bad_ranks == (1,) and math.isnan(stats.grad_norm)
    assert len(engine.factors) == steps and stats.loss == loss and stats.live_tokens == 12


def test_sequences_without_a_picture_are_lost_and_weigh_nothing():
    engine = Engine()
    stats = run_update(engine, replace(BATCH, encode=lambda group: PROMPT if group else None), 1.0)
    assert stats.lost_rows == 2 * 2 and stats.live_tokens == stats.memorized_tokens == 4
    assert stats.loss == 2 * 2 * 0.125
    assert len(engine.inputs[0].weights) == 0 and engine.last == [False, True]  # an anchor runs in their place
    assert math.isnan(stats.ratio) and stats.memorize_nll == (5 + 6) / 2 / 8


def test_metrics_of_an_update():
    stats = run_update(Engine(), BATCH, 1.0)
    metrics = stats.metrics(BATCH.sequences, kl=False, modulation=False)
    assert metrics["effective_rows"] == 3 and metrics["effective_tokens"] == 12 and metrics["skipped_update"] == 0
    assert metrics["memorize/ref_len"] == 4 and metrics["memorize/nll"] == stats.memorize_nll
    assert "policy/kl" not in metrics and "optim/vision_factor" not in metrics
    more = stats.metrics(EXPLORED, kl=True, modulation=True)
    assert more["policy/kl"] == 7.5 and more["optim/vision_factor"] == 1.0 and "memorize/nll" not in more


def test_norms_of_both_parts_and_the_angle_between_them():
    """Gradients are (1.75, 0, 1.75) for the completions and (0, 0.25, 0.25) for the demonstration, on two ranks."""
    engine = Engine()
    norms = component_norms(engine, BATCH)
    assert norms.explore == pytest.approx(math.sqrt(2 * 2) * 1.75)
    assert norms.memorize == pytest.approx(math.sqrt(2 * 2) * 0.25)
    assert norms.cosine == pytest.approx(0.5)
    assert engine.discarded == 2 and not engine.gradient.any() and not engine.factors
    alone = replace(BATCH, sequences=(*EXPLORED, TrainSequence(1, 2, 1.0, 1.0)))
    norms = component_norms(Engine(), alone)
    assert norms.explore == pytest.approx(4.0) and norms.memorize == 0 and math.isnan(norms.cosine)


def test_the_reference_policy_is_asked_once_for_all_epochs():
    engine = Engine()
    assert with_reference_logprobs(engine, BATCH) is BATCH
    engine.has_reference_policy = True
    asked = with_reference_logprobs(engine, BATCH)
    assert asked.ref_logprobs is not None and [t.tolist() for t in asked.ref_logprobs] == [[-1, -2, -3, -4], [-5, -6]]
    run_update(engine, asked, 1.0, epochs=2)
    given = [inputs.ref_logprobs for inputs in engine.inputs]
    assert [t.tolist() for t in given if t is not None] == [[-1, -2, -3, -4], [-5, -6]] * 2
