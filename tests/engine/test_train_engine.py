"""What of the engine needs no process group: the wrapped module, parameter groups, the schedule, the DeepSpeed JSON."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from dyme.batching.objective import LossInputs
from dyme.batching.packing import pack
from dyme.config import load_config
from dyme.engine.policy_module import Policy, head_tensors
from dyme.engine.rollout_copy import RolloutCopy
from dyme.engine.train_engine import (
    TrainEngine,
    _unflatten,
    deepspeed_config,
    freeze_parts,
    lr_factor,
    parameter_groups,
)
from dyme.families import ModelError
from dyme.settings.errors import ConfigError
from dyme.settings.optim import OptimConfig
from dyme_kernels import LossSpec, PolicyLossOutput
from tests.helpers import scenario
from tests.helpers.runs import write_config


def policy_loss(token_shaping: str = "none", memorize: bool = True) -> tuple[float, float]:
    """Loss of one reply through the wrapped module, and what its log-probabilities give by hand."""
    family, model, steps = scenario.build()
    step = steps[0]
    prompt, tokens = step.prompts[0], step.tokens[0]
    expected = scenario.row_logprobs(model, prompt, tokens).detach()
    n = len(tokens)
    inputs = LossInputs(torch.ones(n), torch.full((n,), 0.5), torch.full((n,), memorize), token_shaping)
    module = Policy(family, model, LossSpec(), 64)
    out = PolicyLossOutput(*module(pack(family, [(prompt, [tokens])], frozenset()), inputs))
    assert torch.allclose(out.logprobs, expected, atol=1e-5)
    probability = expected.exp()
    shape = probability * (1 - probability) if token_shaping != "none" and memorize else 1.0
    loss = -(0.5 * shape * expected).sum() if memorize else torch.tensor(-0.5 * n)
    return float(out.loss.detach()), float(loss)


@pytest.mark.parametrize("shaping", ["none", "p(1-p)"])
@pytest.mark.parametrize("memorize", [True, False])
def test_policy_computes_the_loss_at_the_live_positions(shaping, memorize):
    got, expected = policy_loss(shaping, memorize)
    assert got == pytest.approx(expected, rel=1e-4)


def test_adapters_that_the_fused_head_cannot_take_are_named():
    peft = pytest.importorskip("peft")
    _, model, _ = scenario.build()
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.1)
    peft.inject_adapter_in_model(config, model)
    with pytest.raises(ModelError, match="leave lm_head out of its target modules"):
        head_tensors(model.lm_head)


def test_the_head_still_works_as_a_plain_layer():
    family, model, _ = scenario.build()
    hidden = torch.randn(3, 32)
    before = family.head(model)(hidden)
    Policy(family, model, LossSpec(), 64)
    assert torch.equal(family.head(model)(hidden), before)


def test_parameter_groups_hold_every_parameter_once():
    family, model, _ = scenario.build()
    optim = OptimConfig(lr=1e-3, weight_decay=0.1, part_lr={"vision": 1e-4})
    groups = parameter_groups(family.parts(model), optim)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
        assert group["lr"] == (1e-4 if group["name"].startswith("vision") else 1e-3)


def test_freezing_parts_leaves_shared_tensors_trained():
    family, model, _ = scenario.build()
    parts = family.parts(model)
    freeze_parts(parts, ("vision", "language"))
    assert not any(p.requires_grad for p in parts["vision"].parameters())
    assert family.head(model).weight.requires_grad  # tied to the embedding of the frozen language model
    assert not model.model.text_model.layers[0].mlp.up_proj.weight.requires_grad
    with pytest.raises(ConfigError, match=r"model\.freeze: no part 'tower'"):
        freeze_parts(parts, ("tower",))
    with pytest.raises(ConfigError, match=r"optim\.part_lr: no part 'eyes'"):
        parameter_groups(parts, OptimConfig.model_construct(part_lr={"eyes": 1.0}))


def test_learning_rate_schedule():
    cosine = OptimConfig(warmup_steps=4, schedule="cosine", min_lr_ratio=0.1)
    factors = [lr_factor(s, 24, cosine) for s in range(25)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0 and factors[14] == pytest.approx(0.55) and factors[24] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[4:]))
    linear = OptimConfig(schedule="linear")
    assert [lr_factor(s, 4, linear) for s in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert lr_factor(99, 4, OptimConfig()) == 1.0


def test_deepspeed_json(tmp_path):
    path = tmp_path / "ds.json"
    cfg = scenario.config(deepspeed=str(path), model={"path": "x", "dtype": "bf16"})
    cases = [
        (None, "does not exist"),
        ("{", "not valid JSON"),
        ('{"zero_optimization": {"stage": 0}}', "stage 1, 2 or 3"),
    ]
    for text, message in cases:
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            deepspeed_config(cfg)
    hugging_face = {
        "train_batch_size": "auto",
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 3, "x": "auto"},
    }
    path.write_text(json.dumps(hugging_face))
    ds = deepspeed_config(cfg)
    assert ds["zero_optimization"] == {"stage": 3} and "fp16" not in ds and "train_batch_size" not in ds
    assert ds["bf16"] == {"enabled": True} and ds["data_types"] == {"grad_accum_dtype": "fp32"}
    assert ds["gradient_clipping"] == 0.5 and ds["gradient_accumulation_steps"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has FlexAttention's backward pass")
def test_flex_attention_is_refused_where_it_cannot_train(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    family, model, _ = scenario.build()
    cfg = load_config(write_config(tmp_path, model__packed_attention="flex_attention"))
    with pytest.raises(ConfigError, match=r"model.packed_attention=flex_attention: .*set it to auto"):
        TrainEngine(cfg, family, model, LossSpec())


def test_ragged_lists_survive_flattening():
    lists = [[1, 2, 3], [], [7]]
    assert _unflatten([x for tokens in lists for x in (len(tokens), *tokens)]) == lists


def test_frozen_weights_are_copied_again_after_a_checkpoint_only():
    """They may have changed at model.path since the run started, and the checkpoint's are the ones that train."""
    family, model, _ = scenario.build()
    freeze_parts(family.parts(model), ("vision",))
    rollout = RolloutCopy(family, model, torch.device("cpu"), offload=False)
    assert rollout.refresh() is rollout.model

    def stale() -> set[bool]:
        """Whether they train, of the parameters whose copy differs."""
        copied = dict(rollout.refresh().named_parameters())
        return {p.requires_grad for n, p in model.named_parameters() if not torch.equal(p, copied[n])}

    with torch.no_grad():
        for p in model.parameters():
            p += 1
    assert stale() == {True, False}  # nobody said that a step was taken
    rollout.outdated()  # as a step does
    assert stale() == {False}
    rollout.outdated(whole=True)  # as loading a checkpoint does
    assert stale() == set()
