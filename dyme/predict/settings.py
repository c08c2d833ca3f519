"""Settings of a prediction, by precedence: flags, the run YAML, the model's dyme.json, the defaults."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dyme.checkpoint.recipe import FILE, Recipe, read_recipe
from dyme.config import load_config
from dyme.settings.errors import explain
from dyme.settings.prompt import PromptConfig


class PredictError(ValueError):
    """Input, model or output that cannot be used; the message is one line with the mend."""


@dataclass(frozen=True)
class Settings:
    """Settings of prompts and sampling. `max_new_tokens` in tokens; `temperature` 0 is greedy."""

    prompt: PromptConfig
    max_new_tokens: int
    temperature: float
    seed: int
    family: str
    max_pixels: int | None = None
    image_backend: Literal["torchvision", "pil"] | None = None

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "prompt": self.prompt.model_dump()}


def check_model_folder(folder: Path) -> None:
    """Raises `PredictError` unless the folder holds a checkpoint; called before heavy imports."""
    if not folder.is_dir():
        raise PredictError(f"--model {folder}: no such folder; give a Hugging Face folder, as the export/ of a run is")
    if not (folder / "config.json").is_file():
        _refuse_adapter(folder)
        inside = folder / "export"
        mend = f"did you mean {inside}?" if (inside / "config.json").is_file() else "give the export/ of a finished run"
        raise PredictError(f"--model {folder}: holds no config.json, so it is no model; {mend}")


def _refuse_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        from dyme.families.files import ModelError, refuse_adapter  # torch takes seconds to import

        try:
            refuse_adapter(folder)
        except ModelError as error:
            raise PredictError(f"--model {error}") from None


def resolve_settings(options: argparse.Namespace) -> tuple[Settings, list[str]]:
    """The settings, and notes for the user.

    Raises `PredictError`, `ConfigError` or `RecipeError` with one line.
    """
    notes = []
    recipe = read_recipe(options.model)
    if options.config is not None:
        cfg = load_config(options.config)
        recipe = Recipe(
            prompt=cfg.prompt,
            max_new_tokens=cfg.rollout.max_new_tokens,
            family=cfg.model.family if recipe is None else recipe.family,
            max_pixels=cfg.model.max_pixels,
            image_backend=None if recipe is None else recipe.image_backend,
        )
    elif recipe is None:
        recipe = Recipe()
        if options.template is None and not options.direct:
            notes.append(
                f"{options.model} has no {FILE}, so the default prompt is used; --config RUN.yaml or --template sets "
                "the one it was trained with"
            )
    flags = {"template": options.template, "answer_flag": options.flag, "style": "direct" if options.direct else None}
    given = {key: value for key, value in flags.items() if value is not None}
    if options.direct and options.template is None and recipe.prompt.style != "direct":
        given["template"] = "{question}"  # a template that asks for thinking would contradict --direct
    try:
        prompt = PromptConfig.model_validate({**recipe.prompt.model_dump(), **given})
    except ValidationError as error:
        raise PredictError(f"--template or --flag: {explain(error, PromptConfig)}") from None
    tokens = options.max_new_tokens or recipe.max_new_tokens
    sampling = (tokens, options.temperature, options.seed)
    return Settings(prompt, *sampling, recipe.family, recipe.max_pixels, recipe.image_backend), notes


def own_dtype(folder: Path) -> str:
    """bf16 for a checkpoint in half precision, else fp32."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return "fp32"  # load_family raises the error
    held = fields.get("dtype") or fields.get("torch_dtype") if isinstance(fields, dict) else None
    return "bf16" if str(held) in ("bfloat16", "float16") else "fp32"
