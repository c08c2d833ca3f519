"""What the loss of a token is: `LossSpec`, and TRL's names for common choices."""

from __future__ import annotations

import math
from dataclasses import dataclass

SURROGATES = ("clip", "cispo", "gspo", "sapo")
TOKEN_SHAPINGS = ("none", "p(1-p)")
NORMALIZATIONS = ("group", "row", "token", "component", "constant")


@dataclass(frozen=True)
class LossSpec:
    """The loss of one token; how tokens are weighed against each other is `weights`, an argument of the operations.

    With rho = exp(logp - old_logp), A the advantage, and sg the stop-gradient, an explored token costs

        importance * surrogate + beta * (exp(ref - logp) - (ref - logp) - 1) - entropy_coef * H

    | surrogate | formula | source |
    |---|---|---|
    | clip  | -min(min(rho, delta) A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A) | PPO 1707.06347, DAPO |
    | gspo  | clip with rho = exp(mean over the row of logp - old_logp) | GSPO 2507.18071 |
    | cispo | -sg(min(rho, cispo_cap)) A logp | MiniMax-M1 2506.13585, ScaleRL 2510.13786 |
    | sapo  | -(4 / tau) sigmoid(tau (rho - 1)) A; tau = sapo_tau_pos where A > 0, else sapo_tau_neg | SAPO 2511.20347 |

    A memorized token costs -A logp and nothing else (rho = 1, no clip, no KL, no entropy bonus, no importance weight).

    Fields:
        epsilon_low, epsilon_high: clip range of rho, [1 - low, 1 + high].
        delta: upper bound of rho for negative advantages ("two-sided clip" in TRL), above 1; None is unbounded.
        beta: coefficient of the k3 estimate of KL(policy, reference); needs `ref_logprobs`.
        temperature: logits of explored tokens are divided by it, as they were for sampling.
        memorize_temperature: the same for memorized tokens. 1 is plain likelihood; set it to `temperature` for the
            behaviour of code that divides every row.
        entropy_coef: weight of the entropy bonus, in the units of the token loss.
        sapo_tau_pos, sapo_tau_neg: TRL's sapo_temperature_pos and sapo_temperature_neg.
        cispo_cap: largest rho of cispo, an absolute bound (TRL names it epsilon_high under loss_type="cispo").
        token_shaping: factor of memorized tokens: "none", or "p(1-p)" (CHORD 2508.11408), p detached.
        logit_softcap, logit_scale: logits = cap tanh(scale x / cap) of the raw product. Part of the head, so only
            `linear_policy_loss` applies them: logits that a model returns have been through both.

    Raises ValueError that names the field and what it may be.
    """

    surrogate: str = "clip"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    beta: float = 0.0
    temperature: float = 1.0
    memorize_temperature: float = 1.0
    entropy_coef: float = 0.0
    sapo_tau_pos: float = 1.0
    sapo_tau_neg: float = 1.05
    cispo_cap: float = 5.0
    token_shaping: str = "none"
    logit_softcap: float | None = None
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        _one_of("surrogate", self.surrogate, SURROGATES)
        _one_of("token_shaping", self.token_shaping, TOKEN_SHAPINGS)
        _within("epsilon_low", self.epsilon_low, 0.0, 1.0)
        _within("epsilon_high", self.epsilon_high, 0.0, math.inf)
        _within("beta", self.beta, 0.0, math.inf)
        _within("entropy_coef", self.entropy_coef, -math.inf, math.inf)
        for name in ("temperature", "memorize_temperature", "sapo_tau_pos", "sapo_tau_neg", "cispo_cap", "logit_scale"):
            _positive(name, getattr(self, name))
        if self.logit_softcap is not None:
            _positive("logit_softcap", self.logit_softcap, "or None for no cap")
        if self.delta is not None and not self.delta > 1.0:
            raise ValueError(f"LossSpec.delta={self.delta}: allowed is None or a number above 1, the on-policy ratio")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"LossSpec.{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"LossSpec.{name}={value}: allowed are finite numbers from {low} to {high}")


def _positive(name: str, value: float, also: str = "") -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"LossSpec.{name}={value}: allowed are finite numbers above 0 {also}".rstrip())


# `bnpo` averages over the tokens of one rank's micro-batch in TRL: the same number as `token` on one rank only.
PRESETS: dict[str, tuple[LossSpec, str]] = {
    "grpo": (LossSpec(), "row"),
    "dapo": (LossSpec(), "token"),
    "dr_grpo": (LossSpec(), "constant"),
    "bnpo": (LossSpec(), "token"),
    "cispo": (LossSpec(surrogate="cispo"), "token"),
    "sapo": (LossSpec(surrogate="sapo"), "row"),
    "gspo": (LossSpec(surrogate="gspo"), "row"),
}


def preset(name: str) -> tuple[LossSpec, str]:
    """The surrogate and the normalization that TRL (1.16) runs under `name`, with TRL's default constants.

    gspo is TRL's loss_type "grpo" with importance_sampling_level "sequence". One constant differs: cispo is capped at
    ScaleRL's 5, where TRL would take 0.2 from the epsilon of the other losses. Vary one with `dataclasses.replace`.

    Returns (spec, normalization), normalization one of NORMALIZATIONS. Raises ValueError for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"loss preset {name!r}: allowed are {', '.join(map(repr, PRESETS))}")
    return PRESETS[name]
