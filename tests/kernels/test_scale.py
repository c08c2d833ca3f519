"""Scaling of a finished gradient: in place, not at all for a scale of one, and never while the graph is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dyme_kernels.scaling import scale_gradient

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Scaled(torch.autograd.Function):
    """Hands a stored gradient through `scale_gradient`, as the losses do."""

    seen: torch.Tensor

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(stored)
        return x.sum().float()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor, None]:
        Scaled.seen = scale_gradient(ctx.saved_tensors[0], factor, torch.bfloat16)
        return Scaled.seen, None


def backward(factor: float, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored gradient after a backward with an upstream gradient, and what was handed on."""
    x = torch.zeros(5, 7, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    stored = torch.arange(35.0, device=DEVICE).reshape(5, 7).bfloat16()
    upstream = torch.tensor(factor, device=DEVICE)
    torch.autograd.grad(Scaled.apply(x, stored), x, upstream, retain_graph=keep)
    return stored, Scaled.seen


@pytest.mark.parametrize("factor", (1.0, 3.0))
def test_the_buffer_is_reused_where_the_graph_is_freed(factor):
    stored, handed = backward(factor, keep=False)
    assert handed.data_ptr() == stored.data_ptr()
    assert torch.equal(handed.float().cpu(), factor * torch.arange(35.0).reshape(5, 7))


def test_the_buffer_stays_as_it_is_where_the_graph_is_kept():
    for factor in (1.0, 3.0):
        stored, handed = backward(factor, keep=True)
        assert handed.data_ptr() != stored.data_ptr()
        assert torch.equal(stored.float().cpu(), torch.arange(35.0).reshape(5, 7))
        assert torch.equal(handed.float().cpu(), factor * torch.arange(35.0).reshape(5, 7))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("n", (0, 1, 8192, 8200))
def test_the_kernel(n, dtype):
    pytest.importorskip("triton")
    from dyme_kernels.triton_scale import scale_in_place

    x = torch.randn(n, device=DEVICE).to(dtype)
    before = x.clone()
    scale_in_place(x, torch.tensor(1.0, device=DEVICE))
    assert torch.equal(x, before)
    scale_in_place(x, torch.tensor(0.37, device=DEVICE))
    expected = (before.float() * 0.37).to(dtype)
    assert torch.allclose(x.float(), expected.float(), rtol=torch.finfo(dtype).eps, atol=0)
