"""Runner: a pool of processes that works through the cells of a grid, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.results import ROOT, deepspeed_command, module_environment
from benchmarks.suite.cells import DONE, FAILED, Cell, digest, settings
from benchmarks.suite.grid import Grid
from benchmarks.suite.methods import MERGE
from benchmarks.suite.results import entry
from dyme.config import RunConfig
from dyme.settings.errors import explain

ATTEMPTS = 2
"""A cell that failed is tried once more by the next start, and then no more."""
TAIL = 12  # lines of a failed cell that are kept
LOG = "log.txt"
POLL_S = 0.2


def not_there(cell: Cell, grid: Grid, out: Path) -> str:
    """Why this version of dyme cannot run the cell, "" where it can."""
    from pydantic import ValidationError

    if cell.method == MERGE:
        return ""
    try:
        RunConfig.model_validate(settings(cell, grid.regime, out))
    except ValidationError as error:
        return explain(error, RunConfig)
    return ""


def is_done(cell: Cell, grid: Grid, out: Path) -> bool:
    """Whether cell.json holds this very cell; one with other settings is run again."""
    return bool(entry(cell, grid, out, DONE))


def attempts(cell: Cell, grid: Grid, out: Path) -> int:
    """How often the cell failed with these settings."""
    return entry(cell, grid, out, FAILED).get("attempts", 0)


@dataclass
class Pool:
    """Cells that wait in order, those that run by slot, and the ids of the others by what became of them."""

    grid: Grid
    preset: str
    out: Path
    jobs: int
    deadline: float
    waiting: list[Cell]
    done: set[str]
    failed: set[str]
    running: dict[int, tuple[Cell, subprocess.Popen[bytes], float]] = field(default_factory=dict)

    def work(self) -> None:
        """Runs each cell once what it needs is done, until none is left or the time is over. An exception ends what
        runs; those cells start again next time."""
        try:
            while True:
                for slot in set(range(self.jobs)) - set(self.running):
                    if (cell := self._next()) is not None:
                        self.running[slot] = cell, self._begin(cell, slot), time.monotonic()
                if not self.running:
                    return
                time.sleep(POLL_S)
                for slot, (cell, process, begin) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[slot]
                        error = self._end(cell, process.returncode)
                        (self.failed if error else self.done).add(cell.id)
                        left = len(self.waiting) + len(self.running)
                        _say(f"{cell.id}: {error or 'done'}, {time.monotonic() - begin:.0f} s ({left} left)")
        finally:
            for _, process, _ in self.running.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def _next(self) -> Cell | None:
        """The first cell that waits for nothing; None where there is none, or no time."""
        for cell in list(self.waiting):
            needs = {need.id for need in cell.needs}
            if needs & self.failed:
                self.waiting.remove(cell)
                self.failed.add(cell.id)
                _say(f"{cell.id}: left out, what it needs failed")
            elif needs <= self.done and time.monotonic() < self.deadline:
                self.waiting.remove(cell)
                return cell
        return None

    def _begin(self, cell: Cell, slot: int) -> subprocess.Popen[bytes]:
        """A process group that runs the cell."""
        folder = self.out / "cells" / cell.id
        folder.mkdir(parents=True, exist_ok=True)
        words = command(cell, self.preset, self.out, slot)
        with (folder / LOG).open("wb") as log:
            return subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True)

    def _end(self, cell: Cell, code: int) -> str:
        """Whether a cell that ended is done: "", or why it failed."""
        folder = self.out / "cells" / cell.id
        if is_done(cell, self.grid, self.out):
            (folder / FAILED).unlink(missing_ok=True)
            (folder / LOG).unlink()
            return ""
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        failure = {
            "attempts": attempts(cell, self.grid, self.out) + 1,
            "digest": digest(cell, self.grid.regime, self.out),
            "code": code,
            "tail": lines,
        }
        (folder / FAILED).write_text(json.dumps(failure, indent=1) + "\n", encoding="utf-8")
        return f"failed ({next((line.strip() for line in reversed(lines) if 'rror' in line), 'see its log.txt')[:160]})"


def run_grid(grid: Grid, preset: str, out: Path, *, jobs: int, minutes: float | None, only: str) -> bool:
    """Runs the cells whose id matches `only` and what they need; begins nothing after `minutes`. Ctrl-C and SIGTERM end
    it and what it started. Returns whether a cell failed."""
    wanted = _wanted(grid, only)
    refused = {cell.id: why for cell in wanted if (why := not_there(cell, grid, out))}
    for name, why in refused.items():
        _say(f"{name}: not there ({why})")
    done = {cell.id for cell in wanted if cell.id not in refused and is_done(cell, grid, out)}
    for cell in reversed(wanted):  # recorded results come without the models that others start from
        if cell.id not in done | set(refused):
            done -= {need.id for need in cell.needs if not (out / "cells" / need.id / "run" / "export").is_dir()}
    given_up = {cell.id for cell in wanted if attempts(cell, grid, out) >= ATTEMPTS} - done
    waiting = [cell for cell in wanted if cell.id not in done | given_up | set(refused)]
    _say(f"{len(wanted)} cells, {len(done)} done, {len(given_up)} given up, {len(waiting)} to do with {jobs} jobs")
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    pool = Pool(grid, preset, out, jobs, deadline, waiting, done, given_up | set(refused))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pool.work()
    return bool(pool.failed - set(refused))


def command(cell: Cell, preset: str, out: Path, slot: int) -> list[str]:
    where = f"--include=localhost:{slot % torch.cuda.device_count()}" if torch.cuda.is_available() else "--num_gpus=1"
    words = deepspeed_command(where, "--module", "benchmarks.suite.cell")
    return [*words, "--preset", preset, "--id", cell.id, "--out", str(out)]


def environment() -> dict[str, str]:
    gpu = torch.cuda.is_available()
    found = module_environment(OMP_NUM_THREADS="1", **({} if gpu else {"DS_ACCELERATOR": "cpu"}))
    drop = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    drop |= {"CUDA_VISIBLE_DEVICES"} if gpu else set()
    return {name: value for name, value in found.items() if name not in drop}


def _wanted(grid: Grid, only: str) -> Sequence[Cell]:
    chosen = {cell.id for cell in grid.cells if re.search(only, cell.id)}
    for cell in reversed(grid.cells):  # what is needed stands before what needs it
        if cell.id in chosen:
            chosen |= {need.id for need in cell.needs}
    return [cell for cell in grid.cells if cell.id in chosen]


def _say(message: Any) -> None:
    print(f"[suite] {message}", file=sys.stderr, flush=True)
