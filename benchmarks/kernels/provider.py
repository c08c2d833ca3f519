"""What the measured things have in common."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.case import Inputs


@dataclass(frozen=True)
class Outcome:
    """loss: scalar; logprobs [N] or [n live tokens], None where a provider keeps them to itself; gradients by name
    (hidden, weight, logits), as the provider returns them."""

    loss: Tensor
    logprobs: Tensor | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Calls:
    """forward: values only, nothing that needs a gradient. forward_backward: with all gradients of the task, or None
    where there are none. reset: restores what a call overwrites; never timed."""

    forward: Callable[[], Outcome]
    forward_backward: Callable[[], Outcome] | None
    reset: Callable[[], None] = lambda: None

    def modes(self) -> dict[str, Callable[[], Outcome]]:
        out = {"forward": self.forward}
        return out if self.forward_backward is None else out | {"forward_backward": self.forward_backward}


@dataclass(frozen=True)
class Provider:
    """name; tasks: names in case.TASKS; dead: what it does with dead tokens ("drops" them before the work, "skips" them
    in the kernel, or "computes" them); obstacle(device): why it cannot run here, or None; make(inputs): its calls."""

    name: str
    tasks: tuple[str, ...]
    dead: str
    obstacle: Callable[[torch.device], str | None]
    make: Callable[[Inputs], Calls]


def runs_anywhere(device: torch.device) -> str | None:
    return None


def needs_package(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def needs_triton(device: torch.device) -> str | None:
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return needs_package("triton")
    return "a Triton kernel: needs a GPU (or TRITON_INTERPRET=1, for its numbers only)"


class _Source(torch.autograd.Function):
    """Turns a buffer into logits that some operation made, at no cost: only those may be overwritten by a loss."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, buffer: Tensor, received: list[Tensor]) -> Tensor:
        ctx.mark_dirty(buffer)
        ctx.received, ctx.anchor = received, anchor.detach()
        return buffer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.received.append(gradient)
        return torch.zeros_like(ctx.anchor), None, None


Result = tuple[Tensor, Tensor | None]
"""loss, logprobs"""


def _outcome(result: Result, **gradients: Tensor | None) -> Outcome:
    loss, logprobs = result
    known = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    return Outcome(loss.detach(), None if logprobs is None else logprobs.detach(), known)


def linear_calls(inputs: Inputs, compute: Callable[[Tensor, Tensor], Result]) -> Calls:
    """Calls of a function of hidden [N,H] and weight [V,H]."""

    def forward() -> Outcome:
        with torch.no_grad():
            return Outcome(*compute(inputs.hidden, inputs.weight))

    def both() -> Outcome:
        hidden, weight = (x.detach().requires_grad_() for x in (inputs.hidden, inputs.weight))
        result = compute(hidden, weight)
        result[0].backward()
        return _outcome(result, hidden=hidden.grad, weight=weight.grad)

    return Calls(forward, both)


def logits_calls(inputs: Inputs, compute: Callable[[Tensor], Result], extra_row: bool = False) -> Calls:
    """Calls of a function of logits [N,V], or with `extra_row` [N/L, L+1, V], whose last position is unused. They are
    restored before every call and may be overwritten by it."""
    case = inputs.case
    shape: tuple[int, ...] = (case.tokens, case.vocabulary)
    if extra_row:
        shape = (inputs.rows, case.length + 1, case.vocabulary)
    anchor = torch.zeros((), device=inputs.device, requires_grad=True)

    def buffer() -> Tensor:
        return inputs.scratch[: math.prod(shape)].detach().view(shape)

    def reset() -> None:
        place = buffer()
        if extra_row:
            place[:, :-1].copy_(inputs.logits.view(inputs.rows, case.length, case.vocabulary))
            place[:, -1].zero_()
        else:
            place.copy_(inputs.logits)

    def forward() -> Outcome:
        with torch.no_grad():
            return Outcome(*compute(buffer()))

    def both() -> Outcome:
        received: list[Tensor] = []
        # a tensor over the same memory that is no view: autograd would protect a view's base
        place = torch.empty(0, device=inputs.device, dtype=inputs.scratch.dtype)
        place.set_(inputs.scratch.untyped_storage(), 0, shape, buffer().stride())
        result = compute(_Source.apply(anchor, place, received))
        result[0].backward()
        gradient = received[0][:, :-1].reshape(case.tokens, -1) if extra_row else received[0]
        return _outcome(result, logits=gradient)

    return Calls(forward, both, reset)
