"""Runs one cell: trains it, measures it, writes its cell.json. Started by the suite:

deepspeed --num_gpus 1 --module benchmarks.suite.cell --preset cpu --id charts-low-dyme-s1 --out DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.kernels.results import ROOT
from benchmarks.suite.cells import DONE, Cell, digest, settings
from benchmarks.suite.grid import GRIDS, Grid
from benchmarks.suite.measure import curve, mean_of, measure_split
from benchmarks.suite.methods import MERGE
from benchmarks.suite.task import Split
from benchmarks.suite.tasks import TASKS
from dyme import trainer
from dyme.checkpoint.store import versions
from dyme.config import RunConfig, load_config
from dyme.engine.train_engine import close_distributed, init_distributed
from dyme.evaluation.folder import write_whole
from dyme.evaluation.held_out import Evaluation, majority_rates
from dyme.families import load_family
from dyme.families.attention import resolve_attention, set_attention
from dyme.fault_tolerance.launch import quiet, run_and_exit
from dyme.fault_tolerance.preemption import die_with_parent
from dyme.opening import open_run
from dyme.rollout.engine import FixedWeights
from dyme.rollout.registry import open_engine
from dyme.rollout.types import Rollout
from dyme.run_folder import RunFolder
from dyme.scoring import Scoring
from dyme.text.json_lines import plain, read_jsonl


@dataclass
class SuiteFolder(RunFolder):
    """Without checkpoints: the weights that were best on the validation records are held in memory."""

    best_weights: dict[str, torch.Tensor] | None = None
    best_step = 0

    def log_eval(self, step: int, result: Evaluation) -> None:
        self.position.schedule.evaluated = step
        self.logger.log_eval(step, {"time_s": self.clock.elapsed(), **result.metrics()})
        if step and result.accuracy > self.position.best:
            self.position.best, self.best_step = result.accuracy, step
            held = self.engine.rollout_copy.refresh().state_dict()
            self.best_weights = {key: value.cpu().clone() for key, value in held.items()}

    def save(self, step: int, *, last: bool = False) -> bool:
        """Nothing: a cell that was cut off starts again, it takes minutes."""
        return True


def flipped(seed: int, step: int, record: str, row: int, rate: float) -> bool:
    """Whether the verdict on a row of a step is turned round: true for a share `rate` of all keys, by a hash."""
    digest = hashlib.blake2b(f"{seed}/{step}/{record}/{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < rate * 2**64


def noisy(rate: float) -> type[Scoring]:
    """A `Scoring` whose accuracy a is 1 - a in a share `rate` of the rows. Format and thinking stay as they are."""

    class NoisyScoring(Scoring):
        def _score(self, rows: tuple[int, ...], rollouts: Sequence[Rollout]) -> Any:
            part, seed = super()._score(rows, rollouts), self.scorer.cfg.run.seed
            for i, row in enumerate(part.rows):
                if flipped(seed, self.batch.step, self._record(row).id, row, rate):
                    part.checked.parts[i, 2] = 1.0 - part.checked.parts[i, 2]
            return part

    return NoisyScoring


def run_cell(cell: Cell, grid: Grid, out: Path) -> dict[str, Any]:
    """The content of cell.json."""
    folder = out / "cells" / cell.id
    shutil.rmtree(folder / "run", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tree = settings(cell, grid.regime, out, keep=cell.id in grid.kept)
    (folder / "run.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    cfg = load_config(folder / "run.yaml")
    splits = TASKS[cell.task].held_out(out / "data", grid.regime.sizes)
    begin = time.monotonic()
    found = _merged(cell, cfg, splits, out) if cell.method == MERGE else _trained(cell, cfg, splits)
    return {
        "id": cell.id,
        **vars(cell),
        "changes": dict(cell.changes),
        "digest": digest(cell, grid.regime, out),
        **found,
        "wall_s": time.monotonic() - begin,
        "cpu_s": time.process_time(),
        "versions": versions(),
        "commit": _commit(),
    }


def _trained(cell: Cell, cfg: RunConfig, splits: Any) -> dict[str, Any]:
    if flips := cell.change("flips", 0.0):
        vars(trainer)["Scoring"] = noisy(flips)  # nothing of dyme asks for wrong verdicts, so there is no setting
    run = open_run(cfg)
    folder = SuiteFolder(**vars(run.folder))
    trainer.train(replace(run, folder=folder))
    model = run.engine.rollout_copy.refresh()
    ends = _measured(cell, cfg, run.engine.family, model, splits)
    best: dict[str, Any] | None = None
    if folder.best_weights is not None:
        model.load_state_dict(folder.best_weights)
        best = {"step": folder.best_step, "validation": run.position.best}
        best["splits"] = _measured(cell, cfg, run.engine.family, model, splits)
        for split in best["splits"].values():
            split.get("think", {}).pop("samples", None)
    every = read_jsonl(folder.path / "metrics.jsonl")
    steps = [line for line in every if not line.get("eval")]
    evals = [line for line in every if line.get("eval")]
    return {
        "splits": ends,
        "best": best,
        "curve": curve(steps),
        "evals": [{"step": e["step"], "accuracy": e["eval/accuracy"], "format": e["eval/format_rate"]} for e in evals],
        "collapse": mean_of(steps, "collapse/all_wrong"),
        "memorize": mean_of(steps, "mode/memorize_ratio"),
        "rollout_tokens": sum(step.get("rollout/tokens") or 0.0 for step in steps),
        "trained_tokens": sum(step.get("effective_tokens") or 0.0 for step in steps),
        "train_s": run.clock.elapsed(),
        "steps": len(steps),
        "parameters": run.engine.parameters,
    }


def _merged(cell: Cell, cfg: RunConfig, splits: Any, out: Path) -> dict[str, Any]:
    ends = [str(out / "cells" / need.id / "run" / "export") for need in cell.needs]
    target = out / "cells" / cell.id / "run" / "merged"
    words = [sys.executable, "-m", "dyme.tools.merge", *ends, "--weight", "0.5", "--out", str(target)]
    subprocess.run(words, check=True, cwd=ROOT)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    family, model = load_family(target, cfg.model.family, cfg.model.dtype)
    model = model.eval().requires_grad_(False).to(device)
    whole, _ = resolve_attention(cfg.model.attention, "auto", cfg.model.dtype, cuda=device.type == "cuda")
    set_attention(model, whole, whole)
    found = _measured(cell, cfg, family, model, splits)
    shutil.rmtree(target)
    return {"splits": found, "best": None, "curve": [], "evals": [], "steps": 0}


def _measured(cell: Cell, cfg: RunConfig, family: Any, model: Any, splits: dict[str, Split]) -> dict[str, Any]:
    out = {}
    engine = open_engine(cfg.rollout.engine, family, FixedWeights(model))
    for name, split in splits.items():
        if name != "validation":
            records = split.records()
            found = measure_split(cfg, family, engine, records, TASKS[cell.task].check)
            out[name] = found | {"majority": majority_rates(records)["eval_majority_rate_by_kind"]}
    return out


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip()


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=GRIDS, required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    args = parser.parse_args()
    grid = GRIDS[args.preset]()
    cell = next(c for c in grid.cells if c.id == args.id)
    quiet()
    init_distributed(cell.seed)
    found = run_cell(cell, grid, args.out)
    folder = args.out / "cells" / cell.id
    if cell.id not in grid.kept:
        shutil.rmtree(folder / "run")
    write_whole(folder / DONE, json.dumps(plain(found), separators=(",", ":")) + "\n")
    close_distributed()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
