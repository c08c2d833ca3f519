"""Whether the kernels are right on this GPU: python -m benchmarks.gpu.checks --out DIR [--minutes M] [--rehearse]

Writes DIR/checks.json after every check.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.progress import Options, Skip, Steps, parse, require, run_steps
from benchmarks.kernels.accuracy import relative_errors
from benchmarks.kernels.case import Case, make_inputs
from benchmarks.kernels.ours import make_eager, make_ours
from benchmarks.kernels.presets import LARGE, QWEN, SMALL, SMOL
from benchmarks.kernels.results import ROOT
from dyme_kernels import SURROGATES, LossSpec, group_advantages, linear_policy_loss, policy_loss

RATIO = 1.5  # of plain PyTorch's own error
ULP = 1.2e-7
SEEDS = 3
SANITIZER_S = 150


def gpu_files() -> list[Path]:
    """Those with tests that want a GPU: others may import what is not installed there."""
    return sorted(p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text())


def pytest_gpu(options: Options, file: Path) -> dict[str, Any]:
    """The tests of a file that want a GPU. A file at a time: what is killed at its time limit takes no others along."""
    require(["pytest"])
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"])[-1]
    if done.returncode == 5:
        raise Skip(f"no test is marked gpu: {last}")
    if done.returncode:
        raise AssertionError(f"{last}\n{done.stdout[-2000:]}")
    if "passed" not in last:
        raise Skip(f"no test ran: {last}")
    return {"detail": last}


def accuracy(options: Options, case: Case) -> dict[str, Any]:
    """Errors of the Triton path against the oracle, over those of plain PyTorch; means over seeds."""
    ours, eager = defaultdict[str, float](float), defaultdict[str, float](float)
    for seed in range(SEEDS):
        inputs = make_inputs(case, options.device, seed)
        for total, calls in ((ours, make_ours(inputs, "triton")), (eager, make_eager(inputs))):
            calls.reset()
            for name, error in relative_errors(inputs, calls.forward_backward()).items():  # type: ignore[misc]
                total[name] += error / SEEDS
    ratios = {name: ours[name] / max(eager[name], ULP) for name in ours}
    for name, error in ours.items():
        limit = max(RATIO * eager[name] + 2 * ULP, 1e-5 if name == "loss" else 0.0)
        if not error <= limit:
            raise AssertionError(f"{name}: error {error:.3g}, torch's {eager[name]:.3g}, allowed {limit:.3g}")
    return {"errors": ours, "ratios": ratios, "detail": " ".join(f"{k} {v:.2f}" for k, v in ratios.items())}


def backends(options: Options, dtype: str) -> dict[str, Any]:
    """Every surrogate with every option, Triton against the torch implementation on the same inputs."""
    case = Case("logits_policy", 12 if options.rehearse else 512, 333 if options.rehearse else QWEN[0], live=0.75)
    inputs = make_inputs(replace(case, dtype=dtype), options.device)
    n = case.tokens
    memorize = torch.arange(n, device=options.device) % 3 == 0
    limit = 2e-5 if dtype == "float32" else 8e-3 if options.rehearse else 2e-3  # the interpreter truncates to bfloat16
    worst = 0.0
    for surrogate in SURROGATES:
        for options_ in ({}, {"beta": 0.1, "entropy_coef": 0.05, "temperature": 0.7, "delta": 1.3}):
            spec = LossSpec(surrogate=surrogate, **options_)  # type: ignore[arg-type]
            found: dict[str, dict[str, Tensor]] = {}
            for backend in ("triton", "torch"):
                logits = inputs.logits.clone().requires_grad_()
                out = policy_loss(
                    logits, inputs.targets, inputs.advantages, inputs.weights, inputs.old_logprobs,
                    inputs.old_logprobs + 0.1, memorize, segments=torch.arange(n, device=options.device) // case.length,
                    live=inputs.live, spec=spec, backend=backend,
                )  # fmt: skip
                out.loss.backward()
                found[backend] = {k: v for k, v in vars(out).items() if not k.startswith(("clipped", "argmax"))}
                found[backend]["gradient"] = logits.grad  # type: ignore[assignment]
            for name, true in found["torch"].items():
                error = _distance(found["triton"][name], true)
                worst = max(worst, error)
                if not error <= limit:
                    raise AssertionError(f"{surrogate} {options_}: {name} is {error:.3g} off, allowed {limit:.3g}")
    return {"worst": worst, "detail": f"worst {worst:.2g}"}


def _distance(found: Tensor, true: Tensor) -> float:
    found, true = found.detach().double(), true.detach().double()
    return float((found - true).norm() / true.norm().clamp(min=1e-30))


def large_rows(options: Options) -> dict[str, Any]:
    """N V beyond 2^31: the last rows equal the same rows computed alone, bit by bit."""
    case = Case("logits_policy", 12 if options.rehearse else 16384, 333 if options.rehearse else QWEN[0])
    inputs = make_inputs(case, options.device)
    last = slice(case.tokens - 8, case.tokens)
    rest = (inputs.targets, inputs.advantages, inputs.weights, inputs.old_logprobs)
    found = []
    for place in (slice(None), last):
        logits = inputs.logits[place].clone().requires_grad_()
        targets, advantages, weights, old = (x[place] for x in rest)
        out = policy_loss(logits, targets, advantages, weights, old, backend="triton")
        out.loss.backward()
        assert logits.grad is not None
        found.append((logits.grad[-8:].clone(), out.logprobs[-8:]))
    for what, whole, alone in zip(("gradients", "log-probabilities"), *found, strict=True):
        _same(whole, alone, f"{what} of the last rows")
    return {"detail": f"N V = {case.tokens * case.vocabulary}"}


def _same(one: Tensor, other: Tensor, what: str) -> None:
    if not torch.equal(one, other):
        raise AssertionError(f"{what} differ by {float((one.double() - other.double()).abs().max()):.3g}")


def deterministic(options: Options) -> dict[str, Any]:
    """Two equal calls give equal bits; another logits_budget_mb changes no more than the rounding of the sum."""
    n, (v, h) = (12, (333, 16)) if options.rehearse else (4096, QWEN)
    inputs = make_inputs(Case("linear_policy", n, v, h), options.device)
    budgets = (256.0, 256.0, 0.003 if options.rehearse else 64.0)
    results = []
    for budget in budgets:
        outcome = make_ours(inputs, "triton", budget).forward_backward()  # type: ignore[misc]
        results.append({**outcome.gradients, "loss": outcome.loss, "logprobs": outcome.logprobs})
    for name in results[0]:
        _same(results[0][name], results[1][name], name)
    change = _distance(results[2]["weight"], results[0]["weight"])
    if not change <= 4e-3:
        raise AssertionError(f"another budget changes the weight's gradient by {change:.3g}, allowed 4e-3")
    return {"detail": f"another budget: {change:.2g}"}


def groups(options: Options) -> dict[str, Any]:
    """Ragged groups, NaN and unscored rewards, against float64 on the CPU."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 17, (8 if options.rehearse else 1000,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    rewards = torch.rand(int(offsets[-1]), generator=g).round(decimals=1)
    rewards[torch.rand(rewards.shape, generator=g) < 0.1] = torch.nan
    true = group_advantages(rewards.double(), offsets, backend="torch")
    found = group_advantages(rewards.to(options.device), offsets.to(options.device), backend="triton")
    if not torch.equal(found.num_scored.cpu(), true.num_scored):
        raise AssertionError("num_scored differs")
    for name in ("advantages", "mean", "variance", "std"):
        error = float((getattr(found, name).cpu().double() - getattr(true, name)).abs().max())
        if not error <= 2e-5:
            raise AssertionError(f"{name} is {error:.3g} off")
    return {}


def no_synchronisation(options: Options) -> dict[str, Any]:
    """Forward and backward never wait for the GPU."""
    if options.device.type != "cuda":
        raise Skip("needs a GPU")
    inputs = make_inputs(Case("linear_policy", 600, *SMOL, live=0.5), options.device)
    calls = make_ours(inputs, "triton")
    calls.forward_backward()  # type: ignore[misc]
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        calls.forward_backward()  # type: ignore[misc]
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return {}


def sanitizer(options: Options, tool: str) -> dict[str, Any]:
    """Small calls of every kernel under compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None or options.device.type != "cuda":
        raise Skip("compute-sanitizer is not on the PATH" if program is None else "needs a GPU")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.checks", "small"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=SANITIZER_S)
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    if done.returncode:
        raise AssertionError(next((x for x in lines if "=========" in x and len(x) > 12), lines[-1]))
    return {"detail": lines[-1]}


def small_calls(device: torch.device) -> None:
    """Every kernel once, at sizes that a sanitizer can bear: vocabularies that end inside a block and span several."""
    for vocabulary in (257, 20011):
        n = 7
        inputs = make_inputs(Case("logits_policy", n, vocabulary, live=0.5), device)
        logits = inputs.logits.clone().requires_grad_()
        spec = LossSpec(beta=0.1, entropy_coef=0.05)
        common = (inputs.targets, inputs.advantages, inputs.weights, inputs.old_logprobs, inputs.old_logprobs)
        policy_loss(logits, *common, live=inputs.live, spec=spec, backend="triton").loss.backward()
        segments = torch.arange(n, device=device) // 3
        gspo = replace(spec, surrogate="gspo")
        policy_loss(logits, *common, segments=segments, spec=gspo, backend="triton").loss.backward()
        hidden = torch.randn(n, 16, device=device, requires_grad=True)
        weight = torch.randn(vocabulary, 16, device=device, requires_grad=True)
        softcap = replace(spec, logit_softcap=30.0)
        linear_policy_loss(hidden, weight, *common, spec=softcap, backend="triton").loss.backward()
    offsets = torch.tensor([0, 3, 3, 8], device=device)
    group_advantages(torch.rand(8, device=device), offsets, backend="triton")
    if device.type == "cuda":
        torch.cuda.synchronize()


def checks(options: Options) -> Steps:
    # float32: Triton's interpreter truncates to bfloat16, a GPU rounds to the nearest
    tiny = (
        Case("linear_policy", 12, 333, 16, dtype="float32"),
        Case("logits_policy", 12, 333, peaked=True, dtype="float32"),
    )
    real = (
        *(Case("linear_policy", 600, *shape) for shape in (QWEN, SMALL, SMOL, LARGE)),
        Case("linear_policy", 4096, *QWEN, peaked=True),
        Case("linear_ce", 600, *QWEN, live=0.25),
        *(Case(task, 4096, QWEN[0], peaked=p) for task in ("logits_policy", "logprobs") for p in (False, True)),
        Case("logits_policy", 600, QWEN[0], dtype="float32"),
    )
    found: Steps = {
        f"accuracy {case.name}": partial(accuracy, options, case) for case in (tiny if options.rehearse else real)
    }
    return found | {
        "backends float32": partial(backends, options, "float32"),
        "backends bfloat16": partial(backends, options, "bfloat16"),
        "large rows": partial(large_rows, options),
        "deterministic": partial(deterministic, options),
        "groups": partial(groups, options),
        "no synchronisation": partial(no_synchronisation, options),
        **{f"pytest {f.name}": partial(pytest_gpu, options, f) for f in gpu_files()[: 1 if options.rehearse else None]},
        "memcheck": partial(sanitizer, options, "memcheck"),
        "racecheck": partial(sanitizer, options, "racecheck"),
    }


def main(arguments: list[str] | None = None) -> int:
    if (arguments or sys.argv[1:]) == ["small"]:
        small_calls(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return 0
    options = parse(__doc__, arguments)
    return run_steps(options.out / "checks.json", options, checks(options))


if __name__ == "__main__":
    sys.exit(main())
