"""What the operations promise beside the numbers: memory, dead tokens, frozen inputs, errors, no synchronisation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dyme_kernels import SURROGATES, LossSpec, linear_policy_loss, policy_loss, token_logprobs
from tests.helpers.kernel_oracle import make_inputs


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def plain(n: int, v: int) -> dict[str, torch.Tensor]:
    return {"targets": torch.randint(v, (n,)), "advantages": torch.ones(n), "weights": torch.full((n,), 0.1)}


def test_the_gradient_overwrites_logits_that_an_operation_made():
    x = leaf(5, 7)
    logits = x * 1.0
    before = logits.detach().clone()
    out = policy_loss(logits, **plain(5, 7))
    assert not torch.equal(logits.detach(), before)
    kept = logits.detach().clone()
    out.loss.backward()
    assert torch.equal(x.grad, kept)


def test_leaves_and_their_views_are_left_alone():
    x = leaf(5, 7)
    before = x.detach().clone()
    for logits in (x, x[:, :], x.view(5, 7)[1:], x[:1].expand(4, 7)):
        policy_loss(logits, **plain(logits.shape[0], 7)).loss.backward()
        assert torch.equal(x.detach(), before)


def test_logits_are_left_alone_where_nothing_needs_a_gradient():
    frozen = torch.randn(5, 7)
    made = leaf(5, 7) * 1.0
    for logits, enabled in ((frozen, True), (made, False)):
        before = logits.detach().clone()
        with torch.set_grad_enabled(enabled):
            out = policy_loss(logits, **plain(5, 7))
        assert torch.equal(logits.detach(), before) and not out.loss.requires_grad


def test_autograd_reports_an_operation_that_had_saved_the_overwritten_logits():
    logits = leaf(5, 7).exp()
    out = policy_loss(logits, **plain(5, 7))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_backward_twice_over_a_kept_graph_scales_afresh(dtype):
    h, w = leaf(6, 4, dtype=dtype), leaf(9, 4, dtype=dtype)
    t = plain(6, 9)
    for loss in (policy_loss(h @ w.T, **t).loss, linear_policy_loss(h, w, **t).loss):
        first = torch.autograd.grad(loss, (h, w), torch.tensor(3.0), retain_graph=True)
        second = torch.autograd.grad(loss, (h, w), torch.tensor(3.0), retain_graph=True)
        last = torch.autograd.grad(loss, (h, w), torch.tensor(3.0))
        for a, b, c in zip(first, second, last, strict=True):
            assert torch.equal(a, b) and torch.equal(a, c) and a.dtype == dtype


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("size,live", ((5, []), (0, None), (0, [])))
def test_nothing_live_is_a_zero_that_reaches_every_parameter(size, live, surrogate):
    h, w, b = leaf(size, 4), leaf(9, 4), leaf(9)
    with torch.no_grad():
        h.fill_(math.nan)
    index = None if live is None else torch.tensor(live, dtype=torch.int64)
    t = make_inputs(size, 9, live=index)
    t["targets"] = torch.full((size,), -100)
    spec = LossSpec(surrogate=surrogate, entropy_coef=0.1)
    out = linear_policy_loss(h, w, **t, bias=b, spec=spec)
    out.loss.backward()
    assert out.loss.item() == 0.0 and out.ratio.eq(1).all() and out.logprobs.shape == (size,)
    for x in (h, w, b):
        assert x.grad is not None and x.grad.shape == x.shape and x.grad.eq(0).all()
    logits = leaf(size, 9)
    policy_loss(logits, **t, spec=spec).loss.backward()
    assert logits.grad is not None and logits.grad.eq(0).all()


def test_dead_rows_may_hold_nan():
    t = make_inputs(20, 9)
    dead = torch.ones(20, dtype=torch.bool).index_fill(0, t["live"], False)
    h, w = leaf(20, 4, dtype=torch.float64), leaf(9, 4, dtype=torch.float64)
    clean = torch.autograd.grad(linear_policy_loss(h, w, **t).loss, (h, w))
    with torch.no_grad():
        h[dead] = math.nan
    for name in ("advantages", "weights", "old_logprobs", "importance"):
        t[name][dead] = math.nan
    t["targets"][dead] = -100
    dirty = torch.autograd.grad(linear_policy_loss(h, w, **t, logits_budget_mb=1e-4).loss, (h, w))
    assert all(torch.allclose(a, b) for a, b in zip(clean, dirty, strict=True))
    logits = (h.detach() @ w.detach().T).requires_grad_()
    (grad,) = torch.autograd.grad(policy_loss(logits * 1.0, **t).loss, logits)
    assert grad[dead].eq(0).all() and grad.isfinite().all() and grad[~dead].ne(0).any()


def test_frozen_inputs_are_skipped():
    t = plain(6, 9)
    h, w, b = leaf(6, 4), leaf(9, 4), leaf(9)
    full = torch.autograd.grad(linear_policy_loss(h, w, **t, bias=b).loss, (h, w, b))
    for frozen in range(3):
        args = [x.detach() if i == frozen else x for i, x in enumerate((h, w, b))]
        out = linear_policy_loss(args[0], args[1], **t, bias=args[2])
        rest = [i for i in range(3) if i != frozen]
        grads = torch.autograd.grad(out.loss, [args[i] for i in rest])
        assert all(torch.equal(g, full[i]) for g, i in zip(grads, rest, strict=True))
    with torch.no_grad():
        quiet = linear_policy_loss(h, w, **t, bias=b)
    assert not quiet.loss.requires_grad and torch.equal(quiet.logprobs, out.logprobs)


def test_the_budget_bounds_the_rows_of_a_product(monkeypatch):
    seen = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **k: seen.append(a.shape[0]) or real(a, b, **k))
    with torch.no_grad():
        linear_policy_loss(leaf(100, 4), leaf(256, 4), **plain(100, 256), logits_budget_mb=32 * 256 * 4 / 2**20)
    assert seen == [32, 32, 32, 4]


def test_dead_tokens_never_enter_a_product(monkeypatch):
    seen = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **k: seen.append(a.shape[0]) or real(a, b, **k))
    linear_policy_loss(leaf(50, 4), leaf(9, 4), **plain(50, 9), live=torch.tensor([3, 4, 40]))
    assert seen == [3, 3]


def test_float16_gradients_survive_a_loss_scale():
    """Weights of 1e-7 are zero in float16; with the loss scale they are not, and plain PyTorch keeps them."""
    h, w = leaf(6, 4, dtype=torch.float16), leaf(9, 4, dtype=torch.float16)
    t = plain(6, 9) | {"weights": torch.full((6,), 1e-7)}
    scale = torch.tensor(65536.0 * 16)
    logp = torch.log_softmax((h @ w.T).float(), 1).gather(1, t["targets"][:, None])[:, 0]
    expected = torch.autograd.grad(-(t["weights"] * logp).sum(), (h, w), scale)
    for out in (linear_policy_loss(h, w, **t), policy_loss(h @ w.T, **t)):
        for a, b in zip(torch.autograd.grad(out.loss, (h, w), scale), expected, strict=True):
            assert torch.allclose(a.float(), b.float(), rtol=4e-3, atol=1e-4 * b.abs().max().item())


def test_autocast_casts_like_a_linear_layer():
    h, w, t = leaf(6, 4), leaf(9, 4), plain(6, 9)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_policy_loss(h, w, **t)
    cast = linear_policy_loss(h.bfloat16(), w.bfloat16(), **t)
    assert torch.equal(out.loss, cast.loss)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.loss, (h, w)))


def test_inside_a_checkpointed_head():
    h, w, t = leaf(6, 4), leaf(9, 4), plain(6, 9)
    direct = torch.autograd.grad(linear_policy_loss(h, w, **t).loss, (h, w))
    loss = torch.utils.checkpoint.checkpoint(lambda x: linear_policy_loss(x, w, **t).loss, h, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, (h, w)), direct, strict=True))


def test_nothing_waits_for_the_device():
    """A fake tensor has no values, so reading one on the host raises."""
    spec = LossSpec(beta=0.1, entropy_coef=0.1, temperature=0.7)
    with FakeTensorMode():
        for surrogate in SURROGATES:
            for dtype in (torch.float32, torch.bfloat16):
                h = torch.empty(24, 8, dtype=dtype, device="meta", requires_grad=True)
                w = torch.empty(40, 8, dtype=dtype, device="meta", requires_grad=True)
                v = {
                    k: torch.empty(24, device="meta") for k in ("advantages", "weights", "old_logprobs", "ref_logprobs")
                }
                v |= {k: torch.empty(24, dtype=torch.int64, device="meta") for k in ("targets", "segments")}
                v |= {"memorize": torch.empty(24, dtype=torch.bool, device="meta")}
                v |= {"live": torch.empty(11, dtype=torch.int64, device="meta")}
                s = replace(spec, surrogate=surrogate)
                linear_policy_loss(h, w, **v, spec=s, logits_budget_mb=1e-3).loss.backward()
                policy_loss(h @ w.T, **v, spec=s).loss.backward()
                assert h.grad is not None and h.grad.shape == h.shape and w.grad is not None


def test_errors_name_the_fix(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    h, w, t = leaf(4, 3), leaf(5, 3), plain(4, 5)
    cases = [
        (dict(backend="triton"), RuntimeError, "backend='auto'"),
        (dict(backend="cuda"), ValueError, "allowed are 'auto'"),
        (dict(weights=torch.ones(3)), ValueError, "weights has shape"),
        (dict(memorize=torch.ones(4)), ValueError, r"memorize\.bool"),
        (dict(live=torch.ones(4, dtype=torch.bool)), ValueError, "nonzero"),
        (dict(spec=LossSpec(beta=0.1)), ValueError, "ref_logprobs"),
        (dict(spec=LossSpec(surrogate="gspo"), old_logprobs=torch.zeros(4)), ValueError, "segments"),
        (dict(targets=torch.tensor([0, 1, -100, 2])), ValueError, "live="),
    ]
    for change, error, words in cases:
        with pytest.raises(error, match=words):
            linear_policy_loss(h, w, **(t | change))
        with pytest.raises(error, match=words):
            policy_loss(h @ w.T, **(t | change))
    for args, words in (
        ((h, leaf(5, 2)), "flatten"),
        ((h, w.double()), "autocast"),
        ((h[None], w), "flatten"),
    ):
        with pytest.raises(ValueError, match=words):
            linear_policy_loss(*args, **t)
    with pytest.raises(ValueError, match="logits_budget_mb"):
        linear_policy_loss(h, w, **t, logits_budget_mb=0)
    with pytest.raises(ValueError, match="bias has shape"):
        linear_policy_loss(h, w, **t, bias=torch.zeros(4))
    with pytest.raises(ValueError, match="flatten"):
        policy_loss(torch.zeros(2, 2, 5), **t)
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 0.0)
    with pytest.raises(ValueError, match="flatten"):
        token_logprobs(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
