"""Universal: loads a checkpoint of another number of ranks through DeepSpeed's universal checkpoint.

Two silent faults of DeepSpeed's loading (0.19.8) are corrected here: it gives every parameter group the settings of the
first one, and all parts of the optimizer the same Adam `step` tensor, which then counts the updates of all parts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dyme.engine.train_engine import TrainEngine

WORKERS = 4  # processes of the conversion: each holds a rank's part of the optimizer in memory
POLL_S = 0.5
_TAG, _LOG = "universal", "log.txt"


class ConversionError(Exception):
    """DeepSpeed could not convert a checkpoint; the message has the last line of its output."""


def load_universal(engine: TrainEngine, path: Path, scratch: Path, groups: Sequence[dict[str, Any]]) -> None:
    """Loads a DeepSpeed checkpoint folder of any number of ranks. `scratch`, a folder that does not exist yet,
    holds the converted one, as large as `path`, and is removed at the end; `groups`: the parameter groups' settings as
    `group_settings` gave them at the save."""
    _convert(engine, path, scratch)
    config = engine.ds._config
    config.load_universal_checkpoint = True
    loaded, _ = engine.ds.load_checkpoint(str(scratch), tag=_TAG)
    config.load_universal_checkpoint = False
    if loaded is None:
        raise ConversionError(f"{path}: DeepSpeed does not load what it converted")
    restore_groups(engine.ds.optimizer.optimizer, groups)
    engine.barrier()
    if engine.rank == 0:
        shutil.rmtree(scratch)


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Settings of each parameter group, without its tensors, for JSON."""
    return [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def restore_groups(optimizer: torch.optim.Optimizer, groups: Sequence[dict[str, Any]]) -> None:
    """Restores the settings of each parameter group and gives each part of the optimizer a separate `step` tensor."""
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def choose_settings(optimizer: torch.optim.Optimizer, chosen: Sequence[dict[str, Any]]) -> None:
    """Gives each parameter group the settings of the configuration again: loading replaced them by those of the
    checkpoint. `chosen`: what `group_settings` gave before. Learning rates are set at every step anyway."""
    for group, settings in zip(optimizer.param_groups, chosen, strict=True):
        for key in ("weight_decay", "betas", "eps"):
            value = settings[key]
            group[key] = tuple(value) if isinstance(value, list) else value


def _convert(engine: TrainEngine, path: Path, scratch: Path) -> None:
    process = None
    if engine.rank == 0:
        scratch.mkdir()
        workers = str(max(1, min(WORKERS, (os.cpu_count() or 1) // 2)))
        command = [sys.executable, "-m", "dyme.checkpoint.convert", "--inject_missing_state"]
        command += ["--input_folder", str(path), "--output_folder", str(scratch / _TAG)]
        command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
        with (scratch / _LOG).open("w") as log:  # the conversion needs no GPU
            environment = {**os.environ, "DS_ACCELERATOR": "cpu", "DYME_PARENT": str(os.getpid())}
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    # ranks vote from time to time: one collective for the whole conversion would exceed its timeout
    while not engine.all_true(process is None or process.poll() is not None):
        time.sleep(POLL_S)
    if not engine.all_true(process is None or process.returncode == 0):
        told = ""
        if engine.rank == 0:
            told = " ".join((scratch / _LOG).read_text(encoding="utf-8", errors="replace").split("\n")[-4:])
        raise ConversionError(f"{path} could not be converted for another number of ranks: {told.strip()}")
