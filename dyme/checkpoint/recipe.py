"""Recipe: the prompt settings of an exported model. `dyme.json`, next to the weights in the export folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dyme.settings.errors import explain
from dyme.settings.numbers import PositiveInt
from dyme.settings.prompt import PromptConfig
from dyme.settings.schema import Schema

FILE = "dyme.json"


class RecipeError(ValueError):
    """A dyme.json that cannot be used; the message names the file and the mend."""


class Recipe(Schema):
    """Settings that a model was trained with and needs in prediction. transformers ignores the file."""

    format: Literal[1] = 1
    """Version of this file."""
    prompt: PromptConfig = PromptConfig()
    """The prompt of training."""
    max_new_tokens: PositiveInt = 256
    """Limit of its completions in tokens."""
    family: str = "auto"
    """Model family in training."""
    max_pixels: PositiveInt | None = None
    """Larger pictures were resized to this many pixels."""
    image_backend: Literal["torchvision", "pil"] | None = None
    """What resized pictures in training, for image processors that can do it either way: their pixels differ slightly.
    Null for text-only models and where it is not known."""


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Writes dyme.json into a folder that holds the weights."""
    (folder / FILE).write_text(recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_recipe(folder: Path) -> Recipe | None:
    """The recipe of a model folder, None where there is no dyme.json. Raises `RecipeError` for a damaged one."""
    path = folder / FILE
    if not path.exists():
        return None
    mend = "delete it to go by the default prompt, or export the model again"
    try:
        return Recipe.model_validate(json.loads(path.read_bytes().decode("utf-8")))
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error, Recipe)}; {mend}") from None
    except (OSError, ValueError) as error:  # json's and unicode's errors are ValueErrors
        raise RecipeError(f"{path}: cannot be read ({' '.join(str(error).split())}); {mend}") from None
