"""Model families: `load_family` opens a local checkpoint, `build_family` makes a tiny model from scratch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dyme.families.base import IMAGE, Family, ModelError, Prompt, PromptError
from dyme.families.causal_lm import CausalLM
from dyme.families.gemma3 import Gemma3
from dyme.families.idefics3 import Idefics3
from dyme.families.internvl import InternVL
from dyme.families.llava_onevision import LlavaOnevision
from dyme.families.qwen2_5_vl import Qwen2_5_VL
from dyme.families.qwen2_vl import Qwen2VL
from dyme.families.qwen3_vl import Qwen3VL
from dyme.families.smolvlm import SmolVLM

__all__ = ["FAMILIES", "IMAGE", "Family", "ModelError", "Prompt", "PromptError", "build_family", "load_family"]

FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (Idefics3, SmolVLM, LlavaOnevision, InternVL, Qwen2VL, Qwen2_5_VL, Qwen3VL, Gemma3, CausalLM)
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _check_name(family: str) -> None:
    if family not in ("auto", *FAMILIES):
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"; nearest: '{near[0]}'" if near else ""
        raise ModelError(f"model.family: unknown family '{family}'{hint}; allowed: auto, {', '.join(FAMILIES)}")


def load_family(path: str | Path, family: str = "auto", dtype: str = "fp32") -> tuple[Family, nn.Module]:
    """Opens a local Hugging Face checkpoint folder. Raises `ModelError`."""
    _check_name(family)
    folder = Path(path)
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"model.path: {config} does not exist: give a local Hugging Face checkpoint folder (nothing is downloaded)"
        )
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{config}: not valid JSON ({error}): copy the file from the original checkpoint again"
        ) from error
    model_type = str(fields.get("model_type", "")) if isinstance(fields, dict) else ""
    known = {model_type: f for f in FAMILIES.values() for model_type in f.model_types}
    if family == "auto" and model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=1)
        hint = f"; nearest: '{near[0]}'" if near else ""
        raise ModelError(
            f"{config}: model_type '{model_type}' is not supported{hint}; supported: {', '.join(sorted(known))}"
        )
    # a family may be named for a model_type that nobody listed, but not for one that is another family's
    cls = known.get(model_type) or FAMILIES[family]
    if family not in ("auto", cls.name):
        raise ModelError(f"{config}: model_type '{model_type}' is of family '{cls.name}', not model.family={family}")
    try:
        return cls.load(folder, DTYPES[dtype])
    except (OSError, ValueError) as error:  # transformers' errors for missing weights, tokenizer or processor files
        raise ModelError(f"model.path: {folder} cannot be loaded: {' '.join(str(error).split())}") from error


def build_family(family: str, spec: object, texts: Sequence[str], dtype: str = "fp32") -> tuple[Family, nn.Module]:
    """A tiny random model of the family (`auto`: idefics3)."""
    _check_name(family)
    return FAMILIES["idefics3" if family == "auto" else family].build(spec, texts, DTYPES[dtype])
