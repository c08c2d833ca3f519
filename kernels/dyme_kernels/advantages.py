"""Rewards of ragged groups -> advantages and statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dyme_kernels.backends import resolve_backend

SCALES = ("std", "none")
# Accuracies closer than this are equal: their variance is exactly 0, whatever the rounding of the mean.
SAME_ACCURACY = 1e-9


@dataclass(frozen=True)
class GroupAdvantages:
    """R rows in G groups, in the dtype of the rewards; statistics are over the scored rows of a group, 0 without any.

    advantages [R]: (reward - mean) / (std + epsilon), or reward - mean; 0 for unscored rows.
    mean, variance, std [G]: of the rewards; population variance, unbiased std (0 for fewer than two rows).
    accuracy_mean, accuracy_var [G]: of the accuracies; population variance.
    num_scored [G] int64.
    """

    advantages: Tensor
    mean: Tensor
    variance: Tensor
    std: Tensor
    accuracy_mean: Tensor
    accuracy_var: Tensor
    num_scored: Tensor


def group_advantages(
    rewards: Tensor,
    group_offsets: Tensor,
    *,
    accuracy: Tensor | None = None,
    scored: Tensor | None = None,
    scale: str = "std",
    epsilon: float = 1e-4,
    backend: str = "auto",
) -> GroupAdvantages:
    """Advantages of GRPO (2402.03300) and the statistics of groups, from which a caller decides what each trains.

    rewards [R] float (NaN counts as unscored), computed in their dtype, float32 at least. group_offsets [G+1] int64,
    from 0 to R and never decreasing: group g is rows offsets[g]..offsets[g+1]-1 and may be empty. accuracy [R]:
    a second score, NaN unscored; the rewards if None. scored [R] bool: rows that count, all if None.

    In float64 the backends agree to 4 ulp of a column's largest value, and to the bit in counts, in means of equal
    values and in the variance of equal accuracies, which is 0.

    Raises ValueError naming the argument. Offsets are checked on the CPU only: elsewhere that would synchronise.
    """
    _check(rewards, group_offsets, accuracy, scored, scale, epsilon)
    chosen = resolve_backend(backend, "group_advantages", rewards.device)
    dtype = rewards.dtype if rewards.dtype in (torch.float32, torch.float64) else torch.float32
    x = rewards.detach().to(dtype)
    if chosen == "triton":
        from dyme_kernels.triton_groups import group_tensors

        kept = None if accuracy is None else accuracy.detach().contiguous()
        flags = None if scored is None else scored.contiguous()
        return GroupAdvantages(
            *group_tensors(
                x.contiguous(), kept, flags, group_offsets.contiguous(), divide=scale == "std", epsilon=epsilon,
                same=SAME_ACCURACY,
            )
        )  # fmt: skip
    s = x if accuracy is None else accuracy.detach().to(dtype)
    counts = ~(x.isnan() | s.isnan()) if scored is None else scored & ~(x.isnan() | s.isnan())
    group = torch.searchsorted(group_offsets, torch.arange(x.numel(), device=x.device), right=True) - 1

    size = group_offsets.numel() - 1
    num = torch.zeros(size, dtype=torch.int64, device=x.device)
    num = num.index_put((group,), counts.to(torch.int64), accumulate=True)
    mean, square, deviation = _moments(x, counts, group, num, same=0.0)
    accuracy_mean, accuracy_square, _ = _moments(s, counts, group, num, same=SAME_ACCURACY)
    std = (square / (num - 1).clamp(min=1)).sqrt()
    advantages = deviation if scale == "none" else deviation / (std + epsilon)[group]

    sizes = num.clamp(min=1)
    return GroupAdvantages(advantages, mean, square / sizes, std, accuracy_mean, accuracy_square / sizes, num)


def _moments(x: Tensor, counts: Tensor, group: Tensor, num: Tensor, same: float) -> tuple[Tensor, Tensor, Tensor]:
    """(mean [G], sum of squared deviations [G], deviations [R]); deviations are exactly 0 in groups whose values are
    no further apart than `same`, where the rounding of the mean would otherwise look like a signal."""
    zeros = torch.zeros(num.shape, dtype=x.dtype, device=x.device)
    value = torch.where(counts, x, 0.0)
    mean = zeros.index_put((group,), value, accumulate=True) / num.clamp(min=1)
    infinity = torch.full_like(zeros, torch.inf)
    top = (-infinity).scatter_reduce(0, group, torch.where(counts, x, -torch.inf), "amax")
    bottom = infinity.scatter_reduce(0, group, torch.where(counts, x, torch.inf), "amin")
    equal = top == bottom if same == 0.0 else top - bottom < same
    deviation = torch.where(counts & ~equal[group], value - mean[group], 0.0)
    square = zeros.index_put((group,), deviation.square(), accumulate=True)
    return torch.where(top == bottom, top, mean), square, deviation


def _check(
    rewards: Tensor, offsets: Tensor, accuracy: Tensor | None, scored: Tensor | None, scale: str, epsilon: float
) -> None:
    if rewards.dim() != 1 or not rewards.is_floating_point():
        raise ValueError(f"rewards are {rewards.dtype} {tuple(rewards.shape)}, expected a float vector: pass x.float()")
    if offsets.dim() != 1 or offsets.numel() < 1 or offsets.dtype != torch.int64:
        raise ValueError(
            "group_offsets must be an int64 vector [G+1]: the first row of each group, then the number of rows"
        )
    for name, x in (("accuracy", accuracy), ("scored", scored)):
        if x is not None and x.shape != rewards.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {tuple(rewards.shape)}, one entry per row")
    if scored is not None and scored.dtype != torch.bool:
        raise ValueError(f"scored is {scored.dtype}, expected torch.bool: pass scored.bool()")
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r}: allowed are {', '.join(map(repr, SCALES))}")
    if not epsilon > 0.0:
        raise ValueError(f"epsilon={epsilon}: allowed are numbers above 0, such as 1e-4")
    if offsets.device.type == "cpu":
        ends = (int(offsets[0]), int(offsets[-1]))
        if ends != (0, rewards.numel()) or bool((offsets.diff() < 0).any()):
            raise ValueError(f"group_offsets must rise from 0 to {rewards.numel()}, the number of rows")
