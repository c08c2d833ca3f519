"""The Triton row kernels, on a GPU or interpreted on the CPU, against float64 and against the torch implementation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dyme_kernels import SURROGATES, LossSpec, linear_policy_loss, policy_loss, token_logprobs
from tests.helpers.kernel_oracle import make_inputs, oracle_loss

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FULL = LossSpec(
    beta=0.1, entropy_coef=0.05, temperature=0.7, delta=1.3, cispo_cap=1.1, token_shaping="p(1-p)", sapo_tau_neg=2.0,
    epsilon_high=0.28, memorize_temperature=1.5,
)  # fmt: skip
SPECS = {"plain": LossSpec(), "full": FULL}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STATISTICS = ("logprobs", "entropy", "ratio", "clipped_low", "clipped_high", "kl", "argmax_match")


def on_device(t: dict[str, Tensor | None], dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    return {k: None if x is None else (x.to(dtype) if x.is_floating_point() else x).to(DEVICE) for k, x in t.items()}


def distance(mine: Tensor, exact: Tensor) -> float:
    exact = exact.detach().double().cpu()
    return ((mine.detach().double().cpu() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def close_to(logits: Tensor, t: dict[str, Tensor | None], temperature: float) -> dict[str, Tensor | None]:
    """Old and reference log-probabilities near the current ones, so that ratios fall on all sides of the clip."""
    g = torch.Generator().manual_seed(1)
    near = torch.log_softmax(logits.double().cpu() / temperature, 1).gather(1, t["targets"][:, None])[:, 0]
    noise = {k: near + 0.3 * torch.randn(near.shape, generator=g, dtype=torch.float64) for k in ("old", "ref")}
    old = None if t.get("old_logprobs") is None else noise["old"]
    return t | {"old_logprobs": old, "ref_logprobs": noise["ref"]}


def check(logits: Tensor, t: dict[str, Tensor | None], spec: LossSpec, allowed: float = 2e-6) -> None:
    """Both operations' row kernels on `logits` [N,V]: loss and statistics to `allowed`, the gradient to one rounding in
    its dtype more."""
    exact_logits = logits.detach().double().cpu().requires_grad_()
    exact, logprobs, entropy = oracle_loss(exact_logits, t, spec)
    (gradient,) = torch.autograd.grad(exact, exact_logits)
    narrow, leaf = on_device(t), logits.detach().requires_grad_()
    results = {}
    for backend in ("triton", "torch"):
        out = policy_loss(leaf, **narrow, spec=spec, backend=backend)
        results[backend] = (out, torch.autograd.grad(out.loss, leaf)[0])
    (out, mine), (theirs, other) = results["triton"], results["torch"]
    live = t["live"] if t.get("live") is not None else torch.arange(logits.shape[0])
    assert abs(out.loss.item() - exact.item()) <= 1e-5 * max(1.0, abs(exact.item()))
    assert distance(out.logprobs.cpu()[live], logprobs[live]) <= allowed
    assert distance(out.entropy.cpu()[live], entropy[live]) <= allowed
    assert distance(mine, gradient) <= allowed * 2 + torch.finfo(logits.dtype).eps
    assert distance(mine, other) <= allowed * 2 + torch.finfo(logits.dtype).eps
    for name in STATISTICS:
        torch.testing.assert_close(getattr(out, name), getattr(theirs, name), rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", SPECS)
@pytest.mark.parametrize("surrogate,policy", list(itertools.product(SURROGATES, ("on", "off"))))
def test_surrogates(surrogate, policy, options, dtype):
    spec = replace(SPECS[options], surrogate=surrogate)
    n = 12 if dtype == torch.float32 else 5
    logits = (2 * torch.randn(n, 257)).to(dtype).to(DEVICE)
    t = make_inputs(n, 257, old_logprobs=None) if policy == "on" else make_inputs(n, 257)
    check(logits, close_to(logits, t, spec.temperature), spec)


OPTIONAL = ("live", "memorize", "importance", "segments")


@pytest.mark.parametrize("present", [(), *((name,) for name in OPTIONAL), OPTIONAL], ids="-".join)
@pytest.mark.parametrize("surrogate", ("clip", "gspo"))
def test_optional_arguments(surrogate, present):
    logits = (2 * torch.randn(8, 257)).to(DEVICE)
    absent = dict.fromkeys(x for x in OPTIONAL if x not in present)
    if surrogate == "gspo" and "segments" not in present:
        absent["old_logprobs"] = None
    check(logits, close_to(logits, make_inputs(8, 257, **absent), 0.7), replace(FULL, surrogate=surrogate))


# 32003 and wider need more than one block, and the last is a ragged one.
@pytest.mark.parametrize("n,v", ((5, 1), (5, 2), (1, 257), (23, 257), (3, 32003), (2, 49280), (1, 151936), (1, 152064)))
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_vocabularies(n, v, dtype):
    logits = (2 * torch.randn(n, v)).to(dtype).to(DEVICE)
    t = close_to(logits, make_inputs(n, v, live=None, memorize=None), FULL.temperature)
    if v > 1:
        check(logits, t, FULL)
        return
    leaf = logits.requires_grad_()  # one word: p = 1, whatever the logit
    out = policy_loss(leaf, **on_device(t), spec=replace(FULL, beta=0.0), backend="triton")
    assert out.logprobs.eq(0).all() and out.entropy.eq(0).all() and out.argmax_match.eq(1).all()
    assert torch.autograd.grad(out.loss, leaf)[0].abs().max() <= 1e-7


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("n,live", ((0, None), (0, []), (5, [])))
def test_nothing_live(n, live, surrogate):
    index = None if live is None else torch.tensor(live, dtype=torch.int64)
    t = on_device(make_inputs(n, 257, live=index))
    h, w = torch.full((n, 4), math.nan, device=DEVICE), torch.randn(257, 4, device=DEVICE)
    for x in (h, w):
        x.requires_grad_()
    out = linear_policy_loss(h, w, **t, spec=replace(FULL, surrogate=surrogate), backend="triton")
    out.loss.backward()
    assert out.loss.item() == 0.0 and h.grad.eq(0).all() and w.grad.eq(0).all() and out.ratio.eq(1).all()
    logits = torch.full((n, 257), math.nan, device=DEVICE).requires_grad_()
    policy_loss(logits, **t, spec=replace(FULL, surrogate=surrogate), backend="triton").loss.backward()
    assert logits.grad.eq(0).all()


def test_dead_rows_may_hold_nan():
    t = close_to(torch.zeros(8, 257), make_inputs(8, 257), 1.0)
    dead = torch.ones(8, dtype=torch.bool).index_fill(0, t["live"], False)
    logits = torch.randn(8, 257)
    spoilt = dict(t)
    for name in ("advantages", "weights", "old_logprobs", "importance"):
        spoilt[name] = t[name].masked_fill(dead, math.nan)
    spoilt["targets"] = t["targets"].masked_fill(dead, -100)
    clean, dirty = logits.clone().to(DEVICE).requires_grad_(), logits.clone().to(DEVICE)
    dirty[dead.to(DEVICE)] = math.nan
    dirty.requires_grad_()
    for x, values in ((clean, t), (dirty, spoilt)):
        policy_loss(x, **on_device(values), spec=FULL, backend="triton").loss.backward()
    assert torch.equal(clean.grad, dirty.grad) and dirty.grad[dead.to(DEVICE)].eq(0).all()


@pytest.mark.parametrize("v", (257, 32003))
@pytest.mark.parametrize("entropy_coef", (0.0, 0.05))
def test_banned_tokens(v, entropy_coef):
    """Scattered ones, and in row 0 the whole first block of the row, which has no maximum then."""
    logits = torch.randn(3, v)
    logits[:, torch.arange(5, v, 7)] = -math.inf
    logits[0, : min(v - 3, 20000)] = -math.inf
    t = make_inputs(3, v, live=None, memorize=None)
    t["targets"] = torch.tensor([v - 1, 3, 4])
    logits[torch.arange(3), t["targets"]] = 0.5
    t["old_logprobs"] = t["ref_logprobs"] = torch.full((3,), -math.log(v), dtype=torch.float64)
    leaf = logits.to(DEVICE).requires_grad_()
    exact = logits.double().requires_grad_()
    spec = LossSpec(beta=0.1, entropy_coef=entropy_coef, temperature=0.7)
    table = torch.log_softmax(exact / 0.7, 1)
    entropy = -(table.exp() * table.clamp(min=-1e4)).sum(1)
    logp = table.gather(1, t["targets"][:, None])[:, 0]
    out = policy_loss(leaf, **on_device(t), spec=spec, backend="triton")
    torch.testing.assert_close(out.logprobs.double().cpu(), logp, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.entropy.double().cpu(), entropy, rtol=1e-6, atol=1e-6)
    (mine,) = torch.autograd.grad(out.loss, leaf)
    theirs = policy_loss(leaf, **on_device(t), spec=spec, backend="torch").loss
    banned = logits == -math.inf
    assert mine.isfinite().all() and mine.cpu()[banned].eq(0).all()
    assert distance(mine, torch.autograd.grad(theirs, leaf)[0]) <= 4e-6


@pytest.mark.parametrize("temperature", (0.3, 2.0))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peaked_logits(dtype, temperature):
    """One logit 80 above the rest, as the target and as another token: probabilities of 1 and of exp(-266)."""
    logits = torch.randn(6, 257)
    t = make_inputs(6, 257, live=None, memorize=None)
    peaks = torch.where(torch.arange(6) < 3, t["targets"], (t["targets"] + 100) % 257)
    logits[torch.arange(6), peaks] += 80.0
    logits = logits.to(dtype).to(DEVICE)
    spec = replace(FULL, temperature=temperature)
    t = close_to(logits, t, temperature)
    exact_logits = logits.double().cpu().requires_grad_()
    exact, logprobs, entropy = oracle_loss(exact_logits, t, spec)
    leaf = logits.requires_grad_()
    out = policy_loss(leaf, **on_device(t), spec=spec, backend="triton")
    (mine,) = torch.autograd.grad(out.loss, leaf)
    # a log-probability of -266 has an ulp of 3e-5, and the ratio carries it on
    torch.testing.assert_close(out.logprobs.double().cpu(), logprobs.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.entropy.double().cpu(), entropy.detach(), rtol=1e-5, atol=1e-6)
    assert distance(mine, torch.autograd.grad(exact, exact_logits)[0]) <= 1e-4 + torch.finfo(dtype).eps
    assert out.argmax_match.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("cap,scale", ((None, 0.25), (3.0, 1.0), (2.0, 0.5), (30, 2)), ids=str)
@pytest.mark.parametrize("surrogate", ("clip", "gspo"))
def test_scale_and_softcap(surrogate, cap, scale):
    """Whole numbers too, which Triton would take for another type."""
    spec = replace(FULL, surrogate=surrogate, logit_softcap=cap, logit_scale=scale, delta=2, beta=1)
    h, w = ((0.5 * torch.randn(s, 4)).to(DEVICE).requires_grad_() for s in (13, 257))
    wide = [x.detach().double().cpu().requires_grad_() for x in (h, w)]
    raw = (wide[0] @ wide[1].T) * scale
    logits = raw if cap is None else cap * torch.tanh(raw / cap)
    t = close_to(logits.detach(), make_inputs(13, 257), 0.7)
    exact, logprobs, entropy = oracle_loss(logits, t, spec)
    out = linear_policy_loss(h, w, **on_device(t), spec=spec, backend="triton", logits_budget_mb=0.005)
    live = t["live"]
    assert abs(out.loss.item() - exact.item()) <= 1e-5 * max(1.0, abs(exact.item()))
    assert distance(out.logprobs.cpu()[live], logprobs[live]) <= 2e-6
    assert distance(out.entropy.cpu()[live], entropy[live]) <= 2e-6
    for mine, other in zip(torch.autograd.grad(out.loss, (h, w)), torch.autograd.grad(exact, wide), strict=True):
        assert distance(mine, other) <= 4e-6


@pytest.mark.parametrize("entropy", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_token_logprobs(dtype, entropy):
    logits, targets = (2 * torch.randn(9, 257)).to(dtype).to(DEVICE).requires_grad_(), torch.randint(257, (9,))
    before = logits.detach().clone()
    out = token_logprobs(logits, targets.to(DEVICE), 0.7, entropy=entropy, backend="triton")
    exact = before.double().cpu().requires_grad_()
    table = torch.log_softmax(exact / 0.7, 1)
    logprobs, spread = table.gather(1, targets[:, None])[:, 0], -(table.exp() * table).sum(1)
    c, e = torch.randn(9), torch.randn(9)
    loss, wanted = (c.to(DEVICE) * out.logprobs).sum(), (c * logprobs).sum()
    if entropy:
        loss, wanted = loss + (e.to(DEVICE) * out.entropy).sum(), wanted + (e * spread).sum()
        assert distance(out.entropy, spread) <= 2e-6
    assert distance(out.logprobs, logprobs) <= 2e-6 and torch.equal(logits.detach(), before)
    assert distance(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(wanted, exact)[0]) <= (
        2e-6 + torch.finfo(dtype).eps
    )


def test_a_target_outside_the_vocabulary_is_nan(monkeypatch):
    """Where targets are not looked at, as on a GPU: NaN for its token, nothing written outside of its row."""
    monkeypatch.setattr("dyme_kernels.logprobs.check_targets", lambda *_: None)
    monkeypatch.setattr("dyme_kernels.tokens.check_targets", lambda *_: None)
    logits = torch.randn(5, 257, device=DEVICE).requires_grad_()
    targets = torch.tensor([3, 257, -1, 10**9, -(10**12)], device=DEVICE)
    assert token_logprobs(logits, targets, backend="triton").logprobs.isnan().tolist() == [False] + [True] * 4
    one = torch.ones(5, device=DEVICE)
    out = policy_loss(logits, targets, one, one, backend="triton")
    (gradient,) = torch.autograd.grad(out.loss, logits)
    assert out.logprobs.isnan().tolist() == [False] + [True] * 4 and out.loss.isnan()
    alone = policy_loss(logits[:1], targets[:1], one[:1], one[:1], backend="triton")
    assert torch.equal(gradient[:1], torch.autograd.grad(alone.loss, logits)[0][:1])


@pytest.mark.parametrize("name", ("old_logprobs", "advantages", "ref_logprobs"))
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_what_is_not_a_number_shows_in_the_loss(surrogate, name):
    """The trainer drops updates whose loss is not finite; a clip that turned NaN into its bound would hide them."""
    t = make_inputs(6, 257, live=None, memorize=None, importance=None) | {"segments": torch.arange(6)}
    t[name][2] = math.nan
    spec = replace(FULL, surrogate=surrogate)
    logits = torch.randn(6, 257, device=DEVICE).requires_grad_()
    for backend in ("triton", "torch"):
        out = policy_loss(logits, **on_device(t), spec=spec, backend=backend)
        assert out.loss.isnan(), backend


@pytest.mark.parametrize("v", (257, 300))
def test_rows_of_a_wider_matrix(v):
    """A stride between rows that is not their width; columns past it stay as they are."""
    big = torch.randn(7, 400, device=DEVICE)
    t = on_device(close_to(big[:, :v], make_inputs(7, v), FULL.temperature))
    narrow, wide = big[:, :v].contiguous().requires_grad_(), (big * 1).requires_grad_()
    expected = policy_loss(narrow, **t, spec=FULL, backend="triton")
    (gradient,) = torch.autograd.grad(expected.loss, narrow)
    made = wide * 1.0
    out = policy_loss(made[:, :v], **t, spec=FULL, backend="triton")
    out.loss.backward()
    assert torch.equal(out.loss, expected.loss) and torch.equal(wide.grad[:, :v], gradient)
    assert wide.grad[:, v:].eq(0).all() and torch.equal(made.detach()[:, v:], big[:, v:])
    with pytest.raises(ValueError, match=r"logits have strides .*contiguous"):
        policy_loss(torch.randn(v, 7, device=DEVICE).T, **t, backend="triton")


def test_frozen_inputs_and_no_gradient_mode():
    t = on_device(make_inputs(5, 257, live=None))
    h, w, b = (torch.randn(s, device=DEVICE, requires_grad=True) for s in ((5, 8), (257, 8), (257,)))
    kept = dict(spec=FULL, backend="triton")
    full = torch.autograd.grad(linear_policy_loss(h, w, **t, bias=b, **kept).loss, (h, w, b))
    for frozen in range(3):
        args = [x.detach() if i == frozen else x for i, x in enumerate((h, w, b))]
        out = linear_policy_loss(args[0], args[1], **t, bias=args[2], **kept)
        rest = [i for i in range(3) if i != frozen]
        grads = torch.autograd.grad(out.loss, [args[i] for i in rest])
        assert all(torch.equal(g, full[i]) for g, i in zip(grads, rest, strict=True))
    logits = (h @ w.T + b).detach().requires_grad_()
    with torch.no_grad():
        quiet = linear_policy_loss(h, w, **t, bias=b, **kept)
        made = logits * 1.0
        given = policy_loss(made, **t, **kept)
    assert torch.equal(made, logits) and not quiet.loss.requires_grad and not given.loss.requires_grad
    assert torch.equal(quiet.logprobs, out.logprobs) and torch.equal(quiet.loss, out.loss.detach())


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_two_runs_give_the_same_bits(surrogate, dtype):
    t = on_device(close_to(torch.zeros(11, 257), make_inputs(11, 257), 1.0))
    h, w = (torch.randn(s, 16).to(dtype).to(DEVICE).requires_grad_() for s in (11, 257))
    seen = []
    for _ in range(2):
        spec = replace(FULL, surrogate=surrogate)
        out = linear_policy_loss(h, w, **t, spec=spec, backend="triton", logits_budget_mb=0.005)
        seen.append((*torch.autograd.grad(out.loss, (h, w)), out.loss, *(getattr(out, name) for name in STATISTICS)))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_broken_log_probabilities_stay_finite(surrogate):
    old = torch.tensor([-math.inf, -500.0, 300.0], device=DEVICE)
    leaf = torch.zeros(3, 257, device=DEVICE, requires_grad=True)
    args = (torch.tensor([0, 1, 2], device=DEVICE), torch.tensor([0.0, 1.0, -1.0], device=DEVICE))
    ones, rows = torch.ones(3, device=DEVICE), torch.arange(3, device=DEVICE)
    grads = []
    for backend in ("triton", "torch"):
        out = policy_loss(leaf, *args, ones, old, segments=rows, spec=LossSpec(surrogate=surrogate), backend=backend)
        grads.append(torch.autograd.grad(out.loss, leaf)[0])
        assert out.loss.isfinite() and grads[-1].isfinite().all()
    torch.testing.assert_close(*grads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="10 GB of logits, more than an int32 can index")
def test_more_than_two_to_the_31_logits():
    n, v = 16384, 151936
    logits = torch.randn(1, v, device=DEVICE, dtype=torch.bfloat16).expand(n, v).clone().requires_grad_()
    ones = torch.ones(n, device=DEVICE)
    targets = torch.full((n,), 7, device=DEVICE)
    out = policy_loss(logits, targets, ones, ones, backend="triton")
    (gradient,) = torch.autograd.grad(out.loss, logits)
    assert out.logprobs.eq(out.logprobs[0]).all()
    assert torch.equal(gradient[0], gradient[-1]) and gradient[-1].ne(0).any()
