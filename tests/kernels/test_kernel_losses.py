"""Every surrogate and flag against the float64 oracle, through both operations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from dyme_kernels import SURROGATES, LossSpec, linear_policy_loss, policy_loss
from tests.helpers.kernel_oracle import make_inputs, oracle_loss

FULL = LossSpec(
    beta=0.1, entropy_coef=0.05, temperature=0.7, delta=1.3, cispo_cap=1.1, token_shaping="p(1-p)", sapo_tau_neg=2.0
)
PLAIN = LossSpec()


def head(n: int, v: int, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n)
    shapes = ((n, width), (v, width), (v,))
    return tuple(torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes)  # type: ignore


def close(a, b) -> bool:
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-13) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("surrogate,policy", list(itertools.product(SURROGATES, ("on", "off"))))
@pytest.mark.parametrize("base", (PLAIN, FULL), ids=("plain", "full"))
def test_both_operations_equal_the_oracle(surrogate, policy, base):
    spec = replace(base, surrogate=surrogate)
    t = make_inputs(23, 37, old_logprobs=None) if policy == "on" else make_inputs(23, 37)
    h, w, b = head(23, 37)
    expected, logprobs, entropy = oracle_loss(h @ w.T + b, t, spec)
    grads = torch.autograd.grad(expected * 3, (h, w, b))

    out = policy_loss(h @ w.T + b, **t, spec=spec)
    assert torch.allclose(out.loss, expected, rtol=1e-10)
    assert close(torch.autograd.grad(out.loss * 3, (h, w, b)), grads)
    live = t["live"]
    dead = torch.ones(23, dtype=torch.bool).index_fill(0, live, False)
    assert close((out.logprobs[live], out.entropy[live]), (logprobs.detach()[live], entropy.detach()[live]))
    assert out.ratio[dead].eq(1).all() and out.logprobs[dead].eq(0).all() and out.kl[dead].eq(0).all()

    for budget in (1e-9, 0.002, 64):
        fused = linear_policy_loss(h, w, **t, bias=b, spec=spec, logits_budget_mb=budget)
        assert torch.allclose(fused.loss, expected, rtol=1e-10)
        assert close(torch.autograd.grad(fused.loss * 3, (h, w, b)), grads)
        for name in ("logprobs", "entropy", "ratio", "clipped_low", "clipped_high", "kl", "argmax_match"):
            assert torch.allclose(getattr(fused, name), getattr(out, name), rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("surrogate", ("clip", "gspo", "sapo"))
@pytest.mark.parametrize("drop", ((), ("memorize",), ("live",), ("importance", "memorize", "live")), ids=str)
@pytest.mark.parametrize("base", (PLAIN, replace(FULL, token_shaping="none")), ids=("plain", "full"))
def test_gradcheck(surrogate, drop, base):
    spec = replace(base, surrogate=surrogate)
    t = make_inputs(7, 5, **dict.fromkeys(drop))
    h, w, b = head(7, 5, 3)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, **t, spec=spec).loss, ((h @ w.T).detach().requires_grad_(),)
    )

    def fused(x, y, z):
        return linear_policy_loss(x, y, **t, bias=z, spec=spec, logits_budget_mb=1e-4).loss

    assert torch.autograd.gradcheck(fused, (h, w, b))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_memorized_tokens_are_plain_likelihood_whatever_the_other_arguments_hold(surrogate):
    t = make_inputs(12, 11, live=None)
    t["memorize"] = torch.ones(12, dtype=torch.bool)
    t["advantages"] = torch.ones(12, dtype=torch.float64)
    for name in ("old_logprobs", "ref_logprobs", "importance"):
        t[name] = torch.full((12,), float("nan"), dtype=torch.float64)
    spec = LossSpec(surrogate=surrogate, beta=0.5, entropy_coef=0.3, temperature=0.6)
    z = torch.randn(12, 11, dtype=torch.float64, requires_grad=True)
    nll = (t["weights"] * torch.nn.functional.cross_entropy(z, t["targets"], reduction="none")).sum()
    out = policy_loss(z, **t, spec=spec)
    assert torch.allclose(out.loss, nll)
    assert close(torch.autograd.grad(out.loss, z), torch.autograd.grad(nll, z))
    assert out.ratio.eq(1).all() and out.kl.eq(0).all() and out.clipped_low.eq(0).all() and out.clipped_high.eq(0).all()


def test_memorize_temperature_can_follow_the_sampling_temperature():
    t = make_inputs(9, 11, live=None)
    t["memorize"] = torch.ones(9, dtype=torch.bool)
    z = torch.randn(9, 11, dtype=torch.float64)
    divided = policy_loss(z, **t, spec=LossSpec(temperature=0.5, memorize_temperature=0.5))
    assert torch.allclose(divided.loss, policy_loss(2 * z, **t).loss)


def test_shaping_weighs_a_memorized_token_by_p_times_one_minus_p():
    t = make_inputs(1, 2, live=None)
    t |= {"memorize": torch.ones(1, dtype=torch.bool), "advantages": torch.ones(1), "weights": torch.ones(1)}
    z = torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    shaped = policy_loss(z, **t, spec=LossSpec(token_shaping="p(1-p)"))
    p = shaped.logprobs.exp()
    target = int(t["targets"])
    assert torch.allclose(torch.autograd.grad(shaped.loss, z)[0][0, target], -p * (1 - p) * (1 - p))


def test_ratio_clip_flags_kl_and_argmax():
    z = torch.log(torch.tensor([[0.6, 0.4]] * 4, dtype=torch.float64))
    targets = torch.tensor([0, 0, 1, 1])
    old = torch.log(torch.tensor([0.4, 0.4, 0.8, 0.8], dtype=torch.float64))
    ref = torch.log(torch.tensor([0.3, 0.6, 0.4, 0.2], dtype=torch.float64))
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    out = policy_loss(z, targets, advantages, torch.ones(4), old, ref)
    assert torch.allclose(out.ratio, torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64))
    assert out.clipped_high.tolist() == [1, 0, 0, 0] and out.clipped_low.tolist() == [0, 0, 1, 0]
    assert out.argmax_match.tolist() == [1, 1, 0, 0]
    # -(1.2 clipped) + 1.5 + (0.8 clipped) - 0.5
    assert torch.allclose(out.loss, torch.tensor(-1.2 + 1.5 + 0.8 - 0.5, dtype=torch.float64))
    q = torch.tensor([0.5, 1.0, 1.0, 0.5], dtype=torch.float64)
    assert torch.allclose(out.kl, q - q.log() - 1)


def test_gspo_on_policy_needs_no_segments_where_rows_are_uniform():
    t = make_inputs(12, 9, old_logprobs=None, memorize=None, importance=None, live=None)
    row = torch.arange(12) // 4
    t["advantages"], t["weights"] = t["advantages"][row], t["weights"][row]
    z = torch.randn(12, 9, dtype=torch.float64, requires_grad=True)
    spec = LossSpec(surrogate="gspo")
    with_rows = torch.autograd.grad(policy_loss(z, **t, spec=spec).loss, z)
    t["segments"] = None
    assert close(torch.autograd.grad(policy_loss(z, **t, spec=spec).loss, z), with_rows)


def test_a_broken_rollout_log_probability_does_not_make_the_loss_nan():
    z = torch.zeros(2, 3, requires_grad=True)
    old = torch.tensor([-float("inf"), -500.0])
    out = policy_loss(z, torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), torch.ones(2), old)
    out.loss.backward()
    assert out.loss.isfinite() and z.grad is not None and z.grad.isfinite().all()


def test_suppressed_tokens_do_not_make_the_gradient_nan():
    z = torch.randn(3, 6, dtype=torch.float64)
    z[:, 4:] = -float("inf")
    z.requires_grad_()
    out = policy_loss(z, torch.tensor([0, 1, 2]), torch.ones(3), torch.ones(3), spec=LossSpec(entropy_coef=0.1))
    (grad,) = torch.autograd.grad(out.loss, z)
    assert grad.isfinite().all() and grad[:, 4:].eq(0).all() and out.entropy.isfinite().all()


@pytest.mark.parametrize("cap,scale", ((3.0, 1.0), (None, 0.25), (2.0, 0.5)))
@pytest.mark.parametrize("base", (PLAIN, FULL), ids=("plain", "full"))
def test_scale_and_softcap_are_part_of_the_fused_head(cap, scale, base):
    t = make_inputs(13, 17)
    h, w, b = head(13, 17)
    raw = (h @ w.T + b) * scale
    logits = raw if cap is None else cap * torch.tanh(raw / cap)
    expected = oracle_loss(logits, t, base)[0]
    out = linear_policy_loss(h, w, **t, bias=b, spec=replace(base, logit_scale=scale, logit_softcap=cap))
    assert torch.allclose(out.loss, expected, rtol=1e-10)
    assert close(torch.autograd.grad(out.loss, (h, w, b)), torch.autograd.grad(expected, (h, w, b)))
    # A model returns logits that have been through both, so policy_loss applies neither.
    given = policy_loss(logits.detach(), **t, spec=replace(base, logit_scale=scale, logit_softcap=cap))
    assert torch.allclose(given.loss, expected, rtol=1e-10)
