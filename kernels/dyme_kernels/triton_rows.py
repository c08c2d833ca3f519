"""The vocabulary-wide half of every loss, in Triton: one program a row, two passes over it.

The first pass finds maximum, sum of exponentials, entropy and the target's log-probability in one read. The second
reads the row again, last block first, while it is still in L2, and writes the gradient in place: HBM sees one read and
one write. Signatures and meaning: torch_rows.py.

Only the vocabulary and flags are compile-time constants; row counts, strides and settings are arguments, so a new
length compiles nothing. No atomics: equal calls give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dyme_kernels.rows import LOWEST, Head, RowLosses, RowStats
from dyme_kernels.spec import LossSpec
from dyme_kernels.surrogates import TokenStats
from dyme_kernels.tokens import TokenBatch
from dyme_kernels.triton_math import LN2, LOG2E, tanh
from dyme_kernels.triton_surrogates import loss_flags, loss_settings, token_loss

_LOWEST = tl.constexpr(LOWEST)
# A row wider than this leaves the L2 before its second pass unless few rows are in flight.
WIDE_ROW_BYTES = 128 << 10
REGISTERS = 65536  # of a multiprocessor
# One entry a token, read one by one: where they begin does not matter, but would compile a kernel for each alignment,
# and the slices of a chunk begin anywhere.
PER_TOKEN = (
    *("rows", "targets", "inverses", "logprobs", "entropies", "matches", "tops", "totals", "cs", "es", "losses"),
    *("advantages", "weights", "olds", "refs", "memorize", "importance", "ratios", "lows", "highs", "kls"),
)


@triton.jit
def _load(base, offsets, V: tl.constexpr, scale, softcap, SCALE: tl.constexpr, CAP: tl.constexpr, FIRST: tl.constexpr):
    """A block of logits in float32, -inf past the end. FIRST: the row will be read again."""
    inside = offsets < V
    if FIRST:
        x = tl.load(base + offsets, mask=inside, other=-float("inf"), eviction_policy="evict_last").to(tl.float32)
    else:
        x = tl.load(base + offsets, mask=inside, other=-float("inf"), eviction_policy="evict_first").to(tl.float32)
    if CAP:
        x = tl.where(inside, softcap * tanh(x * (scale / softcap)), -float("inf"))
    elif SCALE:
        x = x * scale
    return x


@triton.jit
def _first_pass(
    base, inverse, scale, softcap, V: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr
):
    """-> maximum of the logits, sum of exp((x - maximum) / T), sum of exp(..) log2 exp(..)."""
    k = inverse * LOG2E
    top = -float("inf")
    total = 0.0
    moment = 0.0
    for start in range(0, V, BLOCK):
        x = _load(base, start + tl.arange(0, BLOCK), V, scale, softcap, SCALE, CAP, True)
        higher = tl.maximum(top, tl.max(x, 0))
        # a row may begin with banned tokens only
        anchor = tl.where(higher == -float("inf"), 0.0, higher)
        shift = (top - anchor) * k
        fade = tl.exp2(shift)
        y = (x - anchor) * k
        e = tl.exp2(y)
        # e y is 0 where e is, not NaN
        moment = fade * (moment + total * tl.where(total > 0.0, shift, 0.0)) + tl.sum(e * tl.maximum(y, _LOWEST), 0)
        total = fade * total + tl.sum(e, 0)
        top = higher
    return top, total, moment


@triton.jit
def _target_logit(base, target, scale, softcap, V: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr):
    """NaN for a target outside the vocabulary: a wrong token must not read somebody else's memory."""
    valid = (target >= 0) & (target < V)
    x = tl.load(base + target, mask=valid, other=float("nan")).to(tl.float32)
    if CAP:
        x = softcap * tanh(x * (scale / softcap))
    elif SCALE:
        x = x * scale
    return x


@triton.jit
def _log_probability(x, top, total, inverse):
    """In nats from the start: through powers of two it would be rounded twice more, and the ratio with it."""
    return (x - top) * inverse - tl.log2(total) * LN2


@triton.jit
def _second_pass(
    base, out, target, at_target, top, total, entropy, c, e, inverse, scale, softcap,
    V: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, BONUS: tl.constexpr,
):  # fmt: skip
    """Write (c (onehot - p) - e p (log p + H)) dz/dx. c and e hold 1 / T already."""
    k = inverse * LOG2E
    part = 1.0 / total
    log_total = tl.log2(total)
    slope = scale if SCALE or CAP else 1.0
    blocks: tl.constexpr = (V + BLOCK - 1) // BLOCK
    for i in range(blocks):
        offsets = (blocks - 1 - i) * BLOCK + tl.arange(0, BLOCK)
        x = _load(base, offsets, V, scale, softcap, SCALE, CAP, False)
        y = (x - top) * k
        g = -tl.exp2(y) * part
        if BONUS:
            g = g * (c + e * (tl.maximum((y - log_total) * LN2, _LOWEST) + entropy))
        else:
            g = g * c
        if SCALE or CAP:
            g = g * slope
        if CAP:
            share = tl.where(offsets < V, x, 0.0) / softcap
            g = g * (1.0 - share * share)
        tl.store(out + offsets, g.to(out.dtype.element_ty), mask=offsets < V, eviction_policy="evict_first")
    # one store for the target instead of a comparison for every element; the barrier orders it after the loop's
    y = (at_target - top) * k
    p = tl.exp2(y) * part
    g = c - p * c
    if BONUS:
        g = c - p * (c + e * (tl.maximum((y - log_total) * LN2, _LOWEST) + entropy))
    if SCALE or CAP:
        g = g * slope
    if CAP:
        share = at_target / softcap
        g = g * (1.0 - share * share)
    tl.debug_barrier()
    tl.store(out + target, g.to(out.dtype.element_ty), mask=(target >= 0) & (target < V))


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=PER_TOKEN)
def _statistics_kernel(
    logits, rows, targets, inverses, logprobs, entropies, matches, tops, totals,
    n, stride, inverse, scale, softcap,
    V: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    for i in range(tl.program_id(0).to(tl.int64), n, tl.num_programs(0)):
        row = i if rows is None else tl.load(rows + i)
        base = logits + row * stride
        inv = inverse if inverses is None else tl.load(inverses + i)
        target = tl.load(targets + i)
        top, total, moment = _first_pass(base, inv, scale, softcap, V, BLOCK, SCALE, CAP)
        x = _target_logit(base, target, scale, softcap, V, SCALE, CAP)
        tl.store(logprobs + i, _log_probability(x, top, total, inv))
        tl.store(entropies + i, (tl.log2(total) - moment / total) * LN2)
        tl.store(matches + i, tl.where(x >= top, 1.0, 0.0))
        tl.store(tops + i, top)
        tl.store(totals + i, total)


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=PER_TOKEN)
def _gradient_kernel(
    logits, out, rows, targets, inverses, entropies, tops, totals, cs, es,
    n, stride, out_stride, inverse, scale, softcap,
    V: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    for i in range(tl.program_id(0).to(tl.int64), n, tl.num_programs(0)):
        row = i if rows is None else tl.load(rows + i)
        base = logits + row * stride
        inv = inverse if inverses is None else tl.load(inverses + i)
        target = tl.load(targets + i)
        x = _target_logit(base, target, scale, softcap, V, SCALE, CAP)
        e = 0.0 if es is None else tl.load(es + i) * inv
        _second_pass(
            base, out + row * out_stride, target, x, tl.load(tops + i), tl.load(totals + i), tl.load(entropies + i),
            tl.load(cs + i) * inv, e, inv, scale, softcap, V, BLOCK, SCALE, CAP, es is not None,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=PER_TOKEN)
def _losses_kernel(
    logits, out, rows, targets, advantages, weights, olds, refs, memorize, importance,
    losses, logprobs, entropies, ratios, lows, highs, kls, matches,
    n, stride, out_stride, inverse, inverse_memorize, scale, softcap,
    lower, upper, delta, cap, tau_pos, tau_neg, beta, entropy_coef,
    V: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr, CAP: tl.constexpr, KIND: tl.constexpr,
    SHAPED: tl.constexpr, BETA: tl.constexpr, BONUS: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    for i in range(tl.program_id(0).to(tl.int64), n, tl.num_programs(0)):
        row = i if rows is None else tl.load(rows + i)
        base = logits + row * stride
        target = tl.load(targets + i)
        weight = tl.load(weights + i)
        plain = False if memorize is None else tl.load(memorize + i)
        inv = inverse if memorize is None else tl.where(plain, inverse_memorize, inverse)

        top, total, moment = _first_pass(base, inv, scale, softcap, V, BLOCK, SCALE, CAP)
        x = _target_logit(base, target, scale, softcap, V, SCALE, CAP)
        logp = _log_probability(x, top, total, inv)
        entropy = (tl.log2(total) - moment / total) * LN2
        loss, c, e, ratio, low, high, kl = token_loss(
            i, logp, entropy, plain, advantages, olds, refs, memorize, importance,
            lower, upper, delta, cap, tau_pos, tau_neg, beta, entropy_coef, KIND, SHAPED, BETA, BONUS,
        )  # fmt: skip

        tl.store(losses + i, loss * weight)
        tl.store(logprobs + i, logp)
        tl.store(entropies + i, entropy)
        tl.store(ratios + i, ratio)
        tl.store(lows + i, low)
        tl.store(highs + i, high)
        tl.store(kls + i, kl)
        tl.store(matches + i, tl.where(x >= top, 1.0, 0.0))
        if GRAD:
            _second_pass(
                base, out + row * out_stride, target, x, top, total, entropy, c * weight * inv, e * weight * inv, inv,
                scale, softcap, V, BLOCK, SCALE, CAP, BONUS,
            )  # fmt: skip


def compile_options(vocabulary: int) -> dict[str, int]:
    """BLOCK, the logits a program reads at once, its warps, and its registers: left to itself the assembler stops at 64
    a thread and spills, to make room for a second program that would not fit the L2 anyway."""
    block = min(triton.next_power_of_2(max(vocabulary, 16)), 16384)
    warps = max(1, min(16, block // 512))
    return {"BLOCK": block, "num_warps": warps, "maxnreg": min(255, REGISTERS // (32 * warps))}


def programs(vocabulary: int, itemsize: int, device: torch.device) -> int:
    """How many rows are worked on at once. Wide ones get one program per multiprocessor, so that all of them stay in L2
    until their second pass."""
    if device.type != "cuda":
        return 1 << 30
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    warps = compile_options(vocabulary)["num_warps"]
    return processors * (1 if vocabulary * itemsize > WIDE_ROW_BYTES else 32 // warps)


def _common(logits: Tensor, head: Head) -> tuple[int, dict[str, Any]]:
    if logits.stride(1) != 1:
        raise ValueError(f"logits have strides {logits.stride()}: call .contiguous() or transpose before the product")
    vocabulary, cap = logits.shape[1], head.softcap is not None
    flags = {**compile_options(vocabulary), "V": vocabulary, "SCALE": head.scale != 1.0 and not cap, "CAP": cap}
    return programs(vocabulary, logits.dtype.itemsize, logits.device), flags


def _floats(*values: float) -> list[float]:
    """A whole number that the caller wrote as int would be another type, and so another kernel."""
    return [float(value) for value in values]


def _split(inverse: Tensor | float) -> tuple[Tensor | None, float]:
    return (inverse, 1.0) if isinstance(inverse, Tensor) else (None, inverse)


def row_statistics(
    logits: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, rows: Tensor | None = None
) -> RowStats:
    """See torch_rows.row_statistics."""
    n = targets.shape[0]
    out = [logits.new_empty(n, dtype=torch.float32) for _ in range(5)]
    if n:
        most, options = _common(logits, head)
        inverses, one = _split(inverse)
        _statistics_kernel[(min(n, most),)](
            logits, rows, targets, inverses, *out,
            n, logits.stride(0), *_floats(one, head.scale, head.softcap or 1.0), **options,
        )  # fmt: skip
    return RowStats(*out)


def row_gradient(
    logits: Tensor, out: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, stats: RowStats,
    logprob_grad: Tensor, entropy_grad: Tensor | None, rows: Tensor | None = None,
) -> None:  # fmt: skip
    """See torch_rows.row_gradient."""
    n = targets.shape[0]
    if not n:
        return
    most, options = _common(logits, head)
    inverses, one = _split(inverse)
    _gradient_kernel[(min(n, most),)](
        logits, out, rows, targets, inverses, stats.entropy, stats.top, stats.total, logprob_grad.contiguous(),
        None if entropy_grad is None else entropy_grad.contiguous(),
        n, logits.stride(0), out.stride(0), *_floats(one, head.scale, head.softcap or 1.0), **options,
    )  # fmt: skip


def row_losses(
    logits: Tensor, out: Tensor | None, tokens: TokenBatch, spec: LossSpec, head: Head, rows: Tensor | None = None
) -> RowLosses:
    """See torch_rows.row_losses: statistics, losses and gradient in one launch."""
    n = tokens.targets.shape[0]
    losses, logprobs, entropy, ratio, low, high, kl, match = (
        logits.new_empty(n, dtype=torch.float32) for _ in range(8)
    )
    if n:
        most, options = _common(logits, head)
        _losses_kernel[(min(n, most),)](
            logits, logits if out is None else out, rows, tokens.targets, tokens.advantages, tokens.weights,
            tokens.old_logprobs, tokens.ref_logprobs, tokens.memorize, tokens.importance,
            losses, logprobs, entropy, ratio, low, high, kl, match,
            n, logits.stride(0), logits.stride(0) if out is None else out.stride(0),
            *_floats(1.0 / spec.temperature, 1.0 / spec.memorize_temperature, head.scale, head.softcap or 1.0),
            *loss_settings(spec), GRAD=out is not None, **loss_flags(spec), **options,
        )  # fmt: skip
    return RowLosses(logprobs, entropy, match, losses, TokenStats(ratio, low, high, kl))
