"""Runner: a pool of processes that works through the cells of a grid, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.results import ROOT, module_environment
from benchmarks.suite.cells import DONE, FAILED, Cell, digest, settings
from benchmarks.suite.grid import Grid
from benchmarks.suite.methods import MERGE
from benchmarks.suite.results import entry
from dyme.config import RunConfig
from dyme.settings.errors import explain

ATTEMPTS = 2
"""A cell that failed is tried once more by the next start, and then no more."""
TAIL = 12  # lines of a failed cell that are kept


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
    """Cells that wait in order, those that run, and what became of the others, by id."""

    grid: Grid
    preset: str
    out: Path

    deadline: float
    waiting: list[Cell]
    done: set[str]
    failed: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    lock: threading.Condition = field(default_factory=threading.Condition)
    stopped: bool = False

    def work(self, slot: int) -> None:
        """One worker: takes the next cell whose needs are done, until none is left or the time is over."""
        while (cell := self._next()) is not None:
            begin = time.monotonic()
            error = self._run(cell, slot)
            with self.lock:
                self.running.pop(cell.id, None)
                self.begun.discard(cell.id)
                (self.failed if error else self.done).add(cell.id)
                left = len(self.waiting) + len(self.begun)
                _say(f"{cell.id}: {error or 'done'}, {time.monotonic() - begin:.0f} s ({left} left)")
                self.lock.notify_all()

    def _next(self) -> Cell | None:
        with self.lock:
            while self.waiting and time.monotonic() < self.deadline:
                for cell in [c for c in self.waiting if {need.id for need in c.needs} & self.failed]:
                    self.waiting.remove(cell)
                    self.failed.add(cell.id)
                    _say(f"{cell.id}: left out, what it needs failed")
                ready = next((c for c in self.waiting if all(need.id in self.done for need in c.needs)), None)
                if ready is not None:
                    self.waiting.remove(ready)
                    self.begun.add(ready.id)
                    return ready
                if not self.begun:
                    return None
                self.lock.wait(5.0)
        return None

    def _run(self, cell: Cell, slot: int) -> str:
        """Runs the cell in a process group of its own -> "" or why it failed."""
        folder = self.out / "cells" / cell.id
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        with log.open("wb") as file, self.lock:
            words = command(cell, self.preset, self.out, slot)
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment(), stdout=file, stderr=file, start_new_session=True
            )
            self.running[cell.id] = process
        process.wait()
        if is_done(cell, self.grid, self.out):
            (folder / FAILED).unlink(missing_ok=True)
            log.unlink()
            return ""
        if self.stopped:
            return "stopped"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        failure = {
            "attempts": attempts(cell, self.grid, self.out) + 1,
            "digest": digest(cell, self.grid.regime, self.out),
            "code": process.returncode,
            "tail": lines,
        }
        (folder / FAILED).write_text(json.dumps(failure, indent=1) + "\n", encoding="utf-8")
        return f"failed ({next((line.strip() for line in reversed(lines) if 'rror' in line), 'see its log.txt')[:160]})"

    def stop(self) -> None:
        """Ends what runs. Its cells start again next time."""
        self.deadline, self.stopped = 0.0, True
        for process in list(self.running.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


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
    pool = Pool(grid, preset, out, deadline, waiting, done, given_up | set(refused))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workers = [threading.Thread(target=pool.work, args=(slot,), daemon=True) for slot in range(jobs)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.5)
    finally:
        pool.stop()
    return bool(pool.failed - set(refused))


def command(cell: Cell, preset: str, out: Path, slot: int) -> list[str]:
    where = f"--include=localhost:{slot % torch.cuda.device_count()}" if torch.cuda.is_available() else "--num_gpus=1"
    launcher = str(Path(sys.executable).parent / "deepspeed")
    words = [launcher, where, f"--master_port={_port()}", "--module", "benchmarks.suite.cell"]
    return [*words, "--preset", preset, "--id", cell.id, "--out", str(out)]


def environment() -> dict[str, str]:
    gpu = torch.cuda.is_available()
    found = module_environment(OMP_NUM_THREADS="1", **({} if gpu else {"DS_ACCELERATOR": "cpu"}))
    drop = {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        *(["CUDA_VISIBLE_DEVICES"] if gpu else []),
    }
    return {name: value for name, value in found.items() if name not in drop}


def _wanted(grid: Grid, only: str) -> Sequence[Cell]:
    chosen = {cell.id for cell in grid.cells if re.search(only, cell.id)}
    for cell in reversed(grid.cells):  # what is needed stands before what needs it
        if cell.id in chosen:
            chosen |= {need.id for need in cell.needs}
    return [cell for cell in grid.cells if cell.id in chosen]


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _say(message: Any) -> None:
    print(f"[suite] {message}", file=sys.stderr, flush=True)
