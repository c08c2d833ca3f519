"""Sampling in two launches: slices of the vocabulary, then a merge of each row's slices. See sampling.py.

The first kernel reads the logits once. In that read it keeps, in every lane, the log-sum-exp of the policy and the two
best noisy scores. There the noise comes from float32 logarithms, which are within MARGIN of the exact ones: float64
logarithms of all entries would take many times as long as reading them. The second kernel computes the exact score of
each slice's best entry, and so of all entries that can be the arg-max; where another entry of a slice is within twice
the margin it goes through the whole row exactly, which few rows in ten thousand need.

Slices depend on the vocabulary only, so a row gives the same bits in every batch. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dyme_kernels.noise import GOLDEN, MIX1, MIX2
from dyme_kernels.triton_math import LN2, LOG2E

BLOCK, WARPS, MERGE_WARPS = 1024, 4, 8  # entries read at once by a program, and the warps that share them
SLICES = 16  # programs a row at most: batches are small, and one program a row would leave the GPU idle
MARGIN = tl.constexpr(2e-4)  # bounds what _rough_noise and its sum with a score are off, for scores up to 100
RELATIVE = tl.constexpr(1e-6)  # more of it for larger scores: float32 rounds them more coarsely
_LOWEST = tl.constexpr(-3.0e38)
_NOWHERE = tl.constexpr(2**31 - 1)
_GOLDEN, _MIX1, _MIX2 = tl.constexpr(GOLDEN), tl.constexpr(MIX1), tl.constexpr(MIX2)
_LAST = tl.constexpr(2**52 - 1)
PER_ROW = ("keys", "positions", "tokens", "logprobs")  # slices of a batch begin anywhere


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * _MIX1
    x = (x ^ (x >> 27)) * _MIX2
    return x ^ (x >> 31)


@triton.jit
def _row_hash(key, position):
    return _mix(key.to(tl.uint64) + (position + 1).to(tl.uint64) * _GOLDEN)


@triton.jit
def _bits(row, entries):
    """52 random bits of each entry."""
    return _mix(row + entries.to(tl.uint64) * _GOLDEN) >> 12


@triton.jit
def _exact_noise(bits):
    uniform = (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2**-52
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def _rough_noise(bits):
    """In float32. Where the uniform number is close to 1 its distance v from there is what float32 can hold, and
    -log(1 - v) is a series: that end makes the largest noise."""
    u = bits.to(tl.float32) * 2.220446049250313e-16 + 1.1102230246251565e-16
    v = (bits ^ _LAST).to(tl.float32) * 2.220446049250313e-16 + 1.1102230246251565e-16
    exponential = tl.where(v < 0.015625, v * (1.0 + v * (0.5 + v * 0.3333333)), -tl.log2(u) * LN2)
    return -tl.log2(exponential) * LN2


@triton.jit
def _restricted(x, banned, seen, entries, inside, penalty):
    """The logits x without what is banned and with the penalty."""
    if banned is not None:
        x = tl.where(tl.load(banned + entries, mask=inside, other=0).to(tl.int1), -float("inf"), x)
    if seen is not None:
        again = tl.load(seen + entries, mask=inside, other=0).to(tl.int1)
        x = tl.where(again, tl.where(x < 0.0, x * penalty, tl.div_rn(x, penalty)), x)
    return x


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def _slices_kernel(
    logits, scores, seen, banned, keys, positions, bests, seconds, indices, tops, totals,
    stride, score_stride, seen_stride, inverse, penalty,
    V: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    out = i * tl.num_programs(1) + part
    lanes = tl.arange(0, BLOCK)
    first = part * WIDTH
    row = _row_hash(tl.load(keys + i), tl.load(positions + i))
    k = inverse * LOG2E
    top = tl.full((BLOCK,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    second = best
    index = first + lanes
    for start in range(first, tl.minimum(first + WIDTH, V), BLOCK):
        entries = start + lanes
        inside = entries < V
        x = tl.load(logits + i * stride + entries, mask=inside, other=-float("inf"), eviction_policy="evict_first")
        x = x.to(tl.float32)
        # one exponential serves both ways: either the sum fades or the new term does
        higher = x > top
        e = tl.exp2(-tl.abs(x - top) * k)
        total = tl.where(higher, total * e + 1.0, total + e)
        top = tl.where(higher, x, top)
        if scores is not None:
            s = tl.load(scores + i * score_stride + entries, mask=inside, other=-float("inf"))
        else:
            place = seen if seen is None else seen + i * seen_stride
            s = _restricted(x, banned, place, entries, inside, penalty)
            if not GREEDY:
                s = s * inverse
        if not GREEDY:
            s = s + _rough_noise(_bits(row, entries))
        better = s > best  # strictly: of equal scores a lane keeps the first
        second = tl.maximum(second, tl.minimum(best, s))
        index = tl.where(better, entries, index)
        best = tl.where(better, s, best)
    highest = tl.max(top, 0)
    tl.store(tops + out, highest)
    tl.store(totals + out, tl.sum(total * tl.exp2((top - highest) * k), 0))
    winner = tl.max(best, 0)
    chosen = tl.min(tl.where(best == winner, index, _NOWHERE), 0)
    tl.store(bests + out, winner)
    tl.store(indices + out, chosen)
    if not GREEDY:
        tl.store(seconds + out, tl.max(tl.where(index == chosen, second, best), 0))


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def _merge_kernel(
    logits, scores, seen, banned, keys, positions, bests, seconds, indices, tops, totals, tokens, logprobs,
    stride, score_stride, seen_stride, inverse, temperature, penalty,
    V: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    there = lanes < PARTS
    parts = i * PARTS + lanes
    best = tl.load(bests + parts, mask=there, other=-float("inf"))
    candidates = tl.load(indices + parts, mask=there, other=V)
    leader = tl.max(best, 0)
    if GREEDY:
        score = best
        index = candidates
    else:
        row = _row_hash(tl.load(keys + i), tl.load(positions + i))
        second = tl.load(seconds + parts, mask=there, other=-float("inf"))
        bar = leader - 2.0 * (MARGIN + RELATIVE * tl.abs(leader))
        crowded = tl.max(second, 0) >= bar
        score = tl.full((BLOCK,), -float("inf"), tl.float32)
        index = tl.where(there, candidates, lanes)
        for start in range(0, tl.where(crowded, V, 1), BLOCK):
            entries = tl.where(crowded, start + lanes, candidates)
            inside = entries < V
            if scores is not None:
                s = tl.load(scores + i * score_stride + entries, mask=inside, other=-float("inf"))
            else:
                x = tl.load(logits + i * stride + entries, mask=inside, other=-float("inf")).to(tl.float32)
                place = seen if seen is None else seen + i * seen_stride
                s = tl.div_rn(_restricted(x, banned, place, entries, inside, penalty), temperature)
            s = s + _exact_noise(_bits(row, entries))
            index = tl.where(s > score, entries, index)
            score = tl.maximum(score, s)
    token = tl.min(tl.where(score == tl.max(score, 0), index, _NOWHERE), 0)
    token = tl.minimum(token, V - 1)  # a row of NaN must not name what is not there
    top = tl.load(tops + parts, mask=there, other=_LOWEST)
    highest = tl.max(top, 0)
    total = tl.load(totals + parts, mask=there, other=0.0)
    total = tl.sum(total * tl.exp2((top - highest) * inverse * LOG2E), 0)
    x = tl.load(logits + i * stride + token).to(tl.float32)
    tl.store(tokens + i, token.to(tl.int64))
    tl.store(logprobs + i, (x - highest) * inverse - tl.log2(total) * LN2)


def slices(vocabulary: int) -> tuple[int, int]:
    """How many slices a row of the vocabulary has, and how wide they are."""
    width = triton.cdiv(triton.cdiv(vocabulary, SLICES), BLOCK) * BLOCK
    return triton.cdiv(vocabulary, width), width


def sampled(
    logits: Tensor, keys: Tensor, positions: Tensor, temperature: float, banned: Tensor | None, seen: Tensor | None,
    penalty: float, scores: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See sampling.sample_tokens; `banned` as bool [V]."""
    rows, vocabulary = logits.shape
    parts, width = slices(vocabulary)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs, bests, seconds, tops, totals = (
        torch.empty(shape, dtype=torch.float32, device=logits.device) for shape in (rows, *4 * ((rows, parts),))
    )
    indices = torch.empty((rows, parts), dtype=torch.int32, device=logits.device)
    if rows:
        given = (logits, scores, seen, banned, keys.contiguous(), positions.contiguous())
        found = (bests, seconds, indices, tops, totals)
        strides = [0 if x is None else x.stride(0) for x in (logits, scores, seen)]
        divisor = float(temperature) or 1.0
        options = {"V": vocabulary, "BLOCK": BLOCK, "GREEDY": temperature == 0.0}
        _slices_kernel[(rows, parts)](
            *given, *found, *strides, 1.0 / divisor, float(penalty), WIDTH=width, **options, num_warps=WARPS
        )
        _merge_kernel[(rows,)](
            *given, *found, tokens, logprobs, *strides, 1.0 / divisor, divisor, float(penalty), PARTS=parts, **options,
            num_warps=MERGE_WARPS,
        )  # fmt: skip
    return tokens, logprobs
