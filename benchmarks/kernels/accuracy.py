"""Errors against a high-precision oracle, relative to what plain PyTorch makes of the same inputs."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from benchmarks.kernels.case import Inputs, chunks, token_losses
from benchmarks.kernels.provider import Outcome

FLOAT64_FLOPS = 3e13
"""Products larger than this are compared with a float32 oracle."""


def _relative(error: float, true: float) -> float:
    """Of squares. NaN stays NaN; an exact zero of a true zero is 0, anything else of it infinite."""
    if true > 0.0:
        return math.sqrt(error / true)
    return 0.0 if error == 0.0 else math.inf if error > 0.0 else math.nan


def relative_errors(inputs: Inputs, outcome: Outcome) -> dict[str, float]:
    """||found - true|| / ||true|| of logprobs (live tokens) and each gradient of `outcome`; of the loss, its error over
    the sum of the tokens' absolute losses."""
    case = inputs.case
    flops = 6 * case.tokens * case.vocabulary * max(1, case.width)
    wide = torch.float64 if flops <= FLOAT64_FLOPS else torch.float32
    errors, trues = defaultdict[str, float](float), defaultdict[str, float](float)  # sums of squares

    def add(name: str, found: Tensor, true: Tensor) -> None:
        errors[name] += float((found.to(true.dtype) - true).square().sum())
        trues[name] += float(true.square().sum())

    mask = inputs.mask.to(wide)
    losses = []
    weight = inputs.weight.to(wide)
    total = torch.zeros_like(weight) if "weight" in outcome.gradients else None
    logprobs = outcome.logprobs
    if logprobs is not None and inputs.live is not None and logprobs.numel() == inputs.live.numel():
        logprobs = torch.zeros_like(inputs.weights).index_copy_(0, inputs.live, logprobs.float())
    for place in chunks(case, wide.itemsize):
        hidden = inputs.hidden[place].to(wide) if case.is_linear else None
        z = inputs.logits[place].to(wide) if hidden is None else hidden @ weight.T
        targets = inputs.targets[place, None]
        table = torch.log_softmax(z, 1)
        exact = table.gather(1, targets).squeeze(1).requires_grad_()
        rest = (x[place].to(wide) for x in (inputs.old_logprobs, inputs.advantages, inputs.weights))
        terms = token_losses(case.task, exact, *rest)
        (c,) = torch.autograd.grad(terms.sum(), exact)
        losses.append(terms.detach())
        if logprobs is not None:
            add("logprobs", logprobs[place].to(wide) * mask[place], exact.detach() * mask[place])
        if outcome.gradients:
            gradient = table.exp_().mul_(-c[:, None])
            gradient.scatter_add_(1, targets, c[:, None])
            if "logits" in outcome.gradients:
                add("logits", outcome.gradients["logits"][place], gradient)
            if "hidden" in outcome.gradients:
                add("hidden", outcome.gradients["hidden"][place], gradient @ weight)
            if total is not None and hidden is not None:
                total.addmm_(gradient.T, hidden)
    all_losses = torch.cat(losses)
    add("loss", outcome.loss, all_losses.sum())
    trues["loss"] = float(all_losses.abs().sum().square())  # advantages of both signs may cancel
    if total is not None:
        add("weight", outcome.gradients["weight"], total)
    return {name: _relative(error, trues[name]) for name, error in errors.items()}


def over_torch(errors: dict[str, float], eager: dict[str, float], ulp: float) -> dict[str, float]:
    """Each error divided by plain PyTorch's. Errors below `ulp`, the resolution of the oracle's inputs, count as it:
    the ratio of two roundings of a sum says nothing."""
    return {name: max(error, ulp) / max(eager[name], ulp) for name, error in errors.items() if name in eager}
