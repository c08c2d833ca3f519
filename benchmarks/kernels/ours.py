"""This repository's operations, and plain PyTorch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels.case import Inputs, token_losses
from benchmarks.kernels.provider import (
    Calls,
    Outcome,
    Provider,
    Result,
    linear_calls,
    logits_calls,
    needs_package,
    runs_anywhere,
)
from dyme_kernels import LossSpec, group_advantages, linear_policy_loss, policy_loss, sample_tokens, token_logprobs

LINEAR = ("linear_policy", "linear_ce")
LOSSES = (*LINEAR, "logits_policy", "logprobs")


def make_ours(inputs: Inputs, backend: str = "auto", budget_mb: float = 256) -> Calls:
    """`budget_mb`: logits_budget_mb, of the linear tasks."""
    case = inputs.case
    spec = LossSpec()
    ones = torch.ones_like(inputs.weights)

    def linear(hidden: Tensor, weight: Tensor) -> Result:
        ce = case.task == "linear_ce"  # memorized tokens with advantage 1
        out = linear_policy_loss(
            hidden, weight, inputs.targets, ones if ce else inputs.advantages, inputs.weights,
            old_logprobs=None if ce else inputs.old_logprobs, memorize=inputs.mask if ce else None, live=inputs.live,
            spec=spec, logits_budget_mb=budget_mb, backend=backend,
        )  # fmt: skip
        return out.loss, out.logprobs

    def policy(logits: Tensor) -> Result:
        out = policy_loss(
            logits, inputs.targets, inputs.advantages, inputs.weights, inputs.old_logprobs, live=inputs.live, spec=spec,
            backend=backend,
        )  # fmt: skip
        return out.loss, out.logprobs

    def logprobs(logits: Tensor) -> Result:
        found = token_logprobs(logits, inputs.targets, entropy=True, backend=backend).logprobs
        return (inputs.weights * found).sum(), found

    if case.is_linear:
        return linear_calls(inputs, linear)
    if case.task == "advantages":
        offsets = torch.arange(0, case.tokens + 1, case.group, device=inputs.device)

        def groups() -> Outcome:
            return Outcome(group_advantages(inputs.rewards, offsets, backend=backend).advantages.sum())

        return Calls(groups, None)
    if case.task == "sample":
        return sampling_calls(inputs, backend)
    return logits_calls(inputs, policy if case.task == "logits_policy" else logprobs)


def sampling_calls(inputs: Inputs, backend: str) -> Calls:
    places = torch.arange(inputs.case.tokens, device=inputs.device)

    def sample() -> Outcome:
        logprobs = sample_tokens(inputs.logits, inputs.targets, places, backend=backend)[1]
        return Outcome(logprobs.sum(), logprobs)

    return Calls(sample, None)


def plain_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """What most trainers do: log-softmax in float32 of logits in their dtype."""
    return torch.log_softmax(logits.float(), -1).gather(1, targets[:, None]).squeeze(1)


def _logits_loss(task: str, logits: Tensor, targets: Tensor, *rest: Tensor) -> Result:
    logprobs = plain_logprobs(logits, targets)
    return token_losses(task, logprobs, *rest).sum(), logprobs


def _linear_loss(task: str, hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Tensor) -> Result:
    return _logits_loss(task, hidden @ weight.T, targets, *rest)


def _group_loss(rewards: Tensor, group: int) -> Tensor:
    table = rewards.view(-1, group)
    centred = table - table.mean(1, keepdim=True)
    return (centred / (table.std(1, keepdim=True) + 1e-4)).sum()


def make_eager(inputs: Inputs, compiled: bool = False) -> Calls:
    case = inputs.case
    if case.task == "sample":
        return sampling_calls(inputs, "torch")
    rest = (inputs.targets, inputs.old_logprobs, inputs.advantages, inputs.weights)
    if case.task == "advantages":
        group_loss = torch.compile(_group_loss) if compiled else _group_loss
        return Calls(lambda: Outcome(group_loss(inputs.rewards, case.group)), None)
    if case.is_linear:
        linear_loss = torch.compile(_linear_loss) if compiled else _linear_loss
        return linear_calls(inputs, lambda hidden, weight: linear_loss(case.task, hidden, weight, *rest))
    logits_loss = torch.compile(_logits_loss) if compiled else _logits_loss
    return logits_calls(inputs, lambda logits: logits_loss(case.task, logits, *rest))


def compile_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "torch.compile generates C++ on a CPU: measured on a GPU only"
    return needs_package("triton")


PROVIDERS = (
    Provider("ours", (*LOSSES, "sample", "advantages"), "drops", runs_anywhere, make_ours),
    Provider("ours, 1 GiB of logits", LINEAR, "drops", runs_anywhere, partial(make_ours, budget_mb=1024)),
    Provider("torch eager", (*LOSSES, "sample", "advantages"), "computes", runs_anywhere, make_eager),
    Provider(
        "torch.compile", (*LOSSES, "advantages"), "computes", compile_obstacle, partial(make_eager, compiled=True)
    ),
)
