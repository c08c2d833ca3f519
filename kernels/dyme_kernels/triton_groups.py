"""Statistics and advantages of ragged groups in one launch: one program a group, three passes over its rows."""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # rows of a group read at once; groups may have any number
PER_ROW = ("rewards", "accuracy", "scored", "offsets")


@triton.jit
def _scored(rewards, accuracy, scored, index, inside):
    """-> reward and accuracy of a block of rows, and whether they count (NaN does not)."""
    x = tl.load(rewards + index, mask=inside, other=float("nan"))
    s = x if accuracy is None else tl.load(accuracy + index, mask=inside, other=float("nan")).to(x.dtype)
    counts = (x == x) & (s == s)
    if scored is not None:
        counts = counts & tl.load(scored + index, mask=inside, other=0).to(tl.int1)
    return x, s, counts


@triton.jit
def _mean(total, top, bottom, count):
    """Equal values have exactly that mean: a rounded one would leave deviations that look like a signal."""
    mean = total / tl.maximum(count, 1).to(total.dtype)
    return tl.where(count == 0, 0.0, tl.where(top == bottom, top, mean))


# A kernel for each alignment of a caller's slice would be compiled for no gain: groups begin anywhere.
@triton.jit(
    do_not_specialize=["epsilon_bits"], do_not_specialize_on_alignment=("rewards", "accuracy", "scored", "offsets")
)
def _groups_kernel(
    rewards, accuracy, scored, offsets,
    advantages, means, variances, stds, accuracy_means, accuracy_vars, counts_out,
    epsilon_bits, SAME: tl.constexpr, DIVIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    first = tl.load(offsets + group)
    last = tl.load(offsets + group + 1)
    dtype: tl.constexpr = advantages.dtype.element_ty
    lanes = tl.arange(0, BLOCK)

    total = tl.zeros((BLOCK,), dtype)
    accuracy_total = tl.zeros((BLOCK,), dtype)
    number = tl.zeros((BLOCK,), tl.int64)
    top = tl.full((BLOCK,), -float("inf"), dtype)
    bottom = tl.full((BLOCK,), float("inf"), dtype)
    accuracy_top = tl.full((BLOCK,), -float("inf"), dtype)
    accuracy_bottom = tl.full((BLOCK,), float("inf"), dtype)
    for start in range(first, last, BLOCK):
        index = start + lanes
        x, s, counts = _scored(rewards, accuracy, scored, index, index < last)
        total += tl.where(counts, x, 0.0)
        accuracy_total += tl.where(counts, s, 0.0)
        number += counts.to(tl.int64)
        top = tl.maximum(top, tl.where(counts, x, -float("inf")))
        bottom = tl.minimum(bottom, tl.where(counts, x, float("inf")))
        accuracy_top = tl.maximum(accuracy_top, tl.where(counts, s, -float("inf")))
        accuracy_bottom = tl.minimum(accuracy_bottom, tl.where(counts, s, float("inf")))
    count = tl.sum(number, 0)
    highest = tl.max(top, 0)
    lowest = tl.min(bottom, 0)
    most = tl.max(accuracy_top, 0)
    least = tl.min(accuracy_bottom, 0)
    mean = _mean(tl.sum(total, 0), highest, lowest, count)
    accuracy_mean = _mean(tl.sum(accuracy_total, 0), most, least, count)
    flat = most - least < SAME

    square = tl.zeros((BLOCK,), dtype)
    accuracy_square = tl.zeros((BLOCK,), dtype)
    for start in range(first, last, BLOCK):
        index = start + lanes
        x, s, counts = _scored(rewards, accuracy, scored, index, index < last)
        deviation = tl.where(counts, x - mean, 0.0)
        square += deviation * deviation
        deviation = tl.where(counts & (not flat), s - accuracy_mean, 0.0)
        accuracy_square += deviation * deviation
    squares = tl.sum(square, 0)
    std = tl.sqrt(squares / tl.maximum(count - 1, 1).to(dtype))
    accuracy_var = tl.sum(accuracy_square, 0) / tl.maximum(count, 1).to(dtype)

    for start in range(first, last, BLOCK):
        index = start + lanes
        x, s, counts = _scored(rewards, accuracy, scored, index, index < last)
        deviation = tl.where(counts, x - mean, 0.0)
        if DIVIDE:
            deviation = deviation / (std + epsilon_bits.to(tl.float64, bitcast=True).to(dtype))
        tl.store(advantages + index, deviation, mask=index < last)
    tl.store(means + group, mean)
    tl.store(variances + group, squares / tl.maximum(count, 1).to(dtype))
    tl.store(stds + group, std)
    tl.store(accuracy_means + group, accuracy_mean)
    tl.store(accuracy_vars + group, accuracy_var)
    tl.store(counts_out + group, count)


def group_tensors(
    rewards: Tensor, accuracy: Tensor | None, scored: Tensor | None, offsets: Tensor, *, divide: bool, epsilon: float,
    same: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The fields of GroupAdvantages in their order. rewards float32 or float64, contiguous; rows outside every group
    have advantage 0."""
    groups = offsets.numel() - 1
    advantages = torch.zeros_like(rewards)
    stats = [rewards.new_empty(groups) for _ in range(5)]
    count = torch.empty(groups, dtype=torch.int64, device=rewards.device)
    if groups:
        [bits] = struct.unpack("<q", struct.pack("<d", epsilon))  # as a float it would arrive rounded to float32
        _groups_kernel[(groups,)](
            rewards, accuracy, scored, offsets, advantages, *stats, count, bits,
            SAME=same, DIVIDE=divide, BLOCK=BLOCK, num_warps=1,
        )  # fmt: skip
    return (advantages, *stats, count)
