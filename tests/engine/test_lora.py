"""LoRA: which modules get adapters, that they start as nothing, merge exactly and can be left out; one run through the
launcher."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from dyme.batching.packing import pack
from dyme.config import ModelConfig
from dyme.engine.lora import adapters_off, add_lora, lora_layers, matching_linears, merged
from dyme.engine.train_engine import freeze_parts, parameter_groups
from dyme.families import IMAGE
from dyme.settings.errors import ConfigError
from dyme.settings.lora import LoraConfig
from dyme.settings.optim import OptimConfig
from tests.helpers import scenario
from tests.helpers.launching import launch
from tests.helpers.packed import gradients, packed_logprobs
from tests.helpers.runs import lines, same, same_weights, write_config


def wrapped(opened, **settings):
    """Family, the model as it was, and a copy with adapters, in eval mode like the fixture's."""
    family, model = opened
    with_adapters = copy.deepcopy(model)
    names = add_lora(family, with_adapters, LoraConfig(r=4, **settings), seed=3)
    return family, model, with_adapters.eval(), names


def randomize_adapters(model: nn.Module) -> None:
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B["default"].weight.normal_(std=0.05)


def batch(family, modules: frozenset[str] = frozenset()):
    images = [Image.new("RGB", (40, 24), (200, 60, 30))] if IMAGE in family.modalities else []
    return pack(family, [(family.encode("What is it?", images), [[70, 80, 90, 85], [71]])], modules)


def linears(*parts: nn.Module) -> set[int]:
    return {id(m) for part in parts for m in part.modules() if isinstance(m, nn.Linear)}


# --- every family ----------


@pytest.mark.feature("LoRA")
@pytest.mark.parametrize("vision", [False, True])
def test_every_linear_has_an_adapter_that_is_trained(opened, vision):
    """In the decoder layers, and in the picture parts where asked; the head and the rest stay as they are. The first
    micro-batch of a step has every adapter in its graph."""
    family, model = opened
    if vision and IMAGE not in family.modalities:
        with pytest.raises(ConfigError, match="this model has no vision tower"):
            add_lora(family, copy.deepcopy(model), LoraConfig(vision=True), seed=3)
        return
    family, model, lora, names = wrapped(opened, vision=vision)
    parts = family.image_parts(model).values() if vision else ()
    assert {id(model.get_submodule(name)) for name in names} == linears(family.decoder_layers(model), *parts)
    assert names and list(lora_layers(lora)) == names
    assert not hasattr(family.head(lora), "lora_A")
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{x}.default.weight" for name in names for x in "AB"}
    groups = parameter_groups(family.parts(lora), OptimConfig())
    assert sum(len(group["params"]) for group in groups) == 2 * len(names)
    randomize_adapters(lora)
    text_only = [(family.encode("Say a number"), [[60, 61, 62]])]
    grads = gradients(lora, packed_logprobs(family, lora, pack(family, text_only, family.modalities)).sum())
    assert grads.keys() == trained
    used = gradients(lora, packed_logprobs(family, lora, batch(family)).sum())
    assert all(g.any() for g in used.values()), "an adapter changes nothing"


@pytest.mark.feature("LoRA")
def test_off_merged_and_untrained_adapters(opened, tmp_path):
    family, model, lora, _ = wrapped(opened, vision=IMAGE in opened[0].modalities)
    with torch.no_grad():
        base = packed_logprobs(family, model, batch(family))
        assert torch.equal(packed_logprobs(family, lora, batch(family)), base), "B is not 0"
        randomize_adapters(lora)
        before = {name: value.clone() for name, value in lora.state_dict().items()}
        trained = packed_logprobs(family, lora, batch(family))
        assert (trained - base).abs().max() > 1e-3
        with adapters_off(lora):
            assert torch.equal(packed_logprobs(family, lora, batch(family)), base)
        plain = merged(lora)
        assert (packed_logprobs(family, plain, batch(family)) - trained).abs().max() < 1e-5
        assert all(torch.equal(lora.state_dict()[name], value) for name, value in before.items()), "merged in place"
        # as plain transformers sees it
        plain.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(packed_logprobs(family, again, batch(family)), packed_logprobs(family, plain, batch(family)))
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert not lora_layers(plain) and vars(plain).keys() == vars(model).keys()


# --- details ----------


def test_adapters_follow_from_the_seed():
    family, model, _ = scenario.build()
    states = []
    for seed in (3, 3, 4):
        torch.rand(7)  # whatever else took random numbers
        lora = copy.deepcopy(model)
        before = torch.get_rng_state()
        add_lora(family, lora, LoraConfig(r=4), seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append({n: p for n, p in lora.named_parameters() if "lora_A" in n})
    assert all(torch.equal(p, states[1][n]) for n, p in states[0].items())
    assert not any(torch.equal(p, states[2][n]) for n, p in states[0].items())


def test_an_adapter_adds_alpha_over_r_times_b_a():
    family, model, _ = scenario.build()
    add_lora(family, model, LoraConfig(r=2, alpha=6, targets=("layers.0.self_attn.q_proj",)), seed=0)
    randomize_adapters(model)
    ((name, layer),) = [(n, m) for n, m in lora_layers(model).items() if "text_model" in n]
    x = torch.randn(5, layer.base_layer.in_features)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape == (2, x.shape[1])
    assert torch.allclose(layer(x), layer.base_layer(x) + 3 * x @ down.T @ up.T, atol=1e-6)
    weight = merged(model).get_submodule(name).weight
    assert torch.allclose(weight, layer.base_layer.weight + 3 * up @ down, atol=1e-6)


def test_bf16_adapters_are_bf16_and_merge_with_one_rounding():
    family, model, _ = scenario.build()
    model.to(torch.bfloat16)
    add_lora(family, model, LoraConfig(r=4), seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    randomize_adapters(model)
    plain = merged(model)
    for name, layer in lora_layers(model).items():
        down, up = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        exact = layer.base_layer.weight.double() + 8 * up @ down
        error = (plain.get_submodule(name).weight.double() - exact).abs()
        assert (error <= exact.abs() * 2**-8 + 1e-6).all()


def test_targets_choose_modules():
    family, model, _ = scenario.build()

    def match(**settings) -> list[str]:
        return matching_linears(family, model, LoraConfig(**settings))

    assert {name.rpartition(".")[2] for name in match(targets=("q_proj", "v_proj"))} == {"q_proj", "v_proj"}
    assert not any("vision" in name for name in match(targets=("q_proj",)))
    assert len(match(targets=("q_proj",), vision=True)) == len(match(targets=("q_proj",))) + 1
    assert match(targets=("layers.1.mlp.up_proj",)) == ["model.text_model.layers.1.mlp.up_proj"]
    with pytest.raises(ConfigError, match="'q_prj' matches no Linear of the decoder layers; nearest: 'q_proj'; they h"):
        match(targets=("up_proj", "q_prj"))
    with pytest.raises(ConfigError, match="'lm_head' matches no Linear of the decoder layers; they have q_proj"):
        match(targets=("lm_head",))
    with pytest.raises(ConfigError, match=r"no target matches a Linear of vision tower or connector, which have .*fc1"):
        match(targets=("gate_proj",), vision=True)


def test_parts_keep_their_learning_rate():
    family, model, _ = scenario.build()
    freeze_parts(family.parts(model), ("vision",))
    add_lora(family, model, LoraConfig(vision=True), seed=0)
    groups = parameter_groups(family.parts(model), OptimConfig(lr=1e-3, part_lr={"vision": 1e-4}))
    assert {group["name"]: group["lr"] for group in groups} == {
        "vision.matrices": 1e-4,
        "connector.matrices": 1e-3,
        "language.matrices": 1e-3,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ["language"], "lora": {}}, "model.freeze names 'language', to which model.lora adds adapters"),
        ({"freeze": ["vision"], "lora": {"vision": True}}, "or set model.lora.vision=false"),
        ({"lora": {"targets": ["q_proj", ""]}}, "model.lora.targets holds an empty name"),
        ({"lora": {"r": 0}}, "greater than 0"),
    ],
)
def test_contradictions(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({"path": "x", **settings})
    assert ModelConfig.model_validate({"path": "x", "freeze": ["vision"], "lora": {}}).lora == LoraConfig()


# --- a run ----------


@pytest.mark.slow
@pytest.mark.dist
def test_a_run_resumes_to_the_bit_and_exports_a_plain_model(tmp_path):
    """With the base as reference policy. Resuming from step 2 of 3 gives the step and the weights again."""
    config = write_config(
        tmp_path,
        model__lora={"r": 4, "alpha": 64, "vision": True, "targets": ["fc2", "q_proj"]},
        selector={"name": "reward_threshold", "threshold": 0.02},
        rollout__max_new_tokens=16,
        objective={"beta": 0.1},
        optim__lr=1e-2,
        data__eval=None,
        run__save_every=2,
    )
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    launch("--config", config, f"run.dir={whole}")
    shutil.copytree(whole, parted)
    shutil.rmtree(parted / "checkpoints" / "step-00000003")
    shutil.rmtree(parted / "export")
    (parted / "DONE").unlink()
    assert "resuming at step 2" in launch("--config", config, f"run.dir={parted}").stderr
    same(lines(whole), lines(parted))
    same_weights(whole, parted)
    steps = lines(whole)
    assert all(line["grad_norm"] > 0 and line["skipped_update"] == 0 for line in steps)
    assert any((line.get("policy/kl") or 0) > 0 for line in steps[1:])
    check_export(whole / "export")
    # as many adapters of the same size elsewhere: their states must not go to others
    other = ("model.lora.targets=[fc2, o_proj]", "train.max_steps=4")
    failed = launch("--config", config, f"run.dir={whole}", *other, check=False)
    assert failed.returncode != 0 and "was written by a run that trained other parameters" in failed.stderr


def check_export(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert json.loads((folder / "dyme.json").read_text())["family"] == "idefics3"
    assert "lora" not in (folder / "config.json").read_text()
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {name.rpartition(".lora_")[2] for name in adapter} == {"A.weight", "B.weight"}
    assert all(4 in value.shape and value.ndim == 2 and value.any() for value in adapter.values())
