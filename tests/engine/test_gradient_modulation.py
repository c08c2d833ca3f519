"""Factors of OGM on numbers worked out by hand, and runs that it cannot serve."""

from __future__ import annotations

import math

import pytest
import torch

from dyme.engine.gradient_modulation import GradientModulation, GradientModulator, modulate
from dyme.settings.errors import ConfigError

PARTS = ["vision", "connector", "language", "language", "head"]


def test_factors():
    """Vision: sqrt((12 + 4) / 4) = 2, language: sqrt((3 + 2 + 4) / 9) = 1, so rho = 2 and k = 1 - tanh(2 alpha)."""
    squares, sizes = [12.0, 4.0, 3.0, 2.0, 4.0], [3, 1, 4, 2, 3]
    assert modulate(PARTS, squares, sizes, 0.5) == GradientModulation(
        vision=pytest.approx(1 - math.tanh(1.0)), language=1.0
    )
    # the other way round: vision sqrt(4 / 4) = 1, language sqrt(9 * 9 / 9) = 3
    got = modulate(PARTS, [3.0, 1.0, 27.0, 18.0, 36.0], sizes, 0.1)
    assert got == GradientModulation(vision=1.0, language=pytest.approx(1 - math.tanh(0.3)))
    assert got.of("head") == got.language and got.of("connector") == 1.0


def test_nobody_is_slowed_down():
    assert modulate(PARTS, [1.0, 1.0, 1.0, 1.0, 1.0], [1, 1, 1, 1, 1], 0.5) == GradientModulation()
    assert (
        modulate(PARTS, [0.0, 0.0, 1.0, 1.0, 1.0], [1, 1, 1, 1, 1], 0.5) == GradientModulation()
    )  # a step without pictures
    assert modulate(PARTS, [1.0, 1.0, 0.0, 0.0, 0.0], [1, 1, 1, 1, 1], 0.5) == GradientModulation()


def test_what_it_cannot_serve():
    def groups(*parts: str) -> list[dict]:
        return [{"name": f"{part}.matrices", "params": [torch.nn.Parameter(torch.ones(2, 2))]} for part in parts]

    with pytest.raises(ConfigError, match=r"optim\.modulation compares vision with language"):
        GradientModulator(groups("language", "head"), 0.1, {"stage": 3})
    with pytest.raises(ConfigError, match="ZeRO-1 or 2 offloads"):
        GradientModulator(groups("vision", "head"), 0.1, {"stage": 2, "offload_optimizer": {"device": "cpu"}})
    GradientModulator(groups("language", "head"), 0.0, {"stage": 2, "offload_optimizer": {"device": "cpu"}})
