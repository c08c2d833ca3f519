"""What is measured: a task at a shape, and its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

TASKS = {
    "linear_policy": "clipped policy loss of hidden states and head weight; gradients of both",
    "linear_ce": "cross-entropy of hidden states and head weight; gradients of both",
    "logits_policy": "clipped policy loss of logits; gradient of the logits",
    "logprobs": "log-probability of a token under logits; gradient of the logits",
    "sample": "a sampled token a row and its log-probability",
    "advantages": "rewards of groups to advantages and group statistics",
}
EPSILON = 0.2
# Shares of groups that explore, memorize and are skipped, for the cases with groups.
EXPLORE, MEMORIZE = 0.3, 0.5
BOOST = 15.0  # added to the target's logit where logits are peaked: a probability of about 0.9 at V = 150000
CHUNK_BYTES = 1 << 30


@dataclass(frozen=True)
class Case:
    """One thing to measure. tokens N, vocabulary V, width H (0 where the task has no hidden states).

    live: share of each row's tokens that count. group: rows per group K; then the live rows are those that DyME
    trains (every row of an exploring group, one of a memorizing one, none of a mastered one) and `live` says nothing.
    For "advantages", tokens is the number of rewards. peaked: logits as sure of themselves as a trained model's.
    row: tokens of a row, a divisor of N; 0 is the largest up to 256 and N / 4.
    """

    task: str
    tokens: int
    vocabulary: int = 1
    width: int = 0
    live: float = 1.0
    group: int = 0
    peaked: bool = False
    row: int = 0
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        part = f"K={self.group}" if self.group else f"live={self.live:g}"
        size = f"N={self.tokens} V={self.vocabulary}" + (f" H={self.width}" if self.width else "")
        return f"{self.task} {size} {part}{' peaked' if self.peaked else ''} {self.dtype}"

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.row or next(n for n in range(max(1, min(256, self.tokens // 4)), 0, -1) if self.tokens % n == 0)

    @property
    def is_linear(self) -> bool:
        return self.task.startswith("linear")

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case, on one device. What a task does not use is empty.

    hidden [N,H], weight [V,H], logits [N,V] in the case's dtype; scratch: room for N/L x (L+1) x V logits, shared by
    the providers, whose calls may overwrite it. targets [N] int64; labels [N]: targets, -100 for dead tokens.
    advantages [N] float32, constant in a row; weights [N] float32: 1 / live tokens, 0 for dead ones; old_logprobs [N].
    mask [N] bool; live [n] int64, the indices where mask holds, or None where all do. rewards [N] for "advantages".
    """

    case: Case
    hidden: Tensor
    weight: Tensor
    logits: Tensor
    scratch: Tensor
    targets: Tensor
    labels: Tensor
    advantages: Tensor
    weights: Tensor
    old_logprobs: Tensor
    mask: Tensor
    live: Tensor | None
    rewards: Tensor

    @property
    def rows(self) -> int:
        return self.case.tokens // self.case.length

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def pick(self, values: Tensor) -> Tensor:
        """The live tokens' entries."""
        return values if self.live is None else values.index_select(0, self.live)


def live_mask(case: Case) -> Tensor:
    """[N] bool, on the CPU."""
    rows, length = case.tokens // case.length, case.length
    mask = torch.zeros(rows, length, dtype=torch.bool)
    if case.group and case.task != "advantages":
        groups = rows // case.group
        explore, memorize = round(EXPLORE * groups), round(MEMORIZE * groups)
        mask[: explore * case.group] = True
        mask[explore * case.group : (explore + memorize) * case.group : case.group] = True
    else:
        mask[:, : round(length * case.live)] = True
    return mask.flatten()


def token_losses(task: str, logprobs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """[n] weighted losses, whose sum every provider computes, from log-probabilities [n] and what belongs to them."""
    if task == "linear_ce":
        return -weights * logprobs
    if task == "logprobs":
        return weights * logprobs
    ratio = torch.exp(logprobs - old)
    held = ratio.clamp(1.0 - EPSILON, 1.0 + EPSILON)
    return -weights * torch.minimum(ratio * advantages, held * advantages)


def chunks(case: Case, itemsize: int) -> Iterator[slice]:
    """Rows whose logits take CHUNK_BYTES at most."""
    size = max(1, CHUNK_BYTES // (case.vocabulary * itemsize))
    for start in range(0, case.tokens, size):
        yield slice(start, min(start + size, case.tokens))


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Random inputs, the same for the same case, device and seed."""
    g = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    n, v, h = case.tokens, case.vocabulary, case.width

    def normal(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=g, device=device, dtype=kind)

    empty = torch.empty(0, device=device)
    targets = torch.randint(v, (n,), generator=g, device=device)
    hidden = weight = logits = scratch = old = rewards = empty
    if case.is_linear:
        weight = normal(v, h, kind=dtype) * h**-0.5
        hidden = normal(n, h, kind=dtype)
        if case.peaked:
            hidden += BOOST * weight.index_select(0, targets)
    elif case.task == "advantages":
        rewards = (torch.rand(n, generator=g, device=device) < 0.3).float()
    else:
        logits = normal(n, v, kind=dtype)
        if case.peaked:
            logits.scatter_add_(1, targets[:, None], torch.full_like(targets[:, None], BOOST, dtype=dtype))
        scratch = torch.empty(n // case.length * (case.length + 1) * v, device=device, dtype=dtype)
    if case.task != "advantages":
        exact = [_logprobs(hidden[p] @ weight.T if case.is_linear else logits[p], targets[p]) for p in chunks(case, 4)]
        old = torch.cat(exact) + 0.1 * normal(n)
    mask = live_mask(case).to(device)
    count = int(mask.sum())
    return Inputs(
        case=case,
        hidden=hidden,
        weight=weight,
        logits=logits,
        scratch=scratch,
        targets=targets,
        labels=targets.masked_fill(~mask, -100),
        advantages=normal(n // case.length).repeat_interleave(case.length),
        weights=mask.float() / max(1, count),
        old_logprobs=old,
        mask=mask,
        live=None if count == n else mask.nonzero().squeeze(1),
        rewards=rewards,
    )


def _logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits.float()
    return wide.gather(1, targets[:, None]).squeeze(1) - wide.logsumexp(1)
