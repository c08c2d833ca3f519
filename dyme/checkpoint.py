"""Checkpoints: DeepSpeed's files plus our own state, written under a temporary name and renamed when whole.

checkpoints/step-00000200/   ds files, state.json (step, selector, counters), written last inside
checkpoints/best.json        {"step": ..., "accuracy": ...}: that checkpoint is never pruned
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from dyme.engine import Engine
from dyme.recipe import Recipe, write_recipe

STATE, BEST, PARTIAL = "state.json", "best.json", ".partial-"
TRAINED = "trained"
_NAME = re.compile(r"step-(\d{8})$")


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the folder and the mend."""


@dataclass(frozen=True)
class TrainState:
    """What a run needs besides DeepSpeed's files to go on as if it had never stopped. `step`: finished optimizer
    steps."""

    step: int
    elapsed_s: float
    world_size: int
    selector: dict[str, Any] = field(default_factory=dict)
    memorize_log: dict[str, Any] = field(default_factory=dict)
    skipped_in_a_row: int = 0
    reward_errors: dict[str, int] = field(default_factory=dict)
    supervision: dict[str, Any] = field(default_factory=dict)


def checkpoint_dir(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save(engine: Engine, folder: Path, state: TrainState, keep_last: int) -> Path:
    """Writes a checkpoint and prunes old ones. A process killed in here leaves the previous checkpoint as it was."""
    target = checkpoint_dir(folder, state.step)
    partial = folder / f"{PARTIAL}{target.name}"
    if engine.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    engine.barrier()
    engine.ds.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    engine.barrier()
    if engine.rank == 0:
        _write_json(partial / STATE, {**asdict(state), TRAINED: engine.trained})
        if target.exists():  # the step was saved before, e.g. as the best one: same weights
            shutil.rmtree(partial)
        else:
            partial.rename(target)
        prune(folder, keep_last)
    engine.barrier()
    return target


def mark_best(folder: Path, step: int, accuracy: float) -> None:
    """Names the best checkpoint (rank 0 only)."""
    _write_json(folder / BEST, {"step": step, "accuracy": accuracy})


def best(folder: Path, up_to: int | None = None) -> tuple[int, float]:
    """Step and accuracy of the best checkpoint, (-1, -1.0) without one. `up_to` ignores a best of later steps."""
    if not (folder / BEST).exists():
        return -1, -1.0
    found = json.loads((folder / BEST).read_text(encoding="utf-8"))
    return (found["step"], found["accuracy"]) if up_to is None or found["step"] <= up_to else (-1, -1.0)


def steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    whole = (m for p in folder.iterdir() if (m := _NAME.match(p.name)) and (p / STATE).is_file())
    return sorted(int(m.group(1)) for m in whole)


def prune(folder: Path, keep_last: int) -> None:
    """Removes all but the newest `keep_last` checkpoints and the best, and what killed processes left half-written."""
    keep = {*steps(folder)[-keep_last:], best(folder)[0]}
    for step in set(steps(folder)) - keep:
        shutil.rmtree(checkpoint_dir(folder, step))
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def load_newest(engine: Engine, folder: Path) -> TrainState | None:
    """Loads the newest whole checkpoint into the engine; None where there is none. All ranks take rank 0's choice."""
    newest = torch.tensor([max(steps(folder), default=-1)], dtype=torch.int64, device=engine.device)
    dist.broadcast(newest, 0)
    step = int(newest)
    if step < 0:
        return None
    path = checkpoint_dir(folder, step)
    try:
        fields = json.loads((path / STATE).read_text(encoding="utf-8"))
        trained = fields.pop(TRAINED, engine.trained)  # older checkpoints do not say
        state = TrainState(**fields)
    except (OSError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path / STATE} cannot be read ({error}): delete the folder {path.name} to use the one before"
        ) from error
    if state.world_size != engine.world_size:
        raise CheckpointError(
            f"{path} was written by {state.world_size} ranks, this run has {engine.world_size}: "
            "start as many ranks again"
        )
    if trained != engine.trained:  # DeepSpeed would give the states of some parameters to others of the same size
        raise CheckpointError(
            f"{path} was written by a run that trained other parameters: set model.lora and model.freeze as in its "
            "config.yaml, or start in a new run.dir"
        )
    loaded, _ = engine.ds.load_checkpoint(str(folder), tag=path.name)
    if loaded is None:
        raise CheckpointError(f"{path} holds no DeepSpeed checkpoint: delete the folder to use the one before")
    engine.weights_changed()
    return state


def export(engine: Engine, folder: Path, recipe: Recipe) -> None:
    """Writes the current weights as a Hugging Face folder with processor, tokenizer, chat template and dyme.json. They
    are those of the rollout copy, into which adapters are merged."""
    model = engine.refresh()
    if engine.rank == 0:
        partial = folder.with_name(f"{PARTIAL}{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)  # type: ignore[operator]
        engine.family.export(partial)
        write_recipe(recipe, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    engine.barrier()


def versions() -> dict[str, str]:
    """Versions a result depends on."""
    import platform

    import transformers
    import triton

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
        "triton": triton.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores",
    }


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f"{PARTIAL}{path.name}")
    partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
    partial.replace(path)
