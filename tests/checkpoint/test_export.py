"""Exports: what plain transformers makes of one is what `dyme.predict` makes of it, for every family, with adapters and
without; adapters in peft's format; merged models."""

from __future__ import annotations

import copy
import importlib.util
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from dyme.checkpoint.recipe import Recipe, write_recipe
from dyme.checkpoint.store import ADAPTER, write_export
from dyme.engine.lora import Adapter, adapter_of, add_lora, lora_layers, merged
from dyme.families import Family, Prompt, load_family, open_family
from dyme.predict.predictor import open_predictor
from dyme.predict.questions import single_question
from dyme.predict.settings import resolve_settings
from dyme.prompts import PromptCache
from dyme.rollout.types import RolloutRequest, Sampling
from dyme.settings.lora import LoraConfig
from dyme.settings.prompt import PromptConfig
from dyme.tools import merge
from tests.helpers.groups import picture, sees
from tests.helpers.processors import open_processor

SIZES = [(40, 24), (24, 24), (70, 20), (9, 60), (120, 100), (33, 47), (64, 64), (200, 150), (17, 90), (50, 50)]
TOKENS = 12
PROMPT = PromptConfig(template="{question}\nThink first, then write '{flag}'.", system="You read charts.")
OPTIONS = dict(config=None, template=None, flag=None, direct=False, max_new_tokens=None, temperature=0.0, seed=0)
INHERITED = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p", "no_repeat_ngram_size")


def trained(family: Family, model: nn.Module, lora: bool) -> tuple[nn.Module, Adapter | None]:
    """A plain model as a run leaves it, and its adapter."""
    own = copy.deepcopy(model)
    if not lora:
        return own, None
    add_lora(family, own, LoraConfig(r=4, alpha=8, vision=sees(family)), seed=3)
    with torch.no_grad():
        for layer in lora_layers(own).values():
            layer.lora_B["default"].weight.normal_(std=0.05)
    return merged(own), adapter_of(own, family.source)


def recipe(family: Family) -> Recipe:
    return Recipe(prompt=PROMPT, max_new_tokens=TOKENS, family=family.name, image_backend=family.image_backend)


def export(folder: Path, family: Family, model: nn.Module, lora: bool = False) -> Path:
    plain, adapter = trained(family, model, lora)
    write_export(folder, family, plain, recipe(family), adapter)
    return folder


def questions(folder: Path, family: Family) -> list[tuple[str, list[Path]]]:
    """Ten, each with a picture of another size where the model takes pictures."""
    asked = []
    for i, size in enumerate(SIZES):
        picture(i, size).save(folder / f"{i}.png")
        asked.append((f"What is the value of bar {i}?", [folder / f"{i}.png"] if sees(family) else []))
    return asked


def prompts_of(folder: Path, asked: list[tuple[str, list[Path]]]) -> list[Prompt]:
    cache = PromptCache(open_family(folder), PROMPT, print)
    records = [single_question(*one).record for one in asked]
    prompts = [cache.encode(replace(record, id=str(i))) for i, record in enumerate(records) if record]
    return [prompt for prompt in prompts if prompt is not None]


def predicted(folder: Path, asked: list[tuple[str, list[Path]]], dtype: str = "fp32") -> list[list[int]]:
    """Tokens of `dyme.predict`, by the settings that its command finds in the folder."""
    settings, notes = resolve_settings(Namespace(model=folder, **OPTIONS))
    assert not notes and settings.max_new_tokens == TOKENS
    assert settings.prompt == PROMPT and settings.max_pixels is None
    predictor = open_predictor(folder, settings, "cpu", dtype)
    assert not predictor.notes
    requests = [RolloutRequest(prompt) for prompt in prompts_of(folder, asked)]
    sampling = Sampling(settings.max_new_tokens, settings.temperature)
    return [list(r.tokens) for r in predictor.engine.generate(requests, sampling)]


def outside_processor(folder: Path) -> Any:
    """transformers' own; without torchvision it makes most processors of pictures not at all (docs/families.md)."""
    try:
        return open_processor(folder)
    except ImportError:
        assert importlib.util.find_spec("torchvision") is None
        return open_family(folder).processor


def plain_tokens(folder: Path, asked: list[tuple[str, list[Path]]], dtype: Any = "auto") -> list[list[int]]:
    """Tokens of plain transformers: the lines of docs/export.md."""
    held = json.loads((folder / "dyme.json").read_text())
    vision, prompt = held["image_backend"] is not None, held["prompt"]
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model: Any = kind.from_pretrained(folder, dtype=dtype)
    processor = outside_processor(folder)
    made = []
    for question, paths in asked:
        text = prompt["template"].replace("{flag}", prompt["answer_flag"]).replace("{question}", question)
        pictures = [{"type": "image", "image": Image.open(path).convert("RGB")} for path in paths]
        content = [*pictures, {"type": "text", "text": text}] if vision else text
        chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if told := prompt.get("system"):
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": told}] if vision else told})
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        inputs = inputs.to(model.device, model.dtype) if vision else inputs.to(model.device)
        made.append(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist())
    return made


def check_parity(folder: Path, family: Family) -> None:
    asked = questions(folder.parent, family)
    ours = predicted(folder, asked)
    assert plain_tokens(folder, asked) == ours
    assert len(set(map(tuple, ours))) > 1, "the check cannot fail: all replies are the same"


# --- the same tokens ----------


@pytest.mark.feature("export")
def test_plain_transformers_and_predict_give_the_same_tokens(opened, tmp_path):
    """With merged adapters. `generate` gets no argument but the prompt."""
    check_parity(export(tmp_path / "export", *opened, lora=True), opened[0])


@pytest.mark.slow
@pytest.mark.feature("export")
def test_plain_transformers_and_predict_give_the_same_tokens_without_adapters(opened, tmp_path):
    check_parity(export(tmp_path / "export", *opened), opened[0])


@pytest.mark.slow
@pytest.mark.feature("export")
def test_in_bf16_they_part_only_where_two_tokens_nearly_tie(opened, tmp_path):
    """Kernels round differently there. In float32 the same folder gives the same tokens again."""
    family, model = opened
    folder = export(tmp_path / "export", family, copy.deepcopy(model).bfloat16(), lora=True)
    asked = questions(tmp_path, family)[:4]
    ours, plain = predicted(folder, asked, "bf16"), plain_tokens(folder, asked)
    _, exact = load_family(folder)
    for prompt, mine, theirs in zip(prompts_of(folder, asked), ours, plain, strict=True):
        if mine == theirs:
            continue
        at = next(i for i, pair in enumerate(zip(mine, theirs)) if pair[0] != pair[1])
        ids = torch.cat([prompt.input_ids, torch.tensor(mine[:at], dtype=torch.int64)])[None]
        with torch.no_grad():
            logits = exact(input_ids=ids, **family.generate_inputs([prompt], ids)).logits[0, -1]
        assert (logits[mine[at]] - logits[theirs[at]]).abs() < 0.05 * logits.abs().max()
    assert plain_tokens(folder, asked, torch.float32) == predicted(folder, asked, "fp32")


# --- generation_config.json ----------


@pytest.mark.feature("export")
def test_the_generation_config_is_that_of_our_evaluation(opened, tmp_path):
    """Nothing of the base's is left: a hub checkpoint's penalty and temperature, or what transformers would refuse to
    save again (a temperature without sampling)."""
    family, model = opened
    base = copy.deepcopy(model)
    base.generation_config = GenerationConfig(
        do_sample=False, temperature=0.1, top_k=1, top_p=0.001, repetition_penalty=1.05, no_repeat_ngram_size=2
    )
    write_export(tmp_path, family, base, recipe(family))
    held = json.loads((tmp_path / "generation_config.json").read_text())
    assert not [key for key in INHERITED if held.get(key) is not None]
    assert held["do_sample"] is False and held["max_new_tokens"] == TOKENS
    assert held["eos_token_id"] == list(family.stop_ids) and held["pad_token_id"] == family.pad_id
    assert held["suppress_tokens"] == list(family.forbidden_ids)
    again = GenerationConfig.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")  # transformers refuses values that contradict each other


# --- adapters ----------


@pytest.mark.feature("LoRA")
def test_the_adapter_in_pefts_format(opened, tmp_path):
    """Names and shapes by peft's documentation, and the merged model's outputs once peft has put it on the base."""
    from peft import PeftConfig, PeftModel

    family, model = opened
    folder = export(tmp_path / "export", family, model, lora=True) / ADAPTER
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    held, config = load_file(folder / "adapter_model.safetensors"), PeftConfig.from_pretrained(folder)
    expected = {}
    for name in config.target_modules:
        linear = model.get_submodule(name)
        expected[f"base_model.model.{name}.lora_A.weight"] = (4, linear.in_features)
        expected[f"base_model.model.{name}.lora_B.weight"] = (linear.out_features, 4)
    assert {name: tuple(value.shape) for name, value in held.items()} == expected
    assert config.base_model_name_or_path == str(family.source) and (config.r, config.lora_alpha) == (4, 8)
    kind = AutoModelForImageTextToText if sees(family) else AutoModelForCausalLM
    base = kind.from_pretrained(config.base_model_name_or_path, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(base, folder)
    merged_model = kind.from_pretrained(folder.parent)
    prompt = family.encode("What is it?", [picture(0)] if sees(family) else [])
    inputs = family.generate_inputs([prompt], prompt.input_ids[None])
    with torch.no_grad():
        theirs, ours = (m(input_ids=prompt.input_ids[None], **inputs).logits for m in (wrapped, merged_model))
        with wrapped.disable_adapter():
            without = wrapped(input_ids=prompt.input_ids[None], **inputs).logits
    assert (theirs - ours).abs().max() < 1e-4 < (without - ours).abs().max()


def test_a_run_without_adapters_exports_none(checkpoint, tmp_path):
    assert not (export(tmp_path / "export", *load_family(checkpoint("llama"))) / ADAPTER).exists()


# --- merging exports ----------


def test_a_merged_model_decodes_as_an_export(checkpoint, tmp_path, capsys):
    """A is an export of an earlier version, which has kept its base's penalty."""
    family, model = load_family(checkpoint("qwen3-vl"))
    a, b = export(tmp_path / "a", family, model, lora=True), export(tmp_path / "b", family, model)
    stale = GenerationConfig(repetition_penalty=1.05, do_sample=True, temperature=0.1)
    stale.save_pretrained(a)
    assert merge.main([str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    assert not capsys.readouterr().err
    made = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert made == json.loads((b / "generation_config.json").read_text())
    assert not (tmp_path / "out" / ADAPTER).exists()
    check_parity(tmp_path / "out", family)


def test_an_export_has_its_adapter_already(checkpoint, tmp_path, capsys):
    family, model = load_family(checkpoint("llama"))
    folder = export(tmp_path / "export", family, model, lora=True)
    arguments = [str(folder / ADAPTER), "--out", str(tmp_path / "out")]
    assert merge.main([str(folder), *arguments]) == 2
    assert "with this adapter merged already: give the model it was trained on" in capsys.readouterr().err
    assert merge.main([str(family.source), *arguments]) == 0
    ours, theirs = (load_file(part / "model.safetensors") for part in (tmp_path / "out", folder))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


# --- what resizes pictures ----------


def test_predict_says_where_pictures_are_resized_otherwise_than_in_training(checkpoint, tmp_path):
    family, model = load_family(checkpoint("qwen3-vl"))
    folder = export(tmp_path / "export", family, model)
    for backend in ("pil", "torchvision"):
        write_recipe(recipe(family).model_copy(update={"image_backend": backend}), folder)
        settings, _ = resolve_settings(Namespace(model=folder, **OPTIONS))
        predictor = open_predictor(folder, settings, "cpu", "fp32")
        there = backend == "pil" or importlib.util.find_spec("torchvision") is not None
        assert predictor.family.image_backend == (backend if there else "pil")
        said = f"trained on pictures resized by {backend}, pil here gives slightly other pixels: install the tor"
        assert [said in note for note in predictor.notes] == ([] if there else [True])


@pytest.mark.parametrize("name", ["qwen3-vl", "llava-onevision", "gemma3"])
def test_a_change_of_what_resizes_keeps_prompts(checkpoint, tmp_path, name):
    """Also with a system prompt and quotes, whose processor is a copy."""
    family, model = load_family(checkpoint(name))
    folder = export(tmp_path / "export", family, model)
    opened, asked = open_family(folder), ("What is <|im_end|>?", [picture(0, (70, 40))], "Be brief, no <pad>.")
    before = opened.encode(*asked)
    assert opened.resize_by("pil") and opened.image_backend == "pil"
    after = opened.encode(*asked)
    assert torch.equal(before.input_ids, after.input_ids) and before.pixels.keys() == after.pixels.keys()
    opened.check_placeholders(after)
