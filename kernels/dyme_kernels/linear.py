"""Loss of tokens straight from hidden states and the head's weight: N x V logits never exist."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyme_kernels.dispatch import row_kernels
from dyme_kernels.rows import Head, RowKernels, losses_in_two_steps
from dyme_kernels.scaling import scale_gradient
from dyme_kernels.spec import LossSpec
from dyme_kernels.surrogates import Coefficients, coefficients
from dyme_kernels.tokens import STATISTICS, PolicyLossOutput, TokenBatch, compute_dtype, make_batch, spread

# Asked once, here: torch 2.11 cannot trace the question.
AUTOCAST_DEVICES = frozenset(kind for kind in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(kind))


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    memorize: Tensor | None = None,
    importance: Tensor | None = None,
    segments: Tensor | None = None,
    live: Tensor | None = None,
    bias: Tensor | None = None,
    spec: LossSpec = LossSpec(),  # noqa: B008  frozen
    logits_budget_mb: float = 256,
    backend: str = "auto",
) -> PolicyLossOutput:
    """`policy_loss` of logits = hidden @ weight.T + bias (then the spec's scale and soft-cap), rows chunk by chunk.

    hidden [N,H], weight [V,H], bias [V] or None, of one dtype (under autocast they are cast to its dtype). The other
    arguments are those of `policy_loss`. Tokens outside `live` never enter a product.

    logits_budget_mb: bytes (MiB) that the vocabulary-wide buffers of one chunk may take; at least one row is computed.
    It never depends on free memory, and changes results only by the rounding of the float32 sum over chunks.

    Gradients of hidden, weight and bias are computed here, in the forward pass (6 N V H FLOPs, no recompute), and
    scaled in the backward; the weight's is summed over chunks in float32. Those that need none are skipped. gspo with
    segments computes the logits twice, because a row's ratio needs all its log-probs. With no live token the loss is
    zero and still connected to hidden and weight, with zero gradients, which ZeRO-3 needs. Works inside
    `lm_head.forward`: the weight's gradient goes back through autograd. Without gradient mode only the statistics are
    computed.

    Raises ValueError naming the argument.
    """
    vectors = (targets, advantages, weights, old_logprobs, ref_logprobs, memorize, importance, segments)
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    check_head(hidden, weight, bias, logits_budget_mb)
    kernels = row_kernels(backend, "linear_policy_loss", hidden)
    vocabulary = weight.shape[0]
    batch = make_batch(hidden.shape[0], compute_dtype(hidden.dtype), vocabulary, vectors, live, spec)
    chunk = chunk_rows(hidden, vocabulary, logits_budget_mb)
    return loss_in_chunks(hidden, weight, bias, batch, live, spec, kernels, chunk)


def under_autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The head's inputs in the dtype of the autocast that is on, as they are where none is."""
    kind = hidden.device.type
    if kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def loss_in_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: TokenBatch, live: Tensor | None, spec: LossSpec,
    kernels: RowKernels, chunk: int, sum_hidden: Callable[[Tensor], None] | None = None,
) -> PolicyLossOutput:  # fmt: skip
    """The loss of `tokens` (those in `live`), `chunk` of them at a time, with any row functions of logits.

    sum_hidden: called with the gradient of the hidden states, float32 or float64, before it is rounded, to add in place
    what this weight does not give.
    """
    enabled = torch.is_grad_enabled()
    needs = _Needs(
        hidden=enabled and hidden.requires_grad,
        weight=enabled and weight.requires_grad,
        bias=enabled and bias is not None and bias.requires_grad,
    )
    kind = hidden.device.type
    with torch.autocast(kind, enabled=False) if kind in AUTOCAST_DEVICES else nullcontext():
        loss, *stats = _LinearPolicyLoss.apply(
            hidden, weight, bias, tokens, live, spec, kernels, chunk, needs, sum_hidden
        )
    return PolicyLossOutput(loss, *stats)


@dataclass(frozen=True)
class _Needs:
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool

    @property
    def any(self) -> bool:
        return self.hidden or self.weight or self.bias


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, logits_budget_mb: float) -> None:
    """Raise ValueError naming the argument."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected hidden [N,H] and weight [V,H], got {tuple(hidden.shape)} and {tuple(weight.shape)}: flatten "
            "hidden; under ZeRO-3 call this inside lm_head.forward, where the weight is gathered"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},), one entry per token id")
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.dtype != hidden.dtype:
            raise ValueError(f"{name} is {x.dtype}, hidden {hidden.dtype}: cast one, or run under torch.autocast")
    if not logits_budget_mb > 0:
        raise ValueError(f"logits_budget_mb={logits_budget_mb}: allowed are numbers above 0, such as 256")


def _sums_in_float32(x: Tensor) -> bool:
    """Whether the product of two matrices like x can be added to a float32 one without a float32 copy of x."""
    return x.dtype in (torch.float32, torch.float64) or x.device.type == "cuda"


def chunk_rows(hidden: Tensor, vocabulary: int, budget_mb: float) -> int:
    """How many rows of logits fit the budget, at least one."""
    per_logit = hidden.dtype.itemsize + (0 if _sums_in_float32(hidden) else 4)
    return max(1, int(budget_mb * 2**20) // max(1, vocabulary * per_logit))


def _add_product(total: Tensor, a: Tensor, b: Tensor, unit: Tensor | None, first: bool) -> None:
    """total += unit * a @ b, or = for the first product, whose total holds anything. Rounding each chunk's product to
    bfloat16 first would bias the sum over chunks."""
    beta = 0 if first else 1
    if unit is not None:
        product = torch.mm(a, b, out_dtype=total.dtype) if a.device.type == "cuda" else torch.mm(a.float(), b.float())
        product *= unit
        total.copy_(product) if first else total.add_(product)
    elif a.dtype == total.dtype:
        total.addmm_(a, b, beta=beta)
    elif _sums_in_float32(a):
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.float(), b.float(), beta=beta)


@dataclass(frozen=True)
class _Gradients:
    """Buffers of the gradients that are wanted: hidden [N,H], weight [V,H], bias [V], filled chunk by chunk.

    weight is in the inputs' dtype where one chunk holds all tokens (its product is rounded once anyway), else float32.
    half: the inputs are float16. Then every chunk of logit gradients is stored divided by a power of two near its
    largest coefficient, and the buffers stay in float32 until the backward knows the loss scale.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    half: bool


def _empty_gradients(hidden: Tensor, weight: Tensor, needs: _Needs, wide_hidden: bool, chunks: int) -> _Gradients:
    wide, half = compute_dtype(hidden.dtype), hidden.dtype == torch.float16
    kind = wide if half or wide_hidden else hidden.dtype  # parts that are still to be summed are not rounded
    return _Gradients(
        hidden=hidden.new_zeros(hidden.shape, dtype=kind) if needs.hidden else None,
        weight=_weight_buffer(weight, wide if half or chunks > 1 else weight.dtype, chunks) if needs.weight else None,
        bias=weight.new_zeros(weight.shape[0], dtype=wide) if needs.bias else None,
        half=half,
    )


def _weight_buffer(weight: Tensor, dtype: torch.dtype, chunks: int) -> Tensor:
    """The first chunk overwrites it, so only where there is none it must be zero."""
    return torch.empty_like(weight, dtype=dtype) if chunks else torch.zeros_like(weight, dtype=dtype)


def _add_chunk(
    total: _Gradients, gradient: Tensor, hidden: Tensor, weight: Tensor, place: Tensor | slice, unit: Tensor | None,
    first: bool,
) -> None:  # fmt: skip
    """Add the products of a chunk's logit gradients [r,V], stored divided by `unit`, with hidden [r,H] and weight."""
    if total.hidden is not None:
        product = torch.mm(gradient, weight)
        product = product.to(total.hidden.dtype)
        total.hidden[place] = product if unit is None else product * unit
    if total.weight is not None:
        _add_product(total.weight, gradient.t(), hidden, unit, first)
    if total.bias is not None:
        column = gradient.sum(0, dtype=total.bias.dtype)
        total.bias.add_(column if unit is None else column * unit)


class _LinearPolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: TokenBatch, live: Tensor | None,
        spec: LossSpec, kernels: RowKernels, chunk: int, needs: _Needs, sum_hidden: Callable[[Tensor], None] | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        size, count = hidden.shape[0], tokens.targets.shape[0]
        head = Head(spec.logit_scale, spec.logit_softcap)
        places = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]

        def project(place: slice) -> tuple[Tensor, Tensor]:
            x = hidden[place] if live is None else hidden.index_select(0, live[place])
            return x, torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())

        whole: Coefficients | None = None
        if tokens.needs_whole_rows(spec):
            parts = []
            for place in places:
                part = tokens.rows(place.start, place.stop)
                inverse = part.inverse_temperature(spec)
                parts.append(kernels.row_statistics(project(place)[1], part.targets, inverse, head))
            empty = [tokens.weights[:0]]
            logprobs, entropy = (torch.cat(empty + [getattr(p, f) for p in parts]) for f in ("logprobs", "entropy"))
            whole = coefficients(logprobs, entropy, tokens, spec, needs.any)

        total = _empty_gradients(hidden, weight, needs, sum_hidden is not None, len(places))
        losses = torch.empty_like(tokens.weights)
        out = [torch.empty_like(losses) for _ in STATISTICS]
        for place in places:
            x, logits = project(place)
            part = tokens.rows(place.start, place.stop)
            gradient, unit = logits if needs.any else None, None
            if whole is None and not total.half:
                found = kernels.row_losses(logits, gradient, part, spec, head)
            else:
                known = None if whole is None else whole.rows(place.start, place.stop)
                found, unit = losses_in_two_steps(
                    kernels.row_statistics, kernels.row_gradient, logits, gradient, part, spec, head, found=known
                )
            losses[place] = found.losses
            for full, value in zip(out, found.columns, strict=True):
                full[place] = value
            if needs.any:
                where = place if live is None else live[place]
                _add_chunk(total, logits, x, weight, where, unit, first=place.start == 0)

        if total.hidden is not None and sum_hidden is not None:
            sum_hidden(total.hidden)
        grads = [total.hidden, total.weight, total.bias]
        if not total.half:
            grads = [None if g is None else g.to(hidden.dtype) for g in grads]
        ctx.dtype = hidden.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads)
        spreads = spread(out, live, size)
        ctx.mark_non_differentiable(*spreads)
        return (losses.sum(), *spreads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if loss_grad is None:
            return (None,) * 10
        grads = [None if g is None else scale_gradient(g, loss_grad, ctx.dtype) for g in ctx.saved_tensors]
        return (*grads, *(None,) * 7)
