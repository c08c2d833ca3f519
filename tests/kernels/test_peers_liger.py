"""The losses and gradients of liger-kernel: its Triton kernels from logits, its chunked loss from hidden states.

Both run where the tests run: Triton on a GPU, or on the CPU through the interpreter.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dyme_kernels import LossSpec, linear_policy_loss, policy_loss, preset
from tests.helpers.peer_batch import BATCH, LENGTH, MAX_NEW_TOKENS, VOCABULARY, Batch, distance, make_batch

pytest.importorskip("liger_kernel")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Our name -> Liger's loss_type and importance_sampling_level, which allows "sequence" with these losses.
NAMES = {
    **{name: (name, "token") for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")},
    "gspo": ("grpo", "sequence"),
    **{f"gspo {name}": (name, "sequence") for name in ("bnpo", "dr_grpo", "dapo")},
}
TEMPERATURE = 0.7
ALLOWED = 2e-6  # both sides round in float32


def choose(name: str, full: bool) -> tuple[LossSpec, str]:
    """Spec and normalization; `full` for two-sided clip (where Liger has one), KL and unequal epsilons."""
    spec, normalization = preset(name.split()[0])
    if " " in name:
        normalization = preset(name.split()[1])[1]
    if full:
        spec = replace(spec, epsilon_low=0.15, epsilon_high=0.3, beta=0.07, cispo_cap=1.2, sapo_tau_pos=1.5)
        if spec.surrogate in ("clip", "gspo"):
            spec = replace(spec, delta=1.5)
    return replace(spec, temperature=TEMPERATURE), normalization


def upper(spec: LossSpec) -> float:
    """Liger's epsilon_high."""
    return spec.cispo_cap if spec.surrogate == "cispo" else spec.epsilon_high


def arguments(batch: Batch, spec: LossSpec, normalization: str, on_policy: bool, importance: bool) -> dict:
    t: dict[str, torch.Tensor | None] = dict(batch.ours(normalization))
    t["ref_logprobs"] = batch.ref.flatten() if spec.beta else None
    t["importance"] = batch.importance.flatten() if importance else None
    if on_policy:
        t["old_logprobs"] = None
    return t


@pytest.mark.parametrize("on_policy,full", ((False, True), (True, False)))
@pytest.mark.parametrize("name", NAMES)
def test_triton_grpo_loss(name, on_policy, full):
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    spec, normalization = choose(name, full)
    batch = make_batch(torch.float32, DEVICE, temperature=TEMPERATURE)
    importance = full and not (on_policy and spec.surrogate == "gspo")
    loss_type, level = NAMES[name]
    last = torch.zeros(BATCH, 1, VOCABULARY, device=DEVICE)  # Liger wants the logits of one position more
    theirs = torch.cat([batch.logits, last], 1).requires_grad_()
    expected, metrics = triton_grpo_loss(
        theirs, None if on_policy else batch.old, batch.ref if spec.beta else None, batch.ids,
        batch.advantages[:, 0].contiguous(), batch.mask, spec.temperature, spec.beta, spec.epsilon_low, upper(spec),
        inplace=False, loss_type=loss_type, max_completion_length=MAX_NEW_TOKENS, importance_sampling_level=level,
        reduce=True, sapo_temperature_pos=spec.sapo_tau_pos, sapo_temperature_neg=spec.sapo_tau_neg, delta=spec.delta,
        vllm_is_ratio=batch.importance if importance else None,
    )  # fmt: skip
    expected.backward()

    logits = batch.logits.requires_grad_()
    t = arguments(batch, spec, normalization, on_policy, importance)
    for backend in ("torch", "triton"):
        out = policy_loss(logits.flatten(0, 1), **t, spec=spec, backend=backend)
        (mine,) = torch.autograd.grad(out.loss, logits)
        assert abs(out.loss.item() - expected.item()) <= ALLOWED
        assert distance(mine, theirs.grad[:, :-1]) <= ALLOWED
        clipped = (out.clipped_low + out.clipped_high)[batch.live].mean().item()
        assert clipped == pytest.approx(metrics[-1].item(), abs=1e-6)
        if spec.beta:
            assert out.kl[batch.live].mean().item() == pytest.approx(metrics[0].item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_fused_linear_grpo_loss(name):
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    spec, normalization = choose(name, full=True)
    batch, g = make_batch(torch.float32, DEVICE, temperature=TEMPERATURE), torch.Generator().manual_seed(0)
    shapes = ((BATCH, LENGTH, 16), (VOCABULARY, 16), (VOCABULARY,))
    h, w, b = ((0.5 * torch.randn(s, generator=g)).to(DEVICE).requires_grad_() for s in shapes)
    table = torch.log_softmax((h @ w.T + b).detach() / TEMPERATURE, 2)
    near = table.gather(2, batch.ids[..., None])[..., 0]
    batch = replace(batch, old=near - 0.3 * batch.importance, ref=near + 0.2 * batch.importance)
    loss_type, level = NAMES[name]
    theirs = LigerFusedLinearGRPOLoss(
        beta=spec.beta, compiled=False, use_ref_model=True, chunk_size=2, epsilon_low=spec.epsilon_low,
        epsilon_high=upper(spec), loss_type=loss_type, max_completion_length=MAX_NEW_TOKENS,
        importance_sampling_level=level, sapo_temperature_pos=spec.sapo_tau_pos,
        sapo_temperature_neg=spec.sapo_tau_neg, temperature=spec.temperature, delta=spec.delta,
    )  # fmt: skip
    expected, _ = theirs(
        h, w, batch.ids, batch.mask, batch.advantages[:, 0].contiguous(), bias=b, ref_per_token_logps=batch.ref,
        old_per_token_logps=batch.old, vllm_is_ratio=batch.importance,
    )  # fmt: skip
    gradients = torch.autograd.grad(expected, (h, w, b))
    t = arguments(batch, spec, normalization, False, True)
    for backend in ("torch", "triton"):
        out = linear_policy_loss(h.flatten(0, 1), w, **t, bias=b, spec=spec, logits_budget_mb=0.001, backend=backend)
        assert abs(out.loss.item() - expected.item()) <= ALLOWED
        for mine, other in zip(torch.autograd.grad(out.loss, (h, w, b)), gradients, strict=True):
            assert distance(mine, other) <= ALLOWED
