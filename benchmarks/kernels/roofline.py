"""The least work a case can do, and the ceilings of the machine it is compared with."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from benchmarks.kernels.case import Case, live_mask


@dataclass(frozen=True)
class Work:
    """bytes: the fewest that must pass through device memory, each input read once and each output written once.
    flops: multiplications and additions of the matrix products, each counted once, with no recomputation."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Ceilings:
    """Measured: copy, bytes read plus bytes written a second by a large copy; matmul, FLOP a second by a large matrix
    product of random numbers in `dtype`."""

    copy: float
    matmul: float
    dtype: str


def work(case: Case, mode: str) -> Work:
    """Of `mode` "forward" or "forward_backward"; tokens that are not live need no work beside zeros in the gradient.

    Logits in: each live logit is read once (2 bytes in bfloat16), and with the gradient one is written for every logit.
    "logprobs" reads its logits again in the backward: the gradient that arrives there is not known before. "sample"
    reads each logit once.
    Linear: 2 N V H FLOPs, with gradients 6; weight and hidden are read once, their gradients written once.
    """
    size = getattr(torch, case.dtype).itemsize
    n, v, h = case.tokens, case.vocabulary, case.width
    live = int(live_mask(case).sum())
    both = mode == "forward_backward"
    if case.task == "advantages":
        groups = n // case.group
        return Work(4 * (2 * n + 5 * groups) + 8 * (2 * groups + groups + 1), 0)
    if case.is_linear:
        if not live:
            return Work(size * (n + v) * h if both else 0, 0)
        moved = size * (live + v) * h + (size * (n + v) * h if both else 0)
        return Work(moved, (6 if both else 2) * live * v * h)
    reads = 2 if both and case.task == "logprobs" else 1
    return Work(size * v * (reads * live + (n if both else 0)), 0)


def floor_ms(needed: Work, ceilings: Ceilings) -> float:
    """Time of that work at the ceilings, the larger of the two."""
    return 1e3 * max(needed.bytes / ceilings.copy, needed.flops / ceilings.matmul)


def measure_ceilings(device: torch.device, dtype: str, small: bool) -> Ceilings:
    """One copy of 2 GiB and one product of 8192 x 8192 matrices (small: 16 MiB and 256 x 256), the median of ten."""
    from benchmarks.kernels.timing import Clock

    clock = Clock(device)
    count = (16 << 20 if small else 2 << 30) // 4
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    side = 256 if small else 8192
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    copy = statistics.median_high([clock.time(lambda: target.copy_(source)) for _ in range(13)][3:])
    product = statistics.median_high([clock.time(lambda: torch.mm(a, b, out=out)) for _ in range(13)][3:])
    return Ceilings(copy=2 * 4 * count / (copy / 1e3), matmul=2 * side**3 / (product / 1e3), dtype=dtype)
