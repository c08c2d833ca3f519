"""The losses as custom operators, for callers under torch.compile: opaque to the compiler, with shapes it can plan.

Same numbers as the eager path. One difference: `policy_loss` leaves its logits alone and returns the gradient in a
buffer of its own, because a compiler must know every tensor that an operator writes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from dyme_kernels.linear import check_head, linear_policy_loss, under_autocast
from dyme_kernels.policy import policy_loss
from dyme_kernels.spec import LossSpec
from dyme_kernels.tokens import STATISTICS, VECTORS, PolicyLossOutput, compute_dtype

P = ParamSpec("P")
R = TypeVar("R")
_TEXTS = ("surrogate", "token_shaping")
_NUMBERS = tuple(f.name for f in fields(LossSpec) if f.name not in _TEXTS)
_OPTIONAL = tuple(f.name for f in fields(LossSpec) if f.default is None)
_NONE = -1.0  # of those, which are positive


def pack_spec(spec: LossSpec) -> tuple[str, list[float]]:
    """A spec as what an operator can take: its texts in one, and its numbers."""
    numbers = [getattr(spec, name) for name in _NUMBERS]
    return f"{spec.surrogate} {spec.token_shaping}", [_NONE if x is None else float(x) for x in numbers]


def unpack_spec(texts: str, numbers: Sequence[float]) -> LossSpec:
    given: dict[str, Any] = dict(zip(_TEXTS, texts.split(), strict=True))
    for name, value in zip(_NUMBERS, numbers, strict=True):
        given[name] = None if name in _OPTIONAL and value == _NONE else value
    return LossSpec(**given)


_GIVEN = ("targets", "advantages", "weights")
_TOKENS = (*VECTORS, "live")
_VECTORS = ", ".join(f"Tensor{'' if name in _GIVEN else '?'} {name}" for name in _TOKENS)
_OUTPUTS = ", ".join(["Tensor"] * (1 + len(STATISTICS)))  # loss and statistics, before the gradients
_SPEC = "str texts, float[] numbers"
_POLICY = f"(Tensor logits, {_VECTORS}, {_SPEC}, str backend, bool grad) -> ({_OUTPUTS}, Tensor)"
_LINEAR = (
    f"(Tensor hidden, Tensor weight, Tensor? bias, {_VECTORS}, {_SPEC}, float budget, str backend, bool[] needs) -> "
    f"({_OUTPUTS}, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("dyme_kernels::policy_loss", mutates_args=(), schema=_POLICY)
def _policy_op(logits: Tensor, *given: Any) -> tuple[Tensor, ...]:
    *vectors, texts, numbers, backend, grad = given
    tokens = dict(zip(_TOKENS, vectors, strict=True))
    leaf = logits.detach().requires_grad_(grad)  # a leaf is never overwritten
    with torch.set_grad_enabled(grad):
        out = policy_loss(leaf, **tokens, spec=unpack_spec(texts, numbers), backend=backend)
        gradient = torch.autograd.grad(out.loss, leaf)[0] if grad else logits.new_empty(0)
    return (*_detached(out), gradient)


@_policy_op.register_fake
def _(logits: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return (*_fake_output(logits), torch.empty_like(logits) if given[-1] else logits.new_empty(0))


@torch.library.custom_op("dyme_kernels::linear_policy_loss", mutates_args=(), schema=_LINEAR)
def _linear_op(*given: Any) -> tuple[Tensor, ...]:
    *head, texts, numbers, budget, backend, needs = given
    tokens = dict(zip(_TOKENS, head[3:], strict=True))
    hidden, weight, bias = head = [None if x is None else x.detach() for x in head[:3]]
    wanted = [x.requires_grad_() for x, need in zip(head, needs, strict=True) if need and x is not None]
    with torch.set_grad_enabled(bool(wanted)):
        settings: dict[str, Any] = {"spec": unpack_spec(texts, numbers), "logits_budget_mb": budget, "backend": backend}
        out = linear_policy_loss(hidden, weight, **tokens, bias=bias, **settings)
        found = iter(torch.autograd.grad(out.loss, wanted) if wanted else ())
    grads = [next(found) if need and x is not None else hidden.new_empty(0) for x, need in zip(head, needs)]
    return (*_detached(out), *grads)


@_linear_op.register_fake
def _(hidden: Tensor, *given: Any) -> tuple[Tensor, ...]:
    head = (hidden, *given[:2])
    grads = [torch.empty_like(x) if need and x is not None else hidden.new_empty(0) for x, need in zip(head, given[-1])]
    return (*_fake_output(hidden), *grads)


def _keep(count: int) -> Any:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[-count:])

    return setup_context


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor | None:
    return None if gradient.numel() == 0 else (gradient.to(factor.dtype) * factor).to(gradient.dtype)


def _policy_backward(ctx: Any, loss_grad: Tensor, *_: Any) -> tuple[Any, ...]:
    return (_scaled(ctx.saved_tensors[0], loss_grad), *(None,) * (len(_TOKENS) + 4))


def _linear_backward(ctx: Any, loss_grad: Tensor, *_: Any) -> tuple[Any, ...]:
    return (*(_scaled(x, loss_grad) for x in ctx.saved_tensors), *(None,) * (len(_TOKENS) + 5))


torch.library.register_autograd("dyme_kernels::policy_loss", _policy_backward, setup_context=_keep(1))
torch.library.register_autograd("dyme_kernels::linear_policy_loss", _linear_backward, setup_context=_keep(3))


def compiled_policy_loss(logits: Tensor, spec: LossSpec, backend: str, **tokens: Tensor | None) -> PolicyLossOutput:
    """`policy_loss` inside a compiled graph, all arguments by name."""
    grad = torch.is_grad_enabled() and logits.requires_grad
    return _output(_policy_op(logits, *(tokens[name] for name in _TOKENS), *pack_spec(spec), backend, grad))


def compiled_linear_policy_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, spec: LossSpec, logits_budget_mb: float, backend: str,
    **tokens: Tensor | None,
) -> PolicyLossOutput:  # fmt: skip
    """`linear_policy_loss` inside a compiled graph, all arguments by name."""
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    check_head(hidden, weight, bias, logits_budget_mb)
    enabled = torch.is_grad_enabled()
    needs = [enabled and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    rest = (*pack_spec(spec), logits_budget_mb, backend, needs)
    return _output(_linear_op(hidden, weight, bias, *(tokens[name] for name in _TOKENS), *rest))


def _output(found: tuple[Tensor, ...]) -> PolicyLossOutput:
    return PolicyLossOutput(found[0], *(x.detach() for x in found[1 : 1 + len(STATISTICS)]))


def _detached(out: PolicyLossOutput) -> tuple[Tensor, ...]:
    """Operators must not return one tensor twice, and statistics may share one."""
    return tuple(getattr(out, f.name).detach().clone() for f in fields(out))


def _fake_output(x: Tensor) -> tuple[Tensor, ...]:
    dtype = compute_dtype(x.dtype)
    return (x.new_empty((), dtype=dtype), *(x.new_empty(x.shape[0], dtype=dtype) for _ in STATISTICS))


def in_graphs(eager: Callable[P, R], compiled: Callable[..., R]) -> Callable[P, R]:
    """`eager`, and where torch.compile makes a graph, `compiled` with all arguments of `eager` by name."""
    parameters = inspect.signature(eager).parameters
    names = tuple(parameters)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    @functools.wraps(eager)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            return eager(*args, **kwargs)
        given = {**defaults, **dict(zip(names, args)), **kwargs}
        if len(args) > len(names) or given.keys() != {*names}:
            raise TypeError(f"the arguments are {', '.join(names)}; got {', '.join(given)}")
        return compiled(**given)

    return call
