"""Adapter: a folder as peft's `save_pretrained` writes it, merged into the model that it was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dyme.checkpoint.recipe import FILE
from dyme.families import load_family
from dyme.families.base import ModelError
from dyme.families.files import ADAPTER, VOCABULARIES, read_weights
from dyme.tools.folder import check_new, new_folder

WEIGHTS = "adapter_model.safetensors"
DTYPES = {"BF16": "bfloat16", "F16": "float16"}
"""Names of half precision in safetensors and in torch."""


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def merge_adapter(model: Path, adapter: Path, out: Path) -> list[str]:
    """Writes the model with the adapter merged into its weights to the folder `out`, completely or not at all. Returns
    notes for the user. Sums are taken in float32 and rounded once to the dtype of the files; processor, tokenizer and
    chat template are those of the model, dyme.json that of the adapter if it has one. Raises `ModelError` where the two
    do not fit."""
    import peft

    check_new(out)
    _check_files(model, adapter)
    family, plain = load_family(model)
    held = read_weights(model).values
    dtype = getattr(torch, DTYPES.get(max(held, key=held.__getitem__), "float32"))
    try:  # an edge: peft raises anything where names, shapes or settings do not fit
        wrapped: Any = peft.PeftModel.from_pretrained(plain, str(adapter))
        _check_keys(adapter, wrapped)
        merged = wrapped.merge_and_unload()
    except ModelError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise ModelError(f"{adapter} does not fit {model}: {told}: give the model it was trained on") from error
    with new_folder(out) as partial:
        merged.to(dtype).save_pretrained(partial)
        family.export(partial)
        for folder in (adapter, model):
            if (folder / FILE).is_file() and not (partial / FILE).exists():
                shutil.copyfile(folder / FILE, partial / FILE)
    template = "chat_template.jinja"
    differs = (adapter / template).is_file() and not _same(adapter / template, model / template)
    return [f"{template} differs, that of {model} is kept"] if differs else []


def _check_files(model: Path, adapter: Path) -> None:
    if not (adapter / WEIGHTS).is_file():
        raise ModelError(f"{adapter / WEIGHTS} does not exist: save the adapter again with peft's save_pretrained")
    for name in VOCABULARIES:
        if (adapter / name).is_file() and (model / name).is_file() and not _same(adapter / name, model / name):
            raise ModelError(
                f"{name} of {adapter} and {model} differ, so token ids mean other things: give the model that the "
                "adapter was trained on, with its embedding enlarged for new tokens"
            )


def _check_keys(adapter: Path, wrapped: Any) -> None:
    """peft warns of missing weights and passes over unknown ones."""
    import peft

    expected = set(peft.get_peft_model_state_dict(wrapped))
    with safe_open(adapter / WEIGHTS, "pt") as file:
        held = set(file.keys())
    if odd := sorted(expected ^ held):
        raise ModelError(
            f"{adapter} does not fit {_name(wrapped)}: {len(odd)} of its weights have no place or are missing, "
            f"first {odd[0]}: give the model it was trained on"
        )


def _name(wrapped: Any) -> str:
    return type(wrapped.get_base_model()).__name__


def _same(a: Path, b: Path) -> bool:
    return b.is_file() and a.read_bytes() == b.read_bytes()
