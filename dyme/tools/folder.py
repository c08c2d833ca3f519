"""Folder: a new one that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dyme.checkpoint.recipe import RecipeError, read_recipe
from dyme.families import open_family
from dyme.families.base import ModelError
from dyme.rollout.generation import greedy_generation

GENERATION = "generation_config.json"
PARTIAL = ".partial-"
"""What the name of a folder begins with while it is written."""


def check_new(out: Path) -> None:
    """Raises `ModelError` where `out` is there already, unless it is an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"--out {out} is there already: choose a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which is renamed to `out` at the end and removed after an error."""
    partial = out.with_name(f"{PARTIAL}{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_generation(folder: Path) -> list[str]:
    """Our way to decode, into a model folder that has a dyme.json. Returns notes for the user."""
    try:
        recipe = read_recipe(folder)
        if recipe is not None:
            family = open_family(folder, recipe.family)
            greedy_generation(family, recipe.max_new_tokens).save_pretrained(folder)
    except (ModelError, RecipeError) as error:
        return [f"{GENERATION} is that of the model, if it has one: {str(error).replace(PARTIAL, '')}"]
    return []
