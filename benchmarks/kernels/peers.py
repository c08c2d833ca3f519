"""Other libraries, called as their own trainers call them."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
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


def _live_count(inputs: Inputs) -> int:
    return inputs.case.tokens if inputs.live is None else inputs.live.numel()


def torch_obstacle(device: torch.device) -> str | None:
    has = hasattr(torch.nn.functional, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")
    return None if has else f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy (2.13 has)"


def make_torch_linear(inputs: Inputs) -> Calls:
    options: Any = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
    count = max(1, _live_count(inputs))

    def compute(hidden: Tensor, weight: Tensor) -> Result:
        total = torch.nn.functional.linear_cross_entropy(  # type: ignore[attr-defined]
            hidden, weight, inputs.labels, reduction="sum", ignore_index=-100, options=options
        )
        return total / count, None

    return linear_calls(inputs, compute)


def trl_obstacle(device: torch.device) -> str | None:
    return needs_package("trl")


def trl_logits_obstacle(device: torch.device) -> str | None:
    return needs_package("trl") or needs_triton(device)


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


def liger_obstacle(device: torch.device) -> str | None:
    return needs_package("liger_kernel") or needs_triton(device)


def liger_linear_obstacle(device: torch.device) -> str | None:
    return needs_package("liger_kernel") or needs_package("triton")


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
    count = max(1, _live_count(inputs))
    return linear_calls(inputs, lambda hidden, weight: (loss(weight, hidden, inputs.labels) / count, None))


def cce_obstacle(device: torch.device) -> str | None:
    return needs_package("cut_cross_entropy") or needs_triton(device)


def make_cce(inputs: Inputs) -> Calls:
    from cut_cross_entropy import linear_cross_entropy

    count = max(1, _live_count(inputs))

    def compute(hidden: Tensor, weight: Tensor) -> Result:
        return linear_cross_entropy(hidden, weight, inputs.labels, reduction="sum") / count, None

    return linear_calls(inputs, compute)


def quack_obstacle(device: torch.device) -> str | None:
    return needs_package("quack") or (None if device.type == "cuda" else "needs a GPU (Hopper or newer)")


def make_quack(inputs: Inputs) -> Calls:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    count = max(1, _live_count(inputs))

    def compute(hidden: Tensor, weight: Tensor) -> Result:
        return chunked_linear_cross_entropy(hidden, weight, inputs.labels, reduction="sum") / count, None

    return linear_calls(inputs, compute)


PROVIDERS = (
    Provider("torch linear_cross_entropy", ("linear_ce",), "computes", torch_obstacle, make_torch_linear),
    Provider("trl chunked_logprob", ("linear_policy", "linear_ce"), "drops", trl_obstacle, make_trl_chunked),
    Provider("trl logprob_entropy", ("logits_policy", "logprobs"), "skips", trl_logits_obstacle, make_trl_logits),
    Provider("liger triton_grpo_loss", ("logits_policy",), "skips", liger_obstacle, make_liger_grpo),
    Provider("liger linear grpo", ("linear_policy",), "computes", liger_linear_obstacle, make_liger_linear_grpo),
    Provider("liger linear ce", ("linear_ce",), "computes", liger_obstacle, make_liger_linear_ce),
    Provider("cut-cross-entropy", ("linear_ce",), "drops", cce_obstacle, make_cce),
    Provider("quack", ("linear_ce",), "computes", quack_obstacle, make_quack),
)
