"""The loss of a token and its derivatives, as Triton functions of scalars: the Triton implementation of surrogates.py.

The tests compare every branch with surrogates.py, which is the definition.
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl

from dyme_kernels.spec import LossSpec
from dyme_kernels.surrogates import MAX_LOG_RATIO
from dyme_kernels.triton_math import LOG2E, exponential, smaller

_MAX_LOG_RATIO = tl.constexpr(MAX_LOG_RATIO)
_CISPO, _SAPO = tl.constexpr(1), tl.constexpr(2)
# gspo is clip where every row's ratio is 1, which is the only case that comes here
_CODES = {"clip": 0, "gspo": 0, "cispo": 1, "sapo": 2}


def loss_settings(spec: LossSpec) -> list[float]:
    """The arguments of `token_loss` from lower to entropy_coef."""
    delta = math.inf if spec.delta is None else spec.delta
    taus = (spec.sapo_tau_pos, spec.sapo_tau_neg)
    bounds = (1.0 - spec.epsilon_low, 1.0 + spec.epsilon_high, delta, spec.cispo_cap)
    # A whole number that the caller wrote as int would be another type, and so another kernel.
    return [float(x) for x in (*bounds, *taus, spec.beta, spec.entropy_coef)]


def loss_flags(spec: LossSpec) -> dict[str, Any]:
    """The compile-time arguments of `token_loss`."""
    flags = {"SHAPED": spec.token_shaping != "none", "BETA": spec.beta != 0.0, "BONUS": spec.entropy_coef != 0.0}
    return {"KIND": _CODES[spec.surrogate], **flags}


@triton.jit
def token_loss(
    i, logp, entropy, plain, advantages, olds, refs, memorize, importance,
    lower, upper, delta, cap, tau_pos, tau_neg, beta, entropy_coef,
    KIND: tl.constexpr, SHAPED: tl.constexpr, BETA: tl.constexpr, BONUS: tl.constexpr,
):  # fmt: skip
    """Of token i, before its weight -> loss, dloss/dlogp, dloss/dH, ratio, clipped_low, clipped_high (0 or 1), kl.
    plain: whether it is memorized."""
    advantage = tl.load(advantages + i)
    # on-policy it is 0, or NaN for a target outside the vocabulary, which must show in the loss
    log_ratio = logp - (logp if olds is None else tl.load(olds + i))
    loss, c, ratio, low, high = _surrogate(log_ratio, logp, advantage, lower, upper, delta, cap, tau_pos, tau_neg, KIND)
    if importance is not None:
        factor = tl.load(importance + i)
        loss = loss * factor
        c = c * factor
    kl = 0.0
    if refs is not None:
        kl, kl_slope = _k3(tl.load(refs + i), logp)
        if BETA:
            loss = loss + beta * kl
            c = c + beta * kl_slope
    e = 0.0
    if BONUS:
        loss = loss - entropy_coef * entropy
        e = -entropy_coef
    if memorize is not None:  # tl.where, for what the caller left there for a memorized token may be NaN
        likelihood = advantage
        if SHAPED:
            p = tl.exp2(logp * LOG2E)
            likelihood = advantage * p * (1.0 - p)
        loss = tl.where(plain, -likelihood * logp, loss)
        c = tl.where(plain, -likelihood, c)
        e = tl.where(plain, 0.0, e)
        ratio = tl.where(plain, 1.0, ratio)
        low = tl.where(plain, 0.0, low)
        high = tl.where(plain, 0.0, high)
        kl = tl.where(plain, 0.0, kl)
    return loss, c, e, ratio, low, high, kl


@triton.jit
def _surrogate(log_ratio, logp, advantage, lower, upper, delta, cap, tau_pos, tau_neg, KIND: tl.constexpr):
    """-> loss, dloss/dlogp, ratio, clipped_low, clipped_high (0 or 1)."""
    ratio = exponential(smaller(log_ratio, _MAX_LOG_RATIO))
    slope = tl.where(log_ratio > _MAX_LOG_RATIO, 0.0, ratio)  # dratio/dlogp
    low = 0.0
    high = 0.0
    if KIND == _CISPO:
        capped = smaller(ratio, cap)
        loss = -capped * advantage * logp
        c = -capped * advantage
        high = tl.where((ratio > cap) & (advantage > 0.0), 1.0, 0.0)
    elif KIND == _SAPO:
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
def _k3(ref, logp):
    """-> k3 estimate of the divergence from the reference, and its derivative by logp."""
    distance = ref - logp
    grown = exponential(smaller(distance, _MAX_LOG_RATIO))
    kl = grown - distance - 1.0
    return kl, 1.0 - tl.where(distance > _MAX_LOG_RATIO, 0.0, grown)
