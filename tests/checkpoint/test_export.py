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

from dyme.checkpoint.recipe import Recipe, read_recipe, write_recipe
from dyme.checkpoint.store import ADAPTER, write_export
from dyme.engine.lora import Adapter, adapter_of, add_lora, lora_layers, merged
from dyme.families import Family, ModelError, load_family, open_family
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
PROMPT = PromptConfig(template="{question}\nThink first, then write '{flag}'.")
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


def export(folder: Path, family: Family, model: nn.Module, lora: bool = False) -> Path:
    plain, adapter = trained(family, model, lora)
    recipe = Recipe(
        prompt=PROMPT, max_new_tokens=TOKENS, family=family.name, image_backend=family.image_backend
    )
    write_export(folder, family, plain, recipe, adapter)
    return folder


def questions(folder: Path, family: Family) -> list[tuple[str, list[Path]]]:
    """Ten, each with a picture of another size where the model takes pictures."""
    asked = []
    for i, size in enumerate(SIZES):
        picture(i, size).save(folder / f"{i}.png")
        asked.append((f"What is the value of bar {i}?", [folder / f"{i}.png"] if sees(family) else []))
    return asked


def predicted(folder: Path, asked: list[tuple[str, list[Path]]]) -> list[list[int]]:
    """Tokens of `dyme.predict`, by the settings that its command finds in the folder."""
    settings, notes = resolve_settings(Namespace(model=folder, **OPTIONS))
    assert not notes and settings.max_new_tokens == TOKENS
    predictor = open_predictor(folder, settings, "cpu", "fp32")
    assert not predictor.notes
    cache = PromptCache(predictor.family, settings.prompt, print, settings.max_pixels)
    records = [single_question(*one).record for one in asked]
    prompts = [cache.encode(replace(record, id=str(i))) for i, record in enumerate(records) if record]
    sampling = Sampling(settings.max_new_tokens, settings.temperature)
    return [list(r.tokens) for r in predictor.engine.generate([RolloutRequest(p) for p in prompts if p], sampling)]


def outside_processor(folder: Path) -> Any:
    """transformers' own; without torchvision it makes most processors of pictures not at all (docs/families.md)."""
    try:
        return open_processor(folder)
    except ImportError:
        assert importlib.util.find_spec("torchvision") is None
        return open_family(folder).processor


def plain_tokens(folder: Path, asked: list[tuple[str, list[Path]]], model: Any = None) -> list[list[int]]:
    """Tokens of plain transformers: the lines of docs/export.md."""
    recipe = json.loads((folder / "dyme.json").read_text())
    vision = recipe["image_backend"] is not None
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model = kind.from_pretrained(folder).eval() if model is None else model
    processor = outside_processor(folder)
    made = []
    for question, paths in asked:
        prompt = recipe["prompt"]
        text = prompt["template"].replace("{flag}", prompt["answer_flag"]).replace("{question}", question)
        pictures = [{"type": "image", "image": Image.open(path).convert("RGB")} for path in paths]
        content = [*pictures, {"type": "text", "text": text}] if vision else text
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
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
def test_bf16_parts_only_where_two_tokens_nearly_tie(opened, tmp_path, checkpoint, request):
    """Both open the export of a bf16 run in bf16, and their kernels round differently."""


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
    write_export(tmp_path, family, base, Recipe(max_new_tokens=TOKENS, family=family.name))
    held = json.loads((tmp_path / "generation_config.json").read_text())
    assert not [key for key in INHERITED if held.get(key) is not None]
    assert held["do_sample"] is False and held["max_new_tokens"] == TOKENS
    assert held["eos_token_id"] == list(family.stop_ids) and held["pad_token_id"] == family.pad_id
    assert held["suppress_tokens"] == list(family.forbidden_ids)
    again = GenerationConfig.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")  # transformers refuses values that contradict each other
    assert load_family(tmp_path)[1].generation_config.repetition_penalty in (None, 1.0)
