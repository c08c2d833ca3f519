"""History: config.yaml is what trained; what a resumed run changed is in config_history.jsonl.

config.yaml            settings of the newest start, written when it begins to train
config_history.jsonl   {"step", "time", "key", "old", "new"}: a setting that changed after `step` finished steps
starts.jsonl           one line for each start: step, time, host, command, code, versions and a fingerprint of the data
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dyme.config import RunConfig, changed_leaves, dump_config
from dyme.provenance.place import STARTS
from dyme.settings.errors import ConfigError

CONFIG, HISTORY, DONE = "config.yaml", "config_history.jsonl", "DONE"


@dataclass(frozen=True)
class Change:
    """A setting by its dotted key; values as JSON, None where it was or is unset."""

    key: str
    old: Any
    new: Any


def changes(before: str, cfg: RunConfig) -> list[Change]:
    """The settings that differ from those of a config.yaml, but for the place of the folder. Settings that
    the version which wrote it did not have count as their defaults; where it had others, these are shown as they are.
    """
    with suppress(ValidationError):
        before = dump_config(RunConfig.model_validate(yaml.safe_load(before)))
    return [Change(*leaf) for leaf in changed_leaves(before, dump_config(cfg)) if leaf[0] != "run.dir"]


def written(folder: Path) -> str | None:
    """config.yaml of a folder; None where it is missing or was lost with the power."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        return text if isinstance(yaml.safe_load(text), dict) else None
    except (OSError, ValueError, yaml.YAMLError):
        return None


def finished(folder: Path, cfg: RunConfig) -> bool:
    """Whether the folder holds a finished run of this configuration. Raises `ConfigError` where it holds a finished one
    of other settings, unless these let it train for longer."""
    if not (folder / DONE).exists():
        return False
    before = written(folder)
    if before is None:
        raise ConfigError(f"{folder} holds a finished run without its {CONFIG}: choose another folder with run.dir=")
    changed = changes(before, cfg)
    if changed and not _longer(changed):
        keys = ", ".join(change.key for change in changed)
        raise ConfigError(
            f"{folder} holds a finished run with other settings ({keys}), and nothing would train: choose another "
            "folder with run.dir=, or raise train.max_steps to go on with this one"
        )
    return not changed


def _longer(changed: Sequence[Change]) -> bool:
    held = {change.key: change for change in changed}
    more = held.get("train.max_steps")
    if more is not None:
        return more.new > more.old
    minutes = held.get("run.max_minutes")
    return minutes is not None and minutes.old is not None and (minutes.new is None or minutes.new > minutes.old)


def record(folder: Path, cfg: RunConfig, step: int, changed: Sequence[Change], start: dict[str, Any]) -> None:
    """Writes the three files as a start begins to train after `step` finished steps. `start`: what else its line of
    starts.jsonl says."""
    now = time.strftime("%FT%T%z")
    if not step:  # what an earlier start changed did not train what this one begins
        (folder / HISTORY).unlink(missing_ok=True)
    lines = [{"step": step, "time": now, "key": c.key, "old": c.old, "new": c.new} for c in changed]
    _append(folder / HISTORY, lines)
    partial = folder / f".{CONFIG}"
    partial.write_text(dump_config(cfg), encoding="utf-8")
    partial.replace(folder / CONFIG)
    _append(folder / STARTS, [{"step": step, "time": now, **start}])


def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    if lines:
        held = path.read_bytes() if path.exists() else b""
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" if held and not held.endswith(b"\n") else "")  # a line that a power loss cut
            file.write("".join(json.dumps(line) + "\n" for line in lines))
