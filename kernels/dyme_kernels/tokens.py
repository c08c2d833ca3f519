"""The per-token side of the losses: what goes in, what comes out, and which tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dyme_kernels.spec import LossSpec


@dataclass(frozen=True)
class TokenBatch:
    """The tokens that count, n of them, as vectors in the compute dtype (float32, or float64 for float64 logits).

    targets [n] int64; advantages, weights [n]; old_logprobs, ref_logprobs, importance [n] or None; memorize [n] bool or
    None; segments [n] int64 in 0..n-1, equal for the tokens of a row, or None.
    """

    targets: Tensor
    advantages: Tensor
    weights: Tensor
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    memorize: Tensor | None
    importance: Tensor | None
    segments: Tensor | None

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Tokens start..stop-1. Views, no copies."""
        whole: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        part: dict[str, Any] = {name: None if x is None else x[start:stop] for name, x in whole.items()}
        return TokenBatch(**part)

    def needs_whole_rows(self, spec: LossSpec) -> bool:
        """Whether a token's loss depends on the other tokens of its row (gspo off-policy)."""
        return spec.surrogate == "gspo" and self.segments is not None

    def inverse_temperature(self, spec: LossSpec) -> Tensor | float:
        """1 / T, as [n] where memorized tokens have one of their own."""
        if self.memorize is None or spec.memorize_temperature == spec.temperature:
            return 1.0 / spec.temperature
        inverse = torch.full_like(self.weights, 1.0 / spec.temperature)
        return inverse.masked_fill_(self.memorize, 1.0 / spec.memorize_temperature)


@dataclass(frozen=True)
class PolicyLossOutput:
    """A loss and what its tokens did. Everything but `loss` is detached, [N], float32 (float64 for float64 logits).

    Tokens outside `live` have 0 everywhere and ratio 1.

    loss: scalar, sum of weights * token loss; its backward gives the gradient of the logits (or hidden and weight).
    logprobs: log-probability of the target at the token's temperature.
    entropy: entropy of the distribution at that temperature, in nats.
    ratio: policy / old policy, unclipped; the row's ratio for gspo; 1 on-policy and for memorized tokens.
    clipped_low, clipped_high: 1 where the clip binds (ratio below 1 - epsilon_low with A < 0; ratio above
        1 + epsilon_high, or cispo_cap, with A > 0), else 0.
    kl: k3 estimate against `ref_logprobs`, 0 without them and for memorized tokens.
    argmax_match: 1 where no token has a larger logit than the target, else 0.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl: Tensor
    argmax_match: Tensor


VECTORS = tuple(f.name for f in fields(TokenBatch))
STATISTICS = tuple(f.name for f in fields(PolicyLossOutput) if f.name != "loss")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_batch(
    size: int,
    dtype: torch.dtype,
    vocabulary: int,
    vectors: Sequence[Tensor | None],
    live: Tensor | None,
    spec: LossSpec,
) -> TokenBatch:
    """Check the arguments of a loss, drop the tokens outside `live`, and bring the rest to the compute dtype.

    vectors: those of `TokenBatch` in its order, [size] each. Raises ValueError naming the argument. Values are looked
    at on the CPU only: elsewhere that would synchronise.
    """
    given = dict(zip(VECTORS, vectors, strict=True))
    for name, x in given.items():
        if x is not None and x.shape != (size,):
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected ({size},), one entry per token: flatten it")
    if (memorize := given["memorize"]) is not None and memorize.dtype != torch.bool:
        raise ValueError(f"memorize is {memorize.dtype}, expected torch.bool: pass memorize.bool()")
    if live is not None and (live.dtype != torch.int64 or live.dim() != 1):
        raise ValueError("live must be a vector of int64 indices: pass mask.nonzero().squeeze(1) for a mask")
    if spec.beta != 0.0 and given["ref_logprobs"] is None:
        raise ValueError(f"LossSpec.beta={spec.beta} needs ref_logprobs: pass them, or set beta=0.0")
    if spec.surrogate == "gspo" and given["old_logprobs"] is not None and given["segments"] is None:
        raise ValueError("surrogate 'gspo' with old_logprobs needs segments, the row index of each token")

    def pick(x: Tensor | None, kind: torch.dtype) -> Tensor | None:
        if x is None:
            return None
        return (x if live is None else x.index_select(0, live)).detach().to(kind)

    kinds = {"targets": torch.int64, "memorize": torch.bool, "segments": torch.int64}
    chosen: dict[str, Any] = {name: pick(x, kinds.get(name, dtype)) for name, x in given.items()}
    check_targets(chosen["targets"], vocabulary)
    if chosen["segments"] is not None:
        chosen["segments"] = _dense(chosen["segments"])
    return TokenBatch(**chosen)


def check_targets(targets: Tensor, vocabulary: int) -> None:
    """Raise ValueError for a target outside the vocabulary (on the CPU only)."""
    if targets.device.type != "cpu" or targets.numel() == 0:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"targets run from {low} to {high}, the vocabulary has {vocabulary} tokens: leave padding such as -100 out "
            "with live=, the indices of the tokens that count"
        )


def _dense(rows: Tensor) -> Tensor:
    """[n] any row numbers -> [n] numbers below n. The caller's may exceed n, and their maximum would synchronise."""
    ordered, order = torch.sort(rows, stable=True)
    steps = torch.zeros_like(ordered)
    steps[1:] = (ordered[1:] != ordered[:-1]).to(steps.dtype)
    return torch.empty_like(rows).index_copy_(0, order, steps.cumsum(0))


def spread(values: Sequence[Tensor], live: Tensor | None, size: int) -> list[Tensor]:
    """The statistics of PolicyLossOutput in its order, [n] of the live tokens -> [size], as it says for the others."""
    if live is None:
        return list(values)
    fills = [float(name == "ratio") for name in STATISTICS]
    return [x.new_full((size,), fill).index_copy_(0, live, x) for x, fill in zip(values, fills, strict=True)]
