"""Relative norm error against float64 at most 1.5 times that of plain PyTorch in the same dtype, plus 2 ulp."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dyme_kernels import LossSpec, linear_policy_loss, policy_loss, token_logprobs
from tests.helpers.kernel_oracle import make_inputs, oracle_loss

SEEDS = 8
ROWS = 16
"""Rows over all seeds, at least: the rounding of a row's sum is one number in all its gradients, right or wrong by
chance, so a few rows say nothing of either side."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPEC = LossSpec(temperature=0.9, beta=0.04, entropy_coef=0.01)
# rows, vocabulary, width, spread of the logits (peaked above 1)
SHAPES = ((24, 257, 96, 1.0), (24, 257, 96, 8.0), (4, 32003, 96, 1.0), (2, 32003, 16, 6.0), (1, 257, 96, 3.0))
# The interpreter needs milliseconds a row.
FEW_ROWS = ((5, 257, 96, 1.0), (12, 257, 96, 8.0), (1, 32003, 16, 6.0), (1, 257, 96, 3.0))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [("torch", shape) for shape in SHAPES]
if find_spec("triton") is not None:
    CASES += [("triton", shape) for shape in (SHAPES if DEVICE == "cuda" else FEW_ROWS)]
# Models: vocabulary and width; narrow for one row: its products are exact. With 500 rows one seed is as good as eight.
ROWS_OF_A_MODEL = 500
SMALL_SIZES = ((2169, 257, 960), (600, 257, 2048), (1, 49280, 64))
LARGE_SIZES = ((600, 32003, 896), (1, 151936, 64), (1, 152064, 64))
GPU_SIZES = ((2169, 151936, 896), (600, 152064, 2048), (2169, 49280, 960), (600, 32003, 2048), (2169, 257, 960))
# A CPU product of 1 or 2 rows with 32003 columns sums them in one float32 and is wrong by 4e-6, one of 8 rows by 3e-7.
# The first is more than the error of the gradient that is multiplied, and parts of both cancel by chance.
ROWS_OF_A_GOOD_PRODUCT = 8
PRODUCTS = tuple(getattr(torch.ops.aten, name) for name in ("mm", "addmm", "addmm_"))


class ExactProducts(TorchDispatchMode):
    """Matrix products in float64, rounded once to their dtype: the library's rounding leaves the comparison."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket not in PRODUCTS or args[0].dtype == torch.float64:
            return func(*args, **kwargs)
        assert not {"out", "out_dtype"} & kwargs.keys(), "on a GPU only, where every product is a good one"
        *target, a, b = args
        exact = torch.mm(a.double(), b.double()) * kwargs.get("alpha", 1)
        if target and kwargs.get("beta", 1):  # beta 0: the target may hold anything
            exact += kwargs.get("beta", 1) * target[0].double()
        return target[0].copy_(exact) if func.overloadpacket is torch.ops.aten.addmm_ else exact.to(a.dtype)


def error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return ((x.detach().double() - exact).norm() / exact.norm()).item()


def pytorch(logits: torch.Tensor, t: dict, spec: LossSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return oracle_loss(logits.float() if logits.dtype != torch.float64 else logits, t, spec)


def check_rule(n: int, v: int, width: int, spread: float, dtype: torch.dtype, backend: str, budget: int = 1) -> None:
    """The rule for the log-probabilities, entropies and every gradient of both operations. budget: MiB of logits."""
    seeds = 1 if n >= ROWS_OF_A_MODEL else max(SEEDS, ROWS // n)
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}

    def note(name: str, mine: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
        ours[name] = ours.get(name, 0.0) + error(mine, exact) / seeds
        theirs[name] = theirs.get(name, 0.0) + error(plain, exact) / seeds

    g = torch.Generator().manual_seed(0)
    w = (spread * width**-0.5 * torch.randn(v, width, generator=g)).to(dtype).to(DEVICE).requires_grad_()
    for seed in range(seeds):
        h = torch.randn(n, width, generator=g).to(dtype).to(DEVICE).requires_grad_()
        # Every row lives, so that both sides multiply matrices of one shape.
        t = {k: x if x is None else x.to(DEVICE) for k, x in make_inputs(n, v, seed, live=None).items()}
        wide = [x.detach().double().requires_grad_() for x in (h, w)]
        near = token_logprobs(wide[0].detach() @ wide[1].detach().T, t["targets"], SPEC.temperature).logprobs
        for name in ("old_logprobs", "ref_logprobs"):
            t[name] = near + 0.3 * torch.randn(n, generator=g, dtype=torch.float64).to(DEVICE)
        exact, logprobs, entropy = oracle_loss(wide[0] @ wide[1].T, t, SPEC)
        exact_grads = torch.autograd.grad(exact, wide)
        narrow = {k: x.float() if x is not None and x.is_floating_point() else x for k, x in t.items()}
        few = n < ROWS_OF_A_GOOD_PRODUCT and DEVICE == "cpu"
        with ExactProducts() if few else nullcontext():
            plain, plain_logprobs, plain_entropy = pytorch(h @ w.T, narrow, SPEC)
            plain_grads = torch.autograd.grad(plain, (h, w))
            out = linear_policy_loss(h, w, **narrow, spec=SPEC, logits_budget_mb=budget, backend=backend)
            grads = torch.autograd.grad(out.loss, (h, w))
        note("logprobs", out.logprobs, plain_logprobs, logprobs)
        note("entropy", out.entropy, plain_entropy, entropy)
        for name, mine, other, reference in zip(("dhidden", "dweight"), grads, plain_grads, exact_grads, strict=True):
            note(name, mine, other, reference)

        z = (h @ w.T).detach().requires_grad_()
        exact_z = z.detach().double().requires_grad_()
        exact_loss = oracle_loss(exact_z, t, SPEC)[0]
        (exact_dz,) = torch.autograd.grad(exact_loss, exact_z)
        (plain_dz,) = torch.autograd.grad(pytorch(z, narrow, SPEC)[0], z)
        loss = policy_loss(z, **narrow, spec=SPEC, backend=backend).loss
        note("dlogits", torch.autograd.grad(loss, z)[0], plain_dz, exact_dz)
        assert abs(loss.item() - exact_loss.item()) <= 1e-5 * max(1.0, abs(exact_loss.item()))

    ulp = {"logprobs": torch.finfo(torch.float32).eps, "entropy": torch.finfo(torch.float32).eps}
    for name, value in ours.items():
        allowed = 1.5 * theirs[name] + 2 * ulp.get(name, torch.finfo(dtype).eps)
        assert value <= allowed, f"{name}: {value:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend,shape", CASES, ids=str)
def test_accuracy_rule(backend, shape, dtype):
    check_rule(*shape, dtype, backend)


@pytest.mark.parametrize("shape", SMALL_SIZES, ids=str)
def test_sizes_of_models(shape):
    check_rule(*shape, 1.0, torch.float32, "torch", budget=64)


@pytest.mark.slow
@pytest.mark.parametrize("shape", LARGE_SIZES, ids=str)
def test_large_sizes_of_models(shape):
    """Slow for the matrix products in float64."""
    check_rule(*shape, 1.0, torch.float32, "torch", budget=64)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device: a CPU takes minutes for the matrix products")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", GPU_SIZES, ids=str)
def test_sizes_of_models_on_a_gpu(shape, dtype):
    check_rule(*shape, 1.0, dtype, "triton", budget=64)


def test_the_weight_gradient_does_not_drift_over_many_chunks():
    """Summing 64 chunks in bfloat16 would lose a digit; one rounding at the end does not."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(256, 16, generator=g).bfloat16().requires_grad_()
    w = torch.randn(64, 16, generator=g).bfloat16().requires_grad_()
    t = {"targets": torch.randint(64, (256,)), "advantages": torch.ones(256), "weights": torch.full((256,), 1 / 256)}
    (one,) = torch.autograd.grad(linear_policy_loss(h, w, **t).loss, w)
    (many,) = torch.autograd.grad(linear_policy_loss(h, w, **t, logits_budget_mb=4 * 64 * 6 / 2**20).loss, w)
    assert error(many, one.double()) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_token_logprobs_against_pytorch(dtype):
    ours = theirs = 0.0
    for seed in range(SEEDS):
        rng = torch.Generator().manual_seed(seed)
        z = (3 * torch.randn(9, 257, generator=rng)).to(dtype).requires_grad_()
        targets, g = torch.randint(257, (9,), generator=rng), torch.randn(9, generator=rng)
        before = z.detach().clone()
        out = token_logprobs(z, targets, 0.7, entropy=True)
        wide = z.detach().double().requires_grad_()
        results = []
        for logits in (wide, z):  # float64, and plain PyTorch in float32 as it would be written
            table = torch.log_softmax((logits if logits is wide else logits.float()) / 0.7, 1)
            logprobs, entropy = table.gather(1, targets[:, None])[:, 0], -(table.exp() * table).sum(1)
            loss = (g * logprobs).sum() + (g * entropy).sum()
            results.append((logprobs, entropy, torch.autograd.grad(loss, logits)[0]))
        (exact_logprobs, exact_entropy, exact), (_, _, plain) = results
        assert torch.allclose(out.logprobs.double(), exact_logprobs, atol=2e-6)
        assert torch.allclose(out.entropy.double(), exact_entropy, atol=2e-6)
        (mine,) = torch.autograd.grad((g * out.logprobs).sum() + (g * out.entropy).sum(), z)
        ours, theirs = ours + error(mine, exact) / SEEDS, theirs + error(plain, exact) / SEEDS
        assert torch.equal(z.detach(), before)
    assert ours <= 1.5 * theirs + 2 * torch.finfo(dtype).eps
