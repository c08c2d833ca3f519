"""Checkpoints: DeepSpeed's files plus our own state, written under a temporary name and renamed when complete.

checkpoints/step-00000200/   ds files, state.json (step, selector, counters), manifest.json (hashes), written last
checkpoints/damaged-step-*   checkpoints that failed their manifest; removed at the next save
checkpoints/best.json        {"step": ..., "accuracy": ...}: that checkpoint is never pruned
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch

from dyme.checkpoint.exported import clear, level_modes, note
from dyme.checkpoint.manifest import damage, files_in, listed, measure, share_of, write_manifest
from dyme.checkpoint.recipe import Recipe, write_recipe
from dyme.checkpoint.space import SaveError, has_room, noting, noting_writes, shortage
from dyme.checkpoint.universal import ConversionError, choose_settings, group_settings, load_universal
from dyme.engine.lora import Adapter, adapter_of
from dyme.engine.train_engine import TrainEngine
from dyme.families.base import Family
from dyme.rollout.generation import greedy_generation

STATE, BEST, PARTIAL, DAMAGED = "state.json", "best.json", ".partial-", "damaged-"
ADAPTER = "adapter"
"""Folder of the adapters in an export."""
TRAINED, STAGE, GROUPS, DTYPE = "trained", "zero_stage", "parameter_groups", "dtype"  # in state.json beside TrainState
_NAME = re.compile(r"step-(\d{8})$")
_LEFT = re.compile(rf"({re.escape(PARTIAL)}(old-|universal-)?|{DAMAGED})step-\d{{8}}")  # other names are not ours


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the folder and the mend."""


@dataclass(frozen=True)
class TrainState:
    """State of a run besides DeepSpeed's files; with it a resumed run gives the same results. `step`: finished
    optimizer steps; `evaluated`: step of the last evaluation; `config`: config.yaml; `data`: fingerprints of the
    records."""

    step: int
    elapsed_s: float
    world_size: int
    selector: dict[str, Any] = field(default_factory=dict)
    memorize_log: dict[str, Any] = field(default_factory=dict)
    skipped_in_a_row: int = 0
    reward_errors: dict[str, int] = field(default_factory=dict)
    evaluated: int = -1
    supervision: dict[str, Any] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def checkpoint_dir(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save(engine: TrainEngine, folder: Path, state: TrainState, keep_last: int) -> Path:
    """Writes a checkpoint and prunes old ones. A kill meanwhile leaves the previous checkpoint valid. Raises
    `SaveError` on all ranks where one cannot write."""
    target = checkpoint_dir(folder, state.step)
    if engine.gather_json(target.exists())[0]:  # the same state was saved before, for example as the best one
        if engine.rank == 0:
            prune(folder, keep_last)
        return target
    partial = folder / f"{PARTIAL}{target.name}"
    known = _size_of_last(folder)
    needed = known or engine.parameters * engine.dtype.itemsize + engine.trained_parameters * 12
    failed: list[str] = []  # writes of this rank

    def agree() -> None:
        told = [line for part in engine.gather_json(failed) for line in part]
        if told:
            if engine.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            engine.barrier()
            place = folder if folder.exists() else folder.parent
            raise SaveError(f"{target.name} was not written ({told[0]}): {shortage(place, needed)}")

    if engine.rank == 0:
        with noting(failed):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            if not has_room(folder, known):
                prune(folder, keep_last)  # run.keep_last may have been lowered
                partial.mkdir()
            if not has_room(folder, known):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    agree()
    with noting_writes(engine.ds, failed):
        engine.ds.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    if engine.rank == 0:
        groups = group_settings(engine.ds.optimizer.optimizer)
        ours = {**asdict(state), TRAINED: engine.trained, STAGE: engine.stage, GROUPS: groups, DTYPE: str(engine.dtype)}
        with noting(failed):
            _write_json(partial / STATE, ours)
    agree()
    mine: dict[str, dict[str, Any]] = {}
    with noting(failed):
        mine = measure(partial, share_of(files_in(partial), engine.rank, engine.world_size))
    entries = engine.gather_json(mine)
    if engine.rank == 0 and not failed:
        about = {"step": state.step, "world_size": state.world_size, "versions": versions()}
        with noting(failed):
            write_manifest(partial, {name: entry for part in entries for name, entry in part.items()}, about)
    agree()
    if engine.rank == 0:
        partial.rename(target)
        prune(folder, keep_last)
    engine.barrier()
    return target


def _size_of_last(folder: Path) -> int:
    """Bytes of the newest checkpoint; 0 where there is none."""
    found = steps(folder)
    return sum(entry["size"] for entry in listed(checkpoint_dir(folder, found[-1]))[0].values()) if found else 0


def mark_best(folder: Path, step: int, accuracy: float) -> None:
    """Names the best checkpoint (rank 0 only)."""
    _write_json(folder / BEST, {"step": step, "accuracy": accuracy})


def best(folder: Path, up_to: int | None = None) -> tuple[int, float]:
    """Step and accuracy of the best checkpoint, (-1, -1.0) without one or where a power loss tore the file. `up_to`
    ignores a best of later steps."""
    try:
        found = json.loads((folder / BEST).read_text(encoding="utf-8"))
        step, accuracy = int(found["step"]), float(found["accuracy"])
    except (OSError, ValueError, TypeError, KeyError):
        return -1, -1.0
    return (step, accuracy) if up_to is None or step <= up_to else (-1, -1.0)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first, including damaged ones not found yet."""
    if not folder.is_dir():
        return []
    return sorted(int(m.group(1)) for p in folder.iterdir() if (m := _NAME.match(p.name)) and p.is_dir())


def prune(folder: Path, keep_last: int) -> None:
    """Removes partial checkpoints of killed processes, damaged ones, and all others but the newest `keep_last` and the
    best."""
    keep = {*steps(folder)[-keep_last:], best(folder)[0]}
    for step in set(steps(folder)) - keep:  # so a kill during removal leaves nothing that looks complete
        path = checkpoint_dir(folder, step)
        path.rename(folder / f"{PARTIAL}old-{path.name}")
    for path in list(folder.iterdir()):
        if _LEFT.match(path.name):
            shutil.rmtree(path, ignore_errors=True)


def load_newest(engine: TrainEngine, folder: Path, say: Callable[[str], None]) -> TrainState | None:
    """Loads the newest checkpoint whose files are as they were written; None where there is no checkpoint at all.

    Damaged ones are reported through `say` and renamed. Raises CheckpointError where all are damaged; the run does not
    start over."""
    step = newest_whole(engine, folder, say)
    if step is None:
        return None
    path = checkpoint_dir(folder, step)
    try:
        fields = json.loads((path / STATE).read_text(encoding="utf-8"))
        trained, stage, groups = (fields.pop(key) for key in (TRAINED, STAGE, GROUPS))
        dtype = fields.pop(DTYPE, str(engine.dtype))
        state = TrainState(**fields)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path / STATE} is not what this version writes ({error}): go on with the version of dyme that wrote it, "
            "or start in a new run.dir"
        ) from error
    if trained != engine.trained:  # DeepSpeed would assign optimizer states to other parameters of the same size
        raise CheckpointError(
            f"{path} was written by a run that trained other parameters: set model.lora and model.freeze as in its "
            "config.yaml, or start in a new run.dir"
        )
    if stage != engine.stage:
        raise CheckpointError(
            f"{path} was written with ZeRO stage {stage}, this run has {engine.stage}: set deepspeed as in its "
            "config.yaml, or start in a new run.dir"
        )
    if dtype != str(engine.dtype):
        raise CheckpointError(
            f"{path} was written in {dtype.removeprefix('torch.')}, this run has another model.dtype: set it as in its "
            "config.yaml, or start in a new run.dir"
        )
    chosen = group_settings(engine.ds.optimizer.optimizer)
    if state.world_size == engine.world_size:
        loaded, _ = engine.ds.load_checkpoint(str(folder), tag=path.name)
        if loaded is None:
            raise CheckpointError(f"{path} holds no DeepSpeed checkpoint: delete the folder to use the one before")
    else:
        _load_other_world(engine, path, state, groups, say)
    choose_settings(engine.ds.optimizer.optimizer, chosen)
    engine.rollout_copy.outdated(whole=True)
    return state


def newest_whole(engine: TrainEngine, folder: Path, say: Callable[[str], None]) -> int | None:
    """Step of the newest checkpoint that passes its manifest, None where there are no checkpoints. Those above it are
    renamed to damaged-*. All ranks call it, each reads its share of the files, and all get the same answer."""
    found = engine.gather_json(steps(folder))[0]  # rank 0's: a network file system may be stale elsewhere
    for path in sorted(folder.glob(f"{PARTIAL}step-*")):
        say(f"{path.name.removeprefix(PARTIAL)} was not finished: left out")
    broken: list[Path] = []
    told: list[str] = []
    for step in reversed(found):
        path, begin = checkpoint_dir(folder, step), time.monotonic()
        entries, wrong = listed(path)
        mine = {name: entries[name] for name in share_of(entries, engine.rank, engine.world_size)}
        problems = sorted({line for part in engine.gather_json(wrong + damage(path, mine)) for line in part})
        if not problems:
            size = sum(entry["size"] for entry in entries.values()) / 1e9
            say(f"{path.name}: {len(entries)} files verified, {size:.3g} GB in {time.monotonic() - begin:.1f} s")
            if engine.rank == 0:
                for other in broken:
                    shutil.rmtree(folder / f"{DAMAGED}{other.name}", ignore_errors=True)
                    other.rename(folder / f"{DAMAGED}{other.name}")
            engine.barrier()
            return step
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        say(f"{path.name} is damaged: {shown}; trying the one before")
        told.append(f"{path.name} ({shown})")
        broken.append(path)
    if broken:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {', '.join(told)}; restore one of them from a copy, or delete that "
            "folder to start from the beginning"
        )
    return None


def _load_other_world(
    engine: TrainEngine, path: Path, state: TrainState, groups: list[dict[str, Any]], say: Callable[[str], None]
) -> None:
    say(f"{path.name} was written by {state.world_size} ranks: converting it for {engine.world_size}")
    begin = time.monotonic()
    if engine.rank == 0:
        for left in path.parent.glob(f"{PARTIAL}universal-*"):
            shutil.rmtree(left, ignore_errors=True)
    # a unique name, because the conversion of a killed start may still be writing
    scratch = path.parent / engine.gather_json(f"{PARTIAL}universal-{path.name}-{os.getpid()}")[0]
    try:
        load_universal(engine, path, scratch, groups)
    except ConversionError as error:
        raise CheckpointError(f"{error}; start with {state.world_size} ranks again") from error
    say(f"{path.name}: converted and loaded in {time.monotonic() - begin:.1f} s")


def export(engine: TrainEngine, folder: Path, recipe: Recipe) -> Path | None:
    """Writes the current weights as a Hugging Face folder (see `write_export`); all ranks together. They are taken from
    the rollout copy, into which adapters are merged. Returns where an earlier folder lies that is not as `export` wrote
    it."""
    model = engine.rollout_copy.refresh()
    adapter = adapter_of(engine.module.model, engine.family.source, partitioned=engine.stage == 3)
    aside = None
    failed: list[str] = []
    if engine.rank == 0:
        partial = folder.with_name(f"{PARTIAL}{folder.name}")
        with noting(failed):
            shutil.rmtree(partial, ignore_errors=True)
            write_export(partial, engine.family, model, recipe, adapter)
            level_modes(partial)
            aside = clear(folder)
            partial.rename(folder)
            note(folder)
        if failed:
            shutil.rmtree(partial, ignore_errors=True)
    if told := engine.gather_json(failed)[0]:
        needed = engine.parameters * engine.dtype.itemsize
        raise CheckpointError(
            f"{folder} was not written ({told[0]}): {shortage(folder.parent, needed)}; free space and start again, "
            "which goes on from the last checkpoint"
        )
    return aside


def write_export(folder: Path, family: Family, model: Any, recipe: Recipe, adapter: Adapter | None = None) -> None:
    """Weights, processor, tokenizer, chat template, dyme.json, and a generation_config.json of our own; in a folder
    below it the adapter that `model` was merged with. `model`, plain and whole, keeps that way to decode."""
    # the base's own may hold penalties that the policy never knew, or values that transformers refuses to save
    model.generation_config = greedy_generation(family, recipe.max_new_tokens)
    _write_weights(model, folder)
    family.export(folder)
    write_recipe(recipe, folder)
    if adapter is not None:
        adapter.write(folder / ADAPTER)


def _write_weights(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


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


def keep_text(path: Path, text: str) -> None:
    """Writes a file beside the checkpoints, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _write_json(path: Path, value: Any) -> None:
    keep_text(path, json.dumps(value, indent=1))
