"""The loss of a token and its derivatives, as Triton functions of scalars: surrogates.py once more, by hand.

`surrogates.py` is the definition; the tests compare every branch with it.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAX_LOG_RATIO = tl.constexpr(60.0)  # see surrogates.py
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
CLIP, CISPO, SAPO = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SURROGATE_CODES = {"clip": 0, "gspo": 0, "cispo": 1, "sapo": 2}
"""gspo is clip where every row's ratio is 1, which is the only case that comes here."""


@triton.jit
def smaller(x, y):
    """NaN if either is: a broken log-probability must not hide behind a clip."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exponential(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def tanh(x):
    """Through exp away from 0, by its series near 0, where 1 - exp would cancel."""
    square = x * x
    series = x * (
        1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * 62.0 / 2835.0)))
    )
    e = exponential(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0.0, -far, far))


@triton.jit
def surrogate_loss(log_ratio, logp, advantage, lower, upper, delta, cap, tau_pos, tau_neg, KIND: tl.constexpr):
    """-> loss, dloss/dlogp, ratio, clipped_low, clipped_high (0 or 1)."""
    ratio = exponential(smaller(log_ratio, MAX_LOG_RATIO))
    slope = tl.where(log_ratio > MAX_LOG_RATIO, 0.0, ratio)  # dratio/dlogp
    low = 0.0
    high = 0.0
    if KIND == CISPO:
        capped = smaller(ratio, cap)
        loss = -capped * advantage * logp
        c = -capped * advantage
        high = tl.where((ratio > cap) & (advantage > 0.0), 1.0, 0.0)
    elif KIND == SAPO:
        tau = tl.where(advantage > 0.0, tau_pos, tau_neg)
        s = 1.0 / (1.0 + exponential(-tau * (ratio - 1.0)))
        loss = -(4.0 / tau) * s * advantage
        c = -4.0 * s * (1.0 - s) * advantage * slope
    else:
        free = smaller(ratio, delta) * advantage
        held = tl.minimum(tl.maximum(ratio, lower), upper) * advantage
        loss = -smaller(free, held)
        free_slope = tl.where(ratio <= delta, advantage, 0.0)
        held_slope = tl.where((ratio >= lower) & (ratio <= upper), advantage, 0.0)
        # a tie takes half of each, as torch.minimum does
        chosen = tl.where(free < held, free_slope, tl.where(held < free, held_slope, 0.5 * (free_slope + held_slope)))
        c = -chosen * slope
        low = tl.where((ratio < lower) & (advantage < 0.0), 1.0, 0.0)
        high = tl.where((ratio > upper) & (advantage > 0.0), 1.0, 0.0)
    return loss, c, ratio, low, high


@triton.jit
def k3(ref, logp):
    """-> k3 estimate of the divergence from the reference, and its derivative by logp."""
    distance = ref - logp
    grown = exponential(smaller(distance, MAX_LOG_RATIO))
    kl = grown - distance - 1.0
    return kl, 1.0 - tl.where(distance > MAX_LOG_RATIO, 0.0, grown)
