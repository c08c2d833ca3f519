"""Model families: `load_family` opens a local checkpoint, `build_family` makes a tiny model from scratch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dyme.families.base import IMAGE, Family, Prompt, PromptError
from dyme.families.causal_lm import CausalLM
from dyme.families.idefics3 import Idefics3

__all__ = ["FAMILIES", "IMAGE", "Family", "ModelError", "Prompt", "PromptError", "build_family", "load_family"]

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Idefics3, CausalLM)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ModelError(Exception):
    """A checkpoint that cannot be used; the message names the file and the mend."""


def load_family(path: str, family: str = "auto", dtype: str = "fp32") -> tuple[Family, nn.Module]:
    """Opens a local Hugging Face checkpoint folder. Raises `ModelError`."""
    folder = Path(path).expanduser()
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"model.path: {config} does not exist: give a local Hugging Face checkpoint folder (nothing is downloaded)")
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type", "")
    except json.JSONDecodeError as error:
        raise ModelError(f"{config}: not valid JSON ({error}): copy the file from the original checkpoint again") from error
    if family == "auto":
        matches = [f for f in FAMILIES.values() if model_type in f.model_types]
        if not matches:
            known = sorted(t for f in FAMILIES.values() for t in f.model_types)
            near = difflib.get_close_matches(model_type, known, n=1)
            hint = f"; nearest: '{near[0]}'" if near else ""
            raise ModelError(f"{config}: model_type '{model_type}' is not supported{hint}; supported: {', '.join(known)}")
        return matches[0].load(folder, DTYPES[dtype])
    return FAMILIES[family].load(folder, DTYPES[dtype])


def build_family(family: str, spec: object, texts: Sequence[str], dtype: str = "fp32") -> tuple[Family, nn.Module]:
    """A tiny random model of the family (`auto`: idefics3)."""
    return FAMILIES["idefics3" if family == "auto" else family].build(spec, texts, DTYPES[dtype])
