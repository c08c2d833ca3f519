"""The losses and gradients of TRL: its own `_compute_loss` runs beside ours on the same logits.

The trainer object is bare, without model or data; TRL's functions give it the log-probabilities of our logits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dyme_kernels import LossSpec, linear_policy_loss, policy_loss, preset
from tests.helpers.peer_batch import BATCH, LENGTH, MAX_NEW_TOKENS, VOCABULARY, Batch, distance, make_batch

pytest.importorskip("trl")

# Our name -> TRL's loss_type and importance_sampling_level. Sequence level is gspo, under any of these normalizations.
NAMES = {
    **{name: (name, "token") for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")},
    "gspo": ("grpo", "sequence"),
    **{f"gspo {name}": (name, "sequence") for name in ("bnpo", "dr_grpo", "dapo")},
}
BACKENDS = (("torch", torch.float64), ("torch", torch.float32), ("triton", torch.float32))
# Both sides round in float32: a log-probability near -5 is off by 5e-7, and so is everything that follows from it.
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-6}
EVERYTHING = LossSpec(epsilon_low=0.15, epsilon_high=0.3, delta=1.5, beta=0.07, temperature=0.7, cispo_cap=1.2,
                      sapo_tau_pos=1.5, sapo_tau_neg=2.0)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the trainer is given beside the batch."""

    on_policy: bool = False
    importance: bool = False


def ours(name: str, base: LossSpec | None = None) -> tuple[LossSpec, str]:
    """The preset's spec (its surrogate with the settings of `base`, if given) and its normalization."""
    spec, normalization = preset(name.split()[0])
    if " " in name:
        normalization = preset(name.split()[1])[1]
    return (spec if base is None else replace(base, surrogate=spec.surrogate)), normalization


def trl_loss(
    name: str, spec: LossSpec, batch: Batch, logprobs: torch.Tensor, entropy: torch.Tensor, options: Options
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """TRL's loss of logprobs [B,T], and the metrics that it logged."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer: Any = GRPOTrainer.__new__(GRPOTrainer)
    trainer.loss_type, trainer.importance_sampling_level = NAMES[name]
    trainer.epsilon_low = spec.epsilon_low
    trainer.epsilon_high = spec.cispo_cap if trainer.loss_type == "cispo" else spec.epsilon_high
    trainer.beta, trainer.entropy_coef = spec.beta, spec.entropy_coef
    trainer._entropy_bonus_enabled, trainer.use_adaptive_entropy = spec.entropy_coef != 0.0, False
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold, trainer.aux_loss_enabled = 1.0, None, False
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = options.importance
    trainer.max_completion_length, trainer.current_gradient_accumulation_steps = MAX_NEW_TOKENS, 1
    trainer.args = SimpleNamespace(
        delta=spec.delta,
        use_bias_correction_kl=False,
        sapo_temperature_pos=spec.sapo_tau_pos,
        sapo_temperature_neg=spec.sapo_tau_neg,
        steps_per_generation=1,
    )
    trainer.accelerator = SimpleNamespace(
        num_processes=1,
        is_main_process=True,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    trainer._metrics = {"train": defaultdict(list)}
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropy, None)
    inputs = {
        "prompt_ids": batch.ids[:, :1],
        "prompt_mask": torch.ones_like(batch.mask[:, :1]),
        "completion_ids": batch.ids,
        "completion_mask": batch.mask,
        "advantages": batch.advantages,
        "num_items_in_batch": batch.mask.sum(),
        "ref_per_token_logps": batch.ref,
    }
    if not options.on_policy:
        inputs["old_per_token_logps"] = batch.old
    if options.importance:
        inputs["importance_sampling_ratio"] = batch.importance
    trainer.model = SimpleNamespace(training=True)
    return trainer.compute_loss(None, inputs), trainer._metrics["train"]


def compare(name: str, spec: LossSpec, normalization: str, batch: Batch, options: Options, backend: str) -> None:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    logits = batch.logits.requires_grad_()
    logprobs, entropy = selective_log_softmax_and_entropy(logits, batch.ids, temperature=spec.temperature)
    expected, metrics = trl_loss(name, spec, batch, logprobs, entropy, options)
    (gradient,) = torch.autograd.grad(expected, logits)

    t: dict[str, torch.Tensor | None] = dict(batch.ours(normalization))
    t["ref_logprobs"] = batch.ref.flatten() if spec.beta else None
    t["importance"] = batch.importance.flatten() if options.importance else None
    if options.on_policy:
        t["old_logprobs"] = None
    out = policy_loss(logits.flatten(0, 1), **t, spec=spec, backend=backend)
    (mine,) = torch.autograd.grad(out.loss, logits)

    allowed = ALLOWED[logits.dtype]
    assert abs(out.loss.item() - expected.item()) <= allowed * max(1.0, abs(expected.item()))
    assert distance(mine, gradient) <= allowed
    assert gradient[batch.mask == 1].abs().amax(1).ne(0).any() and mine[batch.mask == 0].eq(0).all()

    def mean(x: torch.Tensor) -> float:
        return x[batch.live].double().mean().item()

    assert mean(out.entropy) == pytest.approx(metrics["entropy"][0], rel=10 * allowed)
    if spec.beta:
        assert mean(out.kl) == pytest.approx(metrics["kl"][0], rel=10 * allowed)
    if spec.surrogate == "clip":
        assert mean(out.clipped_low) == pytest.approx(metrics["clip_ratio/low_mean"][0])
        assert mean(out.clipped_high) == pytest.approx(metrics["clip_ratio/high_mean"][0])
    elif spec.surrogate == "cispo":
        assert mean(out.clipped_high) == pytest.approx(metrics["cispo_clip_ratio"][0])


@pytest.mark.parametrize("backend,dtype", BACKENDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_presets(name, backend, dtype):
    spec, normalization = ours(name)
    if name == "sapo" and dtype == torch.float64:  # TRL rounds its two constants to float32, whatever the logits are
        spec = replace(spec, sapo_tau_neg=torch.tensor(spec.sapo_tau_neg).item())
    for options in (Options(), Options(on_policy=True)):
        compare(name, spec, normalization, make_batch(dtype), options, backend)


@pytest.mark.parametrize("backend,dtype", BACKENDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_option(name, backend, dtype):
    """Two-sided clip, KL, temperature, unequal epsilons, importance ratios, an advantage for every token."""
    spec, normalization = ours(name, EVERYTHING)
    by_token = spec.surrogate != "gspo"
    batch = make_batch(dtype, by_token=by_token, temperature=spec.temperature)
    assert {True, False} == set((batch.advantages[batch.mask == 1] > 0).tolist())
    compare(name, spec, normalization, batch, Options(importance=True), backend)
    compare(name, spec, normalization, batch, Options(on_policy=True, importance=by_token), backend)


@pytest.mark.parametrize("name", ("bnpo", "dapo", "cispo"))
@pytest.mark.parametrize("backend,dtype", BACKENDS, ids=str)
def test_entropy_bonus(name, backend, dtype):
    """TRL's bonus is a mean over tokens whatever the loss: ours where the weights are."""
    spec, normalization = ours(name)
    compare(name, replace(spec, entropy_coef=0.1), normalization, make_batch(dtype), Options(), backend)


@pytest.mark.parametrize("name", ("dapo", "sapo", "gspo"))
@pytest.mark.parametrize("backend", ("torch", "triton"))
def test_from_hidden_states(name, backend):
    """Against TRL's fused head, the one its trainer runs."""
    from trl.kernels import ChunkedLogProbFunction

    spec, normalization = ours(name, replace(EVERYTHING, logit_softcap=3.0, logit_scale=0.8))
    batch, g = make_batch(torch.float32, temperature=spec.temperature), torch.Generator().manual_seed(0)
    shapes = ((BATCH * LENGTH, 16), (VOCABULARY, 16), (VOCABULARY,))
    h, w, b = (torch.randn(s, generator=g).requires_grad_() for s in shapes)
    logprobs, entropy, *_ = ChunkedLogProbFunction.apply(h, w, b, batch.ids.flatten(), 0.7, 16, 3.0, 0.8)
    batch = replace(batch, old=logprobs.detach().view(BATCH, LENGTH) - 0.3, ref=logprobs.detach().view(BATCH, LENGTH))
    shape = (BATCH, LENGTH)
    expected, _ = trl_loss(name, spec, batch, logprobs.view(shape), entropy.view(shape), Options())
    gradients = torch.autograd.grad(expected, (h, w, b))
    t = batch.ours(normalization) | {"ref_logprobs": batch.ref.flatten()}
    out = linear_policy_loss(h, w, **t, bias=b, spec=spec, logits_budget_mb=0.001, backend=backend)
    assert abs(out.loss.item() - expected.item()) <= 2e-6
    for mine, other in zip(torch.autograd.grad(out.loss, (h, w, b)), gradients, strict=True):
        assert distance(mine, other) <= 2e-6
