"""Gradients: what this rank holds of the accumulated ones, by parameter group, under each ZeRO stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepspeed.utils import safe_get_local_grad
from torch import Tensor, nn


def by_group(optimizer: Any, stage: int, groups: Sequence[Sequence[nn.Parameter]]) -> list[list[Tensor]]:
    """This rank's partition of the gradients of each parameter group, after the boundary. Together the ranks hold each
    value once, beside padding of zeros. `optimizer`: DeepSpeed's."""
    if stage == 3:
        return [[g for p in params if (g := safe_get_local_grad(p)) is not None] for params in groups]
    if hasattr(optimizer, "fp32_groups_gradient_flat_partition"):  # DeepSpeed's own for ZeRO-1 in bf16
        return [[g] for g in optimizer.fp32_groups_gradient_flat_partition]
    held = optimizer.averaged_gradients
    return [list(held.get(i) or ()) for i in range(len(groups))]
