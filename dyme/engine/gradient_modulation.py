"""GradientModulation: the part that learns faster, vision or language, is slowed down (OGM, arXiv 2203.15332).

Published for classifiers with two encoders: score_u is the sum over the batch of the probability that modality u alone
gives the right class, from its half of the last layer; rho_u = score_u / score_other; the gradient of encoder u is
multiplied by

    k_u = 1 - tanh(alpha rho_u) where rho_u > 1, else 1

Left open for vision-language models, and chosen here:

- There are no logits of one modality: pictures reach the answer through the language model only. The score of a part is
  the root mean square of its gradient in this step, over its trained values on all ranks: how fast it learns.
  Vision is tower and connector, language decoder and head.
- AdamW divides by the size of past gradients, so a factor on the gradient would all but cancel. k scales the learning
  rate of the part in this step: the same as a factor on the gradient for plain gradient descent, which the authors use,
  and the same under every ZeRO stage. The global norm, and so clipping, is that of the gradient as it is; weight decay
  scales with the learning rate.
- A part without gradient (no picture in the step) slows nothing down.
- GE, noise of the gradient's size on convolution kernels, is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dyme.engine.gradients import by_group
from dyme.settings.errors import ConfigError

VISION = ("vision", "connector")
"""Parts of a model that are not language, see `Family.parts`."""


@dataclass(frozen=True)
class GradientModulation:
    """k of both, 1 where nothing is slowed down."""

    vision: float = 1.0
    language: float = 1.0

    def of(self, part: str) -> float:
        return self.vision if part in VISION else self.language


UNCHANGED = GradientModulation()


def modulate(parts: Sequence[str], squares: Sequence[float], sizes: Sequence[int], alpha: float) -> GradientModulation:
    """Of groups of parameters: the part each belongs to, the sum of its squared gradients and its number of values."""

    def score(vision: bool) -> float:
        mine = [i for i, part in enumerate(parts) if (part in VISION) == vision]
        return math.sqrt(sum(squares[i] for i in mine) / max(1, sum(sizes[i] for i in mine)))

    vision, language = score(True), score(False)
    if not (vision > 0 and language > 0) or vision == language:
        return UNCHANGED
    if vision > language:
        return GradientModulation(vision=1 - math.tanh(alpha * vision / language))
    return GradientModulation(language=1 - math.tanh(alpha * language / vision))


class GradientModulator:
    """What `optim.modulation` (alpha, 0 is off) makes of the gradients of an engine."""

    def __init__(self, groups: Sequence[dict[str, Any]], alpha: float, zero: dict[str, Any]) -> None:
        """groups: of the optimizer, before DeepSpeed has them; zero: its section of the configuration. Raises
        `ConfigError` where there are no two parts to compare, or no gradients to read."""
        self.alpha, self.stage = alpha, zero["stage"]
        self.parts = [group["name"].partition(".")[0] for group in groups]
        self.groups = [list(group["params"]) for group in groups]
        self.sizes = [sum(p.numel() for p in params) for params in self.groups]
        if alpha and len({part in VISION for part in self.parts}) < 2:
            raise ConfigError(
                "optim.modulation compares vision with language, and this run trains only one of them: set it to 0"
            )
        if alpha and self.stage < 3 and zero.get("offload_optimizer", {}).get("device", "none") != "none":
            raise ConfigError(
                "optim.modulation cannot read gradients that ZeRO-1 or 2 offloads: take stage 3, or set it to 0"
            )

    def measure(self, optimizer: Any, all_reduce: Callable[[Sequence[float]], list[float]]) -> GradientModulation:
        """k of this step, the same on all ranks; one collective where it is on."""
        if not self.alpha:
            return UNCHANGED
        held = by_group(optimizer, self.stage, self.groups)
        squares = all_reduce([sum(float(g.double().square().sum()) for g in grads) for grads in held])
        return modulate(self.parts, squares, self.sizes, self.alpha)
