"""Checks of a checkpoint folder's files: missing, broken or mismatched ones are found before anything slow starts.

Weights are never read here, only the headers of their files. Every error is a `ModelError` of one line that names the
file and the mend.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging

from dyme.families.base import IMAGE, Family, ModelError, PromptError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that hold a vocabulary; one is enough."""
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "processor_config.json")
"""Files that may hold the chat template."""
JSON_FILES = (
    *TEMPLATES[1:],
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    INDEX,
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER = "adapter_config.json"
AGAIN = "copy it from the original checkpoint again"


@dataclass(frozen=True)
class Weights:
    """Contents of the headers of a folder's weight files.

    files: name -> size in bytes; shapes: tensor name -> shape; values: dtype as safetensors calls it (F32, BF16) ->
    number of values.
    """

    files: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, int]


def read_json(file: Path) -> Any:
    """Raises `ModelError` where the file is no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error}): {AGAIN}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises `ModelError`."""
    file = folder / "config.json"
    refuse_adapter(folder)
    if not file.is_file():
        raise ModelError(
            f"model.path: {file} does not exist: give a local Hugging Face checkpoint folder (nothing is downloaded)"
        )
    fields = read_json(file)
    return fields if isinstance(fields, dict) else {}


def refuse_adapter(folder: Path) -> None:
    """Raises `ModelError` for a folder as peft's `save_pretrained` writes it, and for such files beside a model, where
    transformers would load the adapter too, unmerged."""
    if (folder / ADAPTER).is_file():
        if holds_model(folder):
            raise ModelError(
                f"{folder} holds a model and an adapter: move {ADAPTER} and its weights to another folder, and merge "
                "them unless the model has them already (python -m dyme.tools.merge MODEL ADAPTER --out DIR)"
            )
        fields = read_json(folder / ADAPTER)
        base = fields.get("base_model_name_or_path") if isinstance(fields, dict) else None
        raise ModelError(
            f"{folder} holds an adapter without its model: merge it into {base or 'the model it was trained on'} "
            "(python -m dyme.tools.merge MODEL ADAPTER --out DIR) and give DIR"
        )


def check_texts(folder: Path, family: type[Family]) -> None:
    """The files of processor, tokenizer and chat template. Raises `ModelError`."""
    held = {name: read_json(folder / name) for name in JSON_FILES if (folder / name).is_file()}
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"{folder / TOKENIZERS[0]} does not exist, nor another tokenizer file: {AGAIN}")
    if "tokenizer_config.json" not in held:  # without it special tokens have no role or a default one
        raise ModelError(f"{folder / 'tokenizer_config.json'} does not exist: {AGAIN}")
    if IMAGE in family.modalities and "preprocessor_config.json" not in held:
        lacks = "nor processor_config.json"
        if settings := held.get("processor_config.json"):
            lacks = "" if "image_processor" in settings else "and processor_config.json has no image_processor"
        if lacks:
            raise ModelError(f"{folder / 'preprocessor_config.json'} does not exist, {lacks}: {AGAIN}")
    if chat_template_file(folder) is None:
        raise ModelError(
            f"{folder} has no chat template ({', '.join(TEMPLATES)}): use an instruction-tuned checkpoint, or write "
            f"the template of its model card to {TEMPLATES[0]}"
        )


def check_prompts(folder: Path, family: Family) -> None:
    """Encodes a text and a picture as a test. Raises `ModelError` where that fails, as every record would."""
    try:
        _ = family.anchors
    except Exception as error:  # an edge: processors and chat templates raise anything on bad or missing files
        told, lacks = encoding_error(error), "processor_config.json"
        if IMAGE in family.modalities and not (folder / lacks).is_file():
            told = f"{lacks} does not exist, and without it no picture can be encoded ({told}): {AGAIN}"
        raise ModelError(f"{folder}: {told}") from error


def encoding_error(error: Exception) -> str:
    """One line for what went wrong while a prompt was encoded."""
    told = str(error) if isinstance(error, PromptError) else f"{type(error).__name__}: {error}"
    return " ".join(told.split())


def chat_template_file(folder: Path) -> str | None:
    """The file that holds the chat template; None where there is none."""
    for name in TEMPLATES:
        file = folder / name
        if file.is_file() and (file.suffix == ".jinja" or _holds_template(read_json(file))):
            return name
    return None


def _holds_template(fields: Any) -> bool:
    return isinstance(fields, dict) and bool(fields.get("chat_template"))


# --- weights ----------


def read_weights(folder: Path) -> Weights:
    """Headers of the weight files that transformers would load. Raises `ModelError`."""
    names = _weight_files(folder)
    files, shapes, values = {}, dict[str, tuple[int, ...]](), dict[str, int]()
    for name in names:
        for tensor, info in _read_header(folder / name).items():
            shapes[tensor] = tuple(info["shape"])
            count = 1
            for side in shapes[tensor]:
                count *= side
            values[info["dtype"]] = values.get(info["dtype"], 0) + count
        files[name] = (folder / name).stat().st_size
    return Weights(files, shapes, values)


def holds_model(folder: Path) -> bool:
    """Whether there are weights of a model, under the names that transformers loads."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def has_weights(folder: Path) -> bool:
    """Whether there is any file that could hold weights, even a broken one or one of the wrong kind."""
    return any(True for pattern in ("*.safetensors", INDEX, *PICKLES) for _ in folder.glob(pattern))


def _weight_files(folder: Path) -> list[str]:
    """The weight files, looked for in the order of transformers."""
    refuse_adapter(folder)
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{folder / INDEX}: it has no weight_map: {AGAIN}")
        names = sorted(set(shards.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder / missing[0]} does not exist, but {INDEX} names it ({len(missing)} of {len(names)} files are "
                f"missing): {AGAIN}"
            )
        return names
    if others := sorted(file.name for file in folder.glob("*.safetensors")):
        raise ModelError(f"{folder / INDEX} does not exist, and nothing says what {others[0]} is part of: {AGAIN}")
    if pickles := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
        raise ModelError(
            f"{folder / pickles[0]}: pickled weights are not loaded, because they can run code: convert them to "
            "safetensors (load the model in transformers and call its save_pretrained)"
        )
    raise ModelError(f"{folder / WEIGHTS} does not exist, nor {INDEX}: the folder has no weights")


def _read_header(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ModelError(f"{file} is a pointer of Git LFS, not the weights: run git lfs pull in its repository")
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, 100_000_000):  # safetensors' own limit of a header
            raise ModelError(f"{file}: not a safetensors file, or cut within its header ({size} bytes): {AGAIN}")
        text = stream.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        needed = 8 + length + max((info["data_offsets"][1] for info in header.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: its header is broken: {AGAIN}") from error
    if size != needed:
        what = "it is cut" if size < needed else "it is too long"
        raise ModelError(f"{file}: {size} bytes where its header says {needed}, {what}: {AGAIN}")
    try:
        with safe_open(file, "pt"):  # checks that sizes and offsets fit
            return header
    except SafetensorError as error:
        raise ModelError(f"{file}: its header is broken ({' '.join(str(error).split())}): {AGAIN}") from error


# --- config.json against the weights ----------


def skeleton(family: type[Family], config: Any, dtype: torch.dtype) -> nn.Module:
    """The model without memory: every parameter on the meta device."""
    kind = getattr(transformers, family.model_class)
    make = kind._from_config if hasattr(kind, "_from_config") else kind.from_config
    with torch.device("meta"):
        return make(config, dtype=dtype, attn_implementation="sdpa")


def check_fit(folder: Path, model: Any, weights: Weights) -> tuple[str, ...]:
    """Compares names and shapes of the weights, renamed as transformers does on loading, with those of the model that
    config.json describes. Returns the names of tensors that the model does not use. Raises `ModelError`.

    model: a `skeleton`."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in weights.shapes.items()}
    with quiet():
        _, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=empty,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    if wrong := sorted(info["mismatched_keys"], key=str):
        name, theirs, ours = wrong[0]
        raise ModelError(
            f"{folder / 'config.json'} does not fit the weights: {name} is {_size(theirs)} in the file and "
            f"{_size(ours)} by config.json ({len(wrong)} parameters differ): copy both from the same checkpoint"
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(missing_weights(folder, missing))
    return tuple(sorted(info["unexpected_keys"]))


def missing_weights(folder: Path, names: list[str]) -> str:
    """The message for parameters that the files lack."""
    return (
        f"model.path: {folder} has no weights for {names[0]} ({len(names)} parameters are missing): "
        "copy its safetensors files and config.json from the same checkpoint"
    )


def _size(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "a single value"


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and its table of mismatched weights."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
