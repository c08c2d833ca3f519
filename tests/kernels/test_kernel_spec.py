"""LossSpec's checks, and the presets computed by hand on two rows of two and three tokens."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dyme_kernels
from dyme_kernels import NORMALIZATIONS, PRESETS, LossSpec, policy_loss, preset
from tests.helpers.launching import ROOT

# Two completions: rows 0 0 and 1 1 1, advantages 1 and -1, ratios new / old as below.
NEW, OLD = [0.6, 0.2, 0.5, 0.9, 0.3], [0.4, 0.25, 0.5, 0.6, 0.6]
ROWS, ADVANTAGES = [0, 0, 1, 1, 1], [1.0, 1.0, -1.0, -1.0, -1.0]
MAX_NEW_TOKENS = 8


def weights(normalization: str) -> torch.Tensor:
    by_token = {"row": [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6], "token": [1 / 5] * 5, "constant": [1 / 16] * 5}
    return torch.tensor(by_token[normalization], dtype=torch.float64)


def sapo(ratio: float, tau: float) -> float:
    return 4 / tau / (1 + math.exp(-tau * (ratio - 1)))


CLIPPED = [-1.2, -0.8, 1.0, 1.5, 0.8]
ROW_RATIOS = [math.sqrt(1.5 * 0.8), (1.0 * 1.5 * 0.5) ** (1 / 3)]
EXPECTED = {
    "grpo": (-1.2 - 0.8) / 4 + (1.0 + 1.5 + 0.8) / 6,
    "dapo": sum(CLIPPED) / 5,
    "bnpo": sum(CLIPPED) / 5,
    "dr_grpo": sum(CLIPPED) / (2 * MAX_NEW_TOKENS),
    "gspo": -min(ROW_RATIOS[0], 1.2) / 2 + max(ROW_RATIOS[1], 0.8) / 2,
    "cispo": sum(-a * n / o * math.log(n) for a, n, o in zip(ADVANTAGES, NEW, OLD)) / 5,
    "sapo": -(sapo(1.5, 1.0) + sapo(0.8, 1.0)) / 4 + (sapo(1.0, 1.05) + sapo(1.5, 1.05) + sapo(0.5, 1.05)) / 6,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_by_hand(name):
    spec, normalization = preset(name)
    p = torch.tensor(NEW, dtype=torch.float64)
    logits = torch.stack([p, 1 - p], 1).log()
    old = torch.tensor(OLD, dtype=torch.float64).log()
    out = policy_loss(
        logits,
        torch.zeros(5, dtype=torch.int64),
        torch.tensor(ADVANTAGES),
        weights(normalization),
        old,
        segments=torch.tensor(ROWS),
        spec=spec,
    )
    assert normalization in NORMALIZATIONS
    assert out.loss.item() == pytest.approx(EXPECTED[name], rel=1e-12)


def test_every_preset_is_tested_and_unknown_ones_name_the_allowed():
    assert set(EXPECTED) == set(PRESETS)
    with pytest.raises(ValueError, match="'grpo', 'dapo'"):
        preset("ppo")


@pytest.mark.parametrize(
    "change,words",
    (
        (dict(surrogate="ppo"), "surrogate='ppo': allowed are 'clip', 'cispo'"),
        (dict(token_shaping="p"), "token_shaping='p': allowed are 'none'"),
        (dict(epsilon_low=1.5), "epsilon_low=1.5: allowed are finite numbers from 0.0 to 1.0"),
        (dict(epsilon_high=-0.1), "epsilon_high"),
        (dict(beta=-1.0), "beta"),
        (dict(entropy_coef=math.nan), "entropy_coef"),
        (dict(temperature=0.0), "temperature=0.0: allowed are finite numbers above 0"),
        (dict(memorize_temperature=-1.0), "memorize_temperature"),
        (dict(sapo_tau_neg=0.0), "sapo_tau_neg"),
        (dict(cispo_cap=0.0), "cispo_cap"),
        (dict(delta=0.9), "delta=0.9: allowed is None or a number above 1"),
        (dict(logit_softcap=0.0), "logit_softcap=0.0: .* or None"),
        (dict(logit_scale=math.inf), "logit_scale"),
    ),
)
def test_a_wrong_value_names_the_field(change, words):
    with pytest.raises(ValueError, match=words):
        LossSpec(**change)


def test_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import dyme_kernels; print(dyme_kernels.preset('grpo')[1])"
    env = {"PYTHONPATH": str(Path(dyme_kernels.__file__).parents[1]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "row", done.stderr


def test_the_plain_example_of_the_manual_learns():
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs/kernels.md").read_text(), re.S)
    [snippet] = [s for s in snippets if "losses = []" in s]
    names: dict[str, object] = {}
    exec(compile(snippet, "docs/kernels.md", "exec"), names)
    losses = names["losses"]
    assert isinstance(losses, list) and losses[-1] < losses[0]
