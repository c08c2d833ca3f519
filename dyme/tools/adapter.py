"""Adapter: a folder as peft's `save_pretrained` writes it, merged into the model that it was trained on."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dyme.checkpoint.recipe import FILE
from dyme.families import load_family
from dyme.families.base import ModelError
from dyme.families.files import ADAPTER, holds_model, quiet, read_json, read_weights
from dyme.tools.folder import GENERATION, check_new, new_folder, write_generation

TOKENS = "tokenizer.json"
WEIGHTS = "adapter_model.safetensors"
EXPORTED = "adapter"
"""Folder of the adapter in an export (`dyme/checkpoint/store.py`)."""
DTYPES = {"BF16": "bfloat16", "F16": "float16"}
"""Names of half precision in safetensors and in torch."""


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model."""
    return (folder / ADAPTER).is_file() and not holds_model(folder)


def merge_adapter(model: Path, adapter: Path, out: Path) -> list[str]:
    """Writes the model with the adapter merged into its weights to the folder `out`, completely or not at all. Returns
    notes for the user. Sums are taken in float32 and rounded once to the dtype of the files; processor, tokenizer and
    chat template are those of the model, dyme.json that of the adapter if it has one. Raises `ModelError` where the two
    do not fit."""
    check_new(out)
    _check_files(model, adapter)
    held = read_weights(model).values
    dtype = getattr(torch, DTYPES.get(max(held, key=held.__getitem__), "float32"))
    with quiet(), warnings.catch_warnings(action="ignore"):  # what they warn of is checked here
        family, plain = load_family(model)
        merged = _merged(model, plain, adapter)
    with new_folder(out) as partial:
        merged.to(dtype).save_pretrained(partial)
        (partial / GENERATION).unlink(missing_ok=True)  # it says nothing
        family.export(partial)
        if (model / GENERATION).is_file():
            shutil.copyfile(model / GENERATION, partial / GENERATION)
        for folder in (adapter, model):
            if (folder / FILE).is_file() and not (partial / FILE).exists():
                shutil.copyfile(folder / FILE, partial / FILE)
        notes = write_generation(partial)
    template = "chat_template.jinja"
    if (adapter / template).is_file() and not _same(adapter / template, model / template):
        notes.append(f"{template} differs, that of {model} is kept")
    return notes


def _merged(model: Path, plain: nn.Module, adapter: Path) -> Any:
    import peft

    try:  # an edge: peft raises anything where names, shapes or settings do not fit
        wrapped: Any = peft.PeftModel.from_pretrained(plain, str(adapter))  # type: ignore[arg-type]
        _check_keys(model, adapter, wrapped)
        return wrapped.merge_and_unload()
    except ModelError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise ModelError(f"{adapter} does not fit {model}: {told}: give the model it was trained on") from error


def _check_files(model: Path, adapter: Path) -> None:
    if not (adapter / WEIGHTS).is_file():
        raise ModelError(f"{adapter / WEIGHTS} does not exist: save the adapter again with peft's save_pretrained")
    if _same(adapter / WEIGHTS, model / EXPORTED / WEIGHTS):
        raise ModelError(f"{model} is an export with this adapter merged already: give the model it was trained on")
    theirs, ours = (_tokens(folder / TOKENS) for folder in (adapter, model))
    if theirs and ours and theirs != ours:
        raise ModelError(
            f"{TOKENS} of {adapter} and {model} have other tokens, so token ids mean other things: give the model that "
            "the adapter was trained on, with its embedding enlarged for new tokens"
        )


def _tokens(file: Path) -> dict[str, int]:
    """Tokens and ids of a tokenizer.json; the rest of it differs from one version of transformers to the next."""
    fields = read_json(file) if file.is_file() else {}
    added = {token["content"]: token["id"] for token in fields.get("added_tokens", ())}
    vocab = fields.get("model", {}).get("vocab", {})
    return {**vocab, **added} if isinstance(vocab, dict) else added


def _check_keys(model: Path, adapter: Path, wrapped: Any) -> None:
    """peft warns of missing weights and passes over unknown ones."""
    import peft

    expected = set(peft.get_peft_model_state_dict(wrapped))
    with safe_open(adapter / WEIGHTS, "pt") as file:
        held = set(file.keys())
    if odd := sorted(expected ^ held):
        raise ModelError(
            f"{adapter} does not fit {model}: {len(odd)} of its weights have no place or are missing, "
            f"first {odd[0]}: give the model it was trained on"
        )


def _same(a: Path, b: Path) -> bool:
    return b.is_file() and a.read_bytes() == b.read_bytes()
