"""Every family under ZeRO-3 on two ranks: the gradients and updates of one process, no hang, checkpointing or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dyme.families import FAMILIES
from tests.helpers.checkpoints import makers
from tests.helpers.packed import separate_logprobs

pytestmark = [pytest.mark.dist, pytest.mark.feature("ZeRO-3, 2 ranks")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, checkpoint):
    from tests.helpers.launching import run_on_ranks

    out = tmp_path_factory.mktemp("zero3")
    run_on_ranks(2, "families", out, *(checkpoint(name) for name in sorted(makers())), timeout=540)
    return out


def single_process(folder: Path):
    """Gradients of every step before clipping and the final weights, one row at a time."""
    from dyme.engine.train_engine import parameter_groups
    from dyme.families import load_family
    from tests.helpers import scenario
    from tests.programs.families import steps_of

    family, model = load_family(folder)
    cfg = scenario.config()
    optimizer = torch.optim.AdamW(
        parameter_groups(family.parts(model), cfg.optim), betas=cfg.optim.betas, eps=cfg.optim.eps
    )
    gradients = []
    for step in steps_of(family):
        optimizer.zero_grad()
        for row, tokens, weight in zip(step.rows, step.tokens, step.weights, strict=True):
            logp = separate_logprobs(family, model, step.prompts[row.group], tokens)
            (weight * -row.advantage * logp).sum().backward()
        for p in model.parameters():  # the vision tower of a text-only step has a zero gradient, not none
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.grad_clip)
        optimizer.step()
    return gradients, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(makers()))
def test_two_ranks_equal_one_process(name, trained, checkpoint):
    gradients, weights = single_process(checkpoint(name))
    for variant in ("plain", "checkpointing"):
        result = torch.load(trained / f"{name}-{variant}.pt")
        for step, (expected, got) in enumerate(zip(gradients, result["gradients"], strict=True)):
            largest = max(g.norm() for g in expected.values())
            for parameter, gradient in expected.items():
                error = (got[parameter] - gradient).norm() / max(gradient.norm(), 1e-4 * largest)
                assert error < 1e-3, f"{variant}, step {step}, gradient of {parameter}: relative error {error:.1e}"
        for parameter, value in weights.items():
            assert (result["weights"][parameter] - value).abs().max() < 1e-4, f"{variant}: {parameter}"
            assert torch.equal(result["copy"][parameter], result["weights"][parameter]), f"stale copy of {parameter}"
        if FAMILIES[makers()[name][0]].modalities:
            assert result["lonely"] > 0, "no rank ran an image it had no prompt for: the steps show nothing"
