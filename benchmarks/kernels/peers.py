"""Other libraries, called as their own trainers call them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.case import EPSILON, Inputs, token_losses
from benchmarks.kernels.provider import (
    Calls,
    Provider,
    Result,
    linear_calls,
    logits_calls,
    needs_package,
    needs_triton,
)

TRL_VOCABULARY_CHUNK = 32768  # trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE of 1.16


def _needs(*packages: str, gpu: str = "") -> Callable[[torch.device], str | None]:
    """An obstacle where a package lacks, or a GPU. gpu: why one is needed; "triton" where an interpreter does too."""

    def obstacle(device: torch.device) -> str | None:
        if why := next(filter(None, map(needs_package, packages)), None):
            return why
        if gpu == "triton":
            return needs_triton(device)
        return gpu if gpu and device.type != "cuda" else None

    return obstacle


def _mean_ce(inputs: Inputs, total: Callable[[Tensor, Tensor], Tensor]) -> Calls:
    """Calls of a sum of cross-entropies, from hidden states and weight, over the number of live tokens."""
    count = max(1, inputs.case.tokens if inputs.live is None else inputs.live.numel())
    return linear_calls(inputs, lambda hidden, weight: (total(hidden, weight) / count, None))


def torch_obstacle(device: torch.device) -> str | None:
    has = hasattr(torch.nn.functional, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")
    return None if has else f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy (2.13 has)"


def make_torch_linear(inputs: Inputs) -> Calls:
    options: Any = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
    loss = torch.nn.functional.linear_cross_entropy  # type: ignore[attr-defined]
    given = {"reduction": "sum", "ignore_index": -100, "options": options}
    return _mean_ce(inputs, lambda hidden, weight: loss(hidden, weight, inputs.labels, **given))


def _trl_utils() -> None:
    """TRL's backward imports trl.trainer.utils for one function, which gathers the head under ZeRO-3. Where packages
    that this module needs are missing, a null context takes its place: there is no ZeRO-3 here."""
    if importlib.util.find_spec("datasets") is None and "trl.trainer.utils" not in sys.modules:
        package, module = ModuleType("trl.trainer"), ModuleType("trl.trainer.utils")
        module.maybe_gather_lm_head_ctx = lambda *_: nullcontext()  # type: ignore[attr-defined]
        package.utils = module  # type: ignore[attr-defined]
        sys.modules.setdefault("trl.trainer", package)
        sys.modules["trl.trainer.utils"] = module


def make_trl_chunked(inputs: Inputs) -> Calls:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    _trl_utils()
    targets, old, advantages, weights = (
        inputs.pick(x) for x in (inputs.targets, inputs.old_logprobs, inputs.advantages, inputs.weights)
    )

    def compute(hidden: Tensor, weight: Tensor) -> Result:
        logprobs, *_ = ChunkedLogProbFunction.apply(
            inputs.pick(hidden), weight, None, targets, 1.0, TRL_VOCABULARY_CHUNK, None, 1.0, ("entropy",)
        )
        return token_losses(inputs.case.task, logprobs, old, advantages, weights).sum(), logprobs

    return linear_calls(inputs, compute)


def make_trl_logits(inputs: Inputs) -> Calls:
    from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

    mask = None if inputs.live is None else inputs.mask

    def compute(logits: Tensor) -> Result:
        logprobs, _ = selective_log_softmax_and_entropy(logits, inputs.targets, 1.0, mask)
        losses = token_losses(inputs.case.task, logprobs, inputs.old_logprobs, inputs.advantages, inputs.weights)
        return losses.sum(), logprobs

    return logits_calls(inputs, compute)


def _by_row(inputs: Inputs, values: Tensor) -> Tensor:
    return values.view(inputs.rows, inputs.case.length)


def make_liger_grpo(inputs: Inputs) -> Calls:
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    old, ids, weights = (_by_row(inputs, x) for x in (inputs.old_logprobs, inputs.targets, inputs.weights))
    mask = None if inputs.live is None else _by_row(inputs, inputs.mask).int()
    advantages = _by_row(inputs, inputs.advantages)[:, 0].contiguous()

    def compute(logits: Tensor) -> Result:
        losses, *_ = triton_grpo_loss(
            logits, old, None, ids, advantages, mask, temperature=1.0, beta=0.0, eps_low=EPSILON, eps_high=EPSILON,
            inplace=True, loss_type="grpo", reduce=False,
        )  # fmt: skip
        return (losses * weights).sum(), None

    return logits_calls(inputs, compute, extra_row=True)


def make_liger_linear_grpo(inputs: Inputs) -> Calls:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=inputs.device.type == "cuda", use_ref_model=False, epsilon_low=EPSILON, epsilon_high=EPSILON,
        loss_type="dapo", temperature=1.0,
    )  # fmt: skip
    old, ids, mask = (_by_row(inputs, x) for x in (inputs.old_logprobs, inputs.targets, inputs.mask.float()))
    advantages = _by_row(inputs, inputs.advantages)[:, 0].contiguous()

    def compute(hidden: Tensor, weight: Tensor) -> Result:
        states = hidden.view(inputs.rows, inputs.case.length, -1)
        return loss(states, weight, ids, mask, advantages, old_per_token_logps=old)[0], None

    return linear_calls(inputs, compute)


def make_liger_linear_ce(inputs: Inputs) -> Calls:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return _mean_ce(inputs, lambda hidden, weight: loss(weight, hidden, inputs.labels))


def make_summed_ce(inputs: Inputs, module: str, name: str) -> Calls:
    """A library's function of hidden states, weight, labels and reduction."""
    loss = getattr(importlib.import_module(module), name)
    return _mean_ce(inputs, lambda hidden, weight: loss(hidden, weight, inputs.labels, reduction="sum"))


make_cce = partial(make_summed_ce, module="cut_cross_entropy", name="linear_cross_entropy")
make_quack = partial(make_summed_ce, module="quack.linear_cross_entropy", name="chunked_linear_cross_entropy")

PROVIDERS = (
    Provider("torch linear_cross_entropy", ("linear_ce",), "computes", torch_obstacle, make_torch_linear),
    Provider("trl chunked_logprob", ("linear_policy", "linear_ce"), "drops", _needs("trl"), make_trl_chunked),
    Provider(
        "trl logprob_entropy", ("logits_policy", "logprobs"), "skips", _needs("trl", gpu="triton"), make_trl_logits
    ),
    Provider(
        "liger triton_grpo_loss", ("logits_policy",), "skips", _needs("liger_kernel", gpu="triton"), make_liger_grpo
    ),
    Provider(
        "liger linear grpo", ("linear_policy",), "computes", _needs("liger_kernel", "triton"), make_liger_linear_grpo
    ),
    Provider("liger linear ce", ("linear_ce",), "computes", _needs("liger_kernel", gpu="triton"), make_liger_linear_ce),
    Provider("cut-cross-entropy", ("linear_ce",), "drops", _needs("cut_cross_entropy", gpu="triton"), make_cce),
    Provider("quack", ("linear_ce",), "computes", _needs("quack", gpu="needs a GPU (Hopper or newer)"), make_quack),
)
