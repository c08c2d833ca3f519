"""Model families: `load_family` opens a local checkpoint, `build_family` makes a tiny model from scratch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dyme.families.base import IMAGE, Family, ModelError, Prompt, PromptError
from dyme.families.causal_lm import CausalLM
from dyme.families.files import check_fit, check_prompts, check_texts, read_config, read_weights, skeleton
from dyme.families.gemma3 import Gemma3
from dyme.families.idefics3 import Idefics3
from dyme.families.internvl import InternVL
from dyme.families.llava_onevision import LlavaOnevision
from dyme.families.qwen2_5_vl import Qwen2_5_VL
from dyme.families.qwen2_vl import Qwen2VL
from dyme.families.qwen3_vl import Qwen3VL
from dyme.families.smolvlm import SmolVLM

__all__ = [
    "FAMILIES",
    "IMAGE",
    "Family",
    "ModelError",
    "Prompt",
    "PromptError",
    "build_family",
    "find_family",
    "load_family",
    "open_family",
]

FAMILIES: dict[str, type[Family]] = {
    family.name: family
    for family in (Idefics3, SmolVLM, LlavaOnevision, InternVL, Qwen2VL, Qwen2_5_VL, Qwen3VL, Gemma3, CausalLM)
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ORIGINALS = {
    "internvl_chat": "internvl",
    "InternVLChatModel": "internvl",
    "llava_qwen": "llava_onevision",
    "LlavaQwenForCausalLM": "llava_onevision",
}
"""Types and classes of checkpoints in their authors' own format -> type of their conversion."""


def _check_name(family: str) -> None:
    if family not in ("auto", *FAMILIES):
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"; nearest: '{near[0]}'" if near else ""
        raise ModelError(f"model.family: unknown family '{family}'{hint}; allowed: auto, {', '.join(FAMILIES)}")


def find_family(folder: Path, family: str = "auto") -> type[Family]:
    """The family that loads a checkpoint folder, by its config.json. Raises `ModelError`."""
    _check_name(family)
    config, fields = folder / "config.json", read_config(folder)
    model_type = str(fields.get("model_type", ""))
    known = {model_type: f for f in FAMILIES.values() for model_type in f.model_types}
    if family == "auto" and model_type not in known:
        raise ModelError(_not_supported(config, fields, sorted(known)))
    # model.family may be set for a model_type that no family lists, but not for one that another family lists
    cls = known.get(model_type) or FAMILIES[family]
    if family not in ("auto", cls.name):
        raise ModelError(f"{config}: model_type '{model_type}' is of family '{cls.name}', not model.family={family}")
    if quantized := fields.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ModelError(f"{config}: the weights are quantized ({method}): give the checkpoint they were made from")
    return cls


def _not_supported(config: Path, fields: dict[str, Any], known: Sequence[str]) -> str:
    """Published checkpoints often exist twice: with remote code, and converted to classes of transformers."""
    model_type = str(fields.get("model_type", ""))
    named = [model_type, *map(str, fields.get("architectures") or ())]
    converted = [ORIGINALS[name] for name in named if name in ORIGINALS]
    near = [name for name in converted if name in known] or difflib.get_close_matches(model_type, known, n=1)
    hint = f"; nearest: '{near[0]}'" if near else ""
    if converted or "auto_map" in fields:
        hint = f": it runs code of its own, give the converted Hugging Face checkpoint (often named ...-hf){hint}"
    return f"{config}: model_type '{model_type}' is not supported{hint}; supported: {', '.join(known)}"


def load_family(path: str | Path, family: str = "auto", dtype: str = "fp32") -> tuple[Family, nn.Module]:
    """Opens a local Hugging Face checkpoint folder. Raises `ModelError`; errors in files and headers are found before
    any weights are read."""
    folder = Path(path)
    cls = find_family(folder, family)
    check_texts(folder, cls)
    weights = read_weights(folder)
    with _one_line(folder):
        opened = cls.open(folder)
        check_prompts(folder, opened)
        check_fit(folder, skeleton(cls, opened.config, DTYPES[dtype]), weights)
        return opened, opened.load_model(DTYPES[dtype])


def open_family(path: str | Path, family: str = "auto") -> Family:
    """The family of a checkpoint folder, whose weights may be missing. Raises `ModelError`."""
    folder = Path(path)
    cls = find_family(folder, family)
    check_texts(folder, cls)
    with _one_line(folder):
        opened = cls.open(folder)
        check_prompts(folder, opened)
        return opened


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """An edge: turns any error of transformers, tokenizers or a processor into one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ModelError(f"model.path: {folder} cannot be loaded: {kind}{' '.join(str(error).split())}") from error


def build_family(
    family: str, spec: object, texts: Sequence[str], dtype: str = "fp32", kept: str | None = None
) -> tuple[Family, nn.Module]:
    """A tiny random model of the family (`auto`: idefics3), with a tokenizer trained on `texts`, or the `kept` one (see
    `kept_tokenizer` in scratch.py)."""
    _check_name(family)
    return FAMILIES["idefics3" if family == "auto" else family].build(spec, texts, DTYPES[dtype], kept)
