"""DeepSpeed JSONs: those of users, and those that come with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dyme.settings.errors import ConfigError

SHIPPED = Path(__file__).parents[1] / "ds_configs"


def deepspeed_file(name: str) -> Path:
    """The file of this name, or that of the package, whatever the working folder: `zero2`, `zero2.json` and
    `ds_configs/zero2.json` are the same. Raises `ConfigError`."""
    path = Path(name)
    if path.is_file():
        return path
    if path.parent in (Path(), Path("ds_configs")):
        own = SHIPPED / path.with_suffix(".json").name
        if own.is_file():
            return own
    names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.json")))
    raise ConfigError(f"deepspeed: {path} does not exist (working folder {Path.cwd()}); the package has {names}")


def read_deepspeed(name: str) -> dict[str, Any]:
    """The JSON of `deepspeed_file`, whose section zero_optimization names a stage and holds no "auto". Raises
    `ConfigError`."""
    path = deepspeed_file(name)
    try:
        ds = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"deepspeed: {path} cannot be read ({error.strerror}); see ds_configs/") from error
    except RecursionError:
        raise ConfigError(f"deepspeed: {path} is nested too deep; see ds_configs/") from None
    except ValueError as error:
        raise ConfigError(f"deepspeed: {path} is not valid JSON: {error}") from error
    held = ds.get("zero_optimization", {}) if isinstance(ds, dict) else None
    if not isinstance(held, dict):
        raise ConfigError(f"deepspeed: {path} must be a JSON object with zero_optimization: {{stage: 1, 2 or 3}}")
    zero = {key: value for key, value in held.items() if value != "auto"}
    stage = zero.get("stage")
    if type(stage) is not int or stage not in (1, 2, 3):
        raise ConfigError(f"deepspeed: {path} needs zero_optimization.stage 1, 2 or 3, it has {zero.get('stage')}")
    return {**ds, "zero_optimization": zero}


def unusable(name: str) -> ConfigError | None:
    """What is wrong in a file that is there. One that is not may be made before the run starts."""
    try:
        deepspeed_file(name)
    except ConfigError:
        return None
    try:
        read_deepspeed(name)
    except ConfigError as error:
        return error
    return None
