"""The gradient and the update do not depend on how many ranks or micro-batches computed them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def reference():
    from tests.helpers import scenario

    return scenario.reference()


def check(folder: Path, reference, ranks: int) -> dict:
    gradients, weights, norms = reference
    result = torch.load(folder / "result.pt")
    assert result["weights"].keys() == gradients[0].keys()
    for step, (expected, got) in enumerate(zip(gradients, result["gradients"], strict=True)):
        largest = max(g.norm() for g in expected.values())
        for name, gradient in expected.items():
            error = (got[name] - gradient).norm() / max(gradient.norm(), 1e-4 * largest)
            assert error < 2e-4, f"step {step}, gradient of {name}: relative error {error:.1e}"
    assert result["norms"] == pytest.approx(norms, rel=1e-4)
    for name, value in weights.items():
        if name in result["weights"]:
            assert (result["weights"][name] - value).abs().max() < 5e-5, name
    expected = plain(weights | result["weights"])
    assert result["copy"].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(result["copy"][name], value), f"rollout copy of {name} is stale"
    traces = [json.loads((folder / f"trace{r}.json").read_text()) for r in range(ranks)]
    assert len(traces[0]) > 20
    assert all(trace == traces[0] for trace in traces), "ranks ran different collectives"
    return result


def plain(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model with adapters as a model without them: W + alpha / r B A, to the bit."""
    from tests.helpers import scenario

    merged = {n.replace(".base_layer", ""): v for n, v in weights.items() if ".lora_" not in n}
    for name, down in weights.items():
        if ".lora_A." in name:
            owner, up = name.partition(".lora_A.")[0], weights[name.replace("lora_A", "lora_B")]
            base = merged.get(f"{owner}.weight", weights["model.text_model.embed_tokens.weight"])  # a tied head
            merged[f"{owner}.weight"] = base + scenario.SCALING[owner == "lm_head"] * (up @ down)
    return merged


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_equals_single_process_full_batch(tmp_path, run_ranks, reference, ranks):
    run_ranks(ranks, "equality", tmp_path)
    result = check(tmp_path, reference, ranks)
    assert len(set(result["micro"])) > 1  # micro-batch counts vary over the steps
    # embedding and head share one tensor, forward and backward both use it, and yet it is gathered once a micro-batch,
    # as soon as ZeRO-3 has seen the order of the modules
    if ranks > 1:
        assert result["head_gathers"][2:] == result["micro"][2:]


def test_equals_with_gradient_checkpointing(tmp_path, run_ranks, reference, monkeypatch):
    monkeypatch.setenv("MODEL", json.dumps({"gradient_checkpointing": True}))
    run_ranks(2, "equality", tmp_path)
    assert check(tmp_path, reference, 2)["micro"][0] > 1


@pytest.mark.parametrize(("loss", "zero"), [("clip", ()), ("gspo", ("stage=2",))])
def test_equals_with_two_epochs_and_a_reference_policy(tmp_path, run_ranks, monkeypatch, loss, zero):
    from tests.helpers import scenario

    monkeypatch.setenv("LOSS", loss)
    run_ranks(2, "equality", tmp_path, *zero)
    result = check(tmp_path, scenario.reference(scenario.LOSSES[loss]), 2)
    assert len(result["gradients"]) == 8  # two epochs of four steps
    assert result["clipped"] > 0.05  # ratios have left 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_with_joint_groups_and_a_scheduled_kl(tmp_path, run_ranks, monkeypatch, ranks):
    """Rollouts and reference of each group, each with its weight; memorized tokens weighed by p (1 - p); a KL term that
    grows from 0; a record that waited and has no rollouts."""
    from tests.helpers import scenario

    monkeypatch.setenv("LOSS", "joint")
    run_ranks(ranks, "equality", tmp_path)
    steps = scenario.joint(scenario.build()[2])
    assert [step.kl_share for step in steps] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for step in steps:
        joint = {row.group for row in step.rows if row.memorize} & {row.group for row in step.rows if not row.memorize}
        assert len(joint) >= 2 and step.token_shaping == "p(1-p)"
    assert [row.completion for row in steps[-1].rows if row.group == len(steps[-1].prompts) - 1] == [-1]
    check(tmp_path, scenario.reference(scenario.LOSSES["joint"]), ranks)


def test_equals_with_a_lora_wrapped_head(tmp_path, run_ranks, monkeypatch):
    pytest.importorskip("peft")
    from tests.helpers import scenario

    monkeypatch.setenv("LORA_HEAD", "1")
    run_ranks(2, "equality", tmp_path)
    result = check(tmp_path, scenario.reference(lora_head=True), 2)
    assert {"lm_head.lora_A.default.weight", "lm_head.lora_B.default.weight"} <= result["weights"].keys()


@pytest.mark.parametrize(
    ("ranks", "settings", "zero"),
    [(1, {}, ("stage=2",)), (2, {"gradient_checkpointing": True}, ())],
    ids=["one rank, ZeRO-2", "two ranks, checkpointing"],
)
def test_lora_equals_with_its_base_as_reference_policy(tmp_path, run_ranks, monkeypatch, ranks, settings, zero):
    """Adapters alone are trained; the reference is the model before they were added, in the single process a model of
    its own."""
    from tests.helpers import scenario

    settings = {"lora": scenario.LORA, **settings}
    monkeypatch.setenv("LOSS", "clip")
    monkeypatch.setenv("MODEL", json.dumps(settings))
    run_ranks(ranks, "equality", tmp_path, *zero)
    result = check(tmp_path, scenario.reference(scenario.LOSSES["clip"], model_settings=settings), ranks)
    assert all(".lora_" in name for name in result["weights"])
    assert all(g.any() for name, g in result["gradients"][-1].items()), "an adapter is not trained"


def test_equals_under_zero2(tmp_path, run_ranks, reference):
    run_ranks(2, "equality", tmp_path, "stage=2")
    assert check(tmp_path, reference, 2)["norms"]
