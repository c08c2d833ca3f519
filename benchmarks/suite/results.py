"""Results: the cells that are done, and what is asked of them over seeds.

The record of a preset is one committed file, a line for each finished cell; a suite goes on where that ends. It is
compressed: every cell holds the score of every item, so that differences can be taken again.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.suite.analysis import Estimate, difference, estimate, ratio
from benchmarks.suite.cells import DONE, FAILED, Cell, digest
from benchmarks.suite.grid import SEEDS, Grid

Found = dict[str, Any]
RECORDS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Results:
    """`cells` is cell.json by id, `failed` what failed.json says."""

    grid: Grid
    cells: dict[str, Found]
    failed: dict[str, Found]

    def runs(self, cell: Cell) -> list[Found]:
        """The cell at every seed that is done; a base has one for all seeds."""
        ids = dict.fromkeys(replace(cell, seed=seed).id for seed in SEEDS)
        return [self.cells[id_] for id_ in ids if id_ in self.cells]

    def accuracy(self, cell: Cell, split: str = "test", best: bool = False) -> Estimate | None:
        """At the end of the runs, or at their best checkpoint on validation."""
        splits = [(run["best"] or {}).get("splits", {}) if best else run["splits"] for run in self.runs(cell)]
        scores = [_scores(held[split]) for held in splits if split in held]
        return estimate(scores) if scores else None

    def versus(self, ours: Cell, theirs: Cell, split: str = "test") -> Estimate | None:
        """ours - theirs over seeds that both have; a base is the same for all seeds."""
        pairs = []
        for seed in SEEDS:
            found = [self.cells.get(replace(cell, seed=seed).id) for cell in (ours, theirs)]
            held = [run["splits"][split] for run in found if run and split in run["splits"]]
            if len(held) == 2:
                if held[0]["items"] != held[1]["items"]:
                    raise ValueError(f"{ours.id} and {theirs.id} were measured on other items: run them again")
                pairs.append(held)
        return difference(*([_scores(each) for each in side] for side in zip(*pairs))) if pairs else None

    def mean(self, cell: Cell, key: str) -> float | None:
        """The mean over seeds of a figure of cell.json; None where no run has it."""
        return mean([run.get(key) for run in self.runs(cell)])

    def columns(self, cell: Cell, name: str = "think") -> list[Found]:
        """What was measured on the test split under one way to ask, of each run that was asked so."""
        return [held[name] for run in self.runs(cell) if name in (held := run["splits"]["test"])]

    def of_thinking(self, cell: Cell, key: str) -> float | None:
        return mean([think.get(key) for think in self.columns(cell)])

    def faithful(self, cell: Cell) -> float | None:
        """Readings that agree, of all readings of all replies; the mean over seeds."""
        return mean([ratio(think["agreed"], think["read"]) for think in self.columns(cell)])

    def pseudo(self, cell: Cell) -> float | None:
        """Right answers with a wrong reading in their trace, of all right ones with readings; the mean over seeds."""
        shares = []
        for think in self.columns(cell):
            wrong = [agreed < read for score, agreed, read in _items(think) if score > 0.5 and read]
            shares.append(ratio([sum(wrong)], [len(wrong)]))
        return mean(shares)

    def outcomes(self, cell: Cell) -> tuple[float, ...] | None:
        """Shares of all replies, the mean over seeds: right answers with a wrong reading in their trace, wrong answers
        with one, and wrong answers without."""
        runs = []
        for think in self.columns(cell):
            kinds = Counter((score > 0.5, agreed < read) for score, agreed, read in _items(think))
            runs.append([kinds[kind] / kinds.total() for kind in ((True, True), (False, True), (False, False))])
        return tuple(sum(part) / len(runs) for part in zip(*runs)) or None

    def direct(self, cell: Cell) -> float | None:
        """Accuracy when the trained model is asked for the answer alone."""
        return mean([sum(column["score"]) / len(column["score"]) for column in self.columns(cell, "direct")])

    def splits(self, task: str) -> list[str]:
        """Names of the splits of a task, "test" first."""
        return list(next((run["splits"] for run in self.cells.values() if run["task"] == task), {}))

    @property
    def missing(self) -> list[Cell]:
        return [cell for cell in self.grid.cells if cell.id not in self.cells]


def load(grid: Grid, out: Path) -> Results:
    """What is done of the grid in the folder; cells that were made with other settings are left out."""
    found: dict[str, dict[str, Found]] = {DONE: {}, FAILED: {}}
    for cell in grid.cells:
        for name, held in found.items():
            if said := entry(cell, grid, out, name):
                held[cell.id] = said
    return Results(grid, found[DONE], found[FAILED])


def entry(cell: Cell, grid: Grid, out: Path, name: str) -> Found:
    """The cell's file of that name, {} where there is none or it was made with other settings."""
    path = out / "cells" / cell.id / name
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if found.get("digest") == digest(cell, grid.regime, out) else {}


def record_of(preset: str) -> Path:
    return RECORDS / f"suite-{preset}.jsonl.gz"


def write_record(grid: Grid, out: Path, path: Path) -> None:
    """Every cell that is done, whole, in the order of the grid."""
    partial = path.with_suffix(".part")
    lines = "".join(json.dumps(cell, separators=(",", ":")) + "\n" for cell in load(grid, out).cells.values())
    partial.write_bytes(gzip.compress(lines.encode(), mtime=0))  # no time: the same cells are the same bytes
    partial.replace(path)


def unpack_record(grid: Grid, out: Path, path: Path) -> int:
    """Writes the recorded cells that the folder lacks, if they were made with these settings; how many."""
    if not path.exists():
        return 0
    known = {cell.id: cell for cell in grid.cells}
    count = 0
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        found = json.loads(line)
        cell, target = known.get(found["id"]), out / "cells" / found["id"] / DONE
        if cell is not None and not target.exists() and found["digest"] == digest(cell, grid.regime, out):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(line + "\n", encoding="utf-8")
            count += 1
    return count


def _items(think: Found) -> Iterator[tuple[float, int, int]]:
    """Score, readings that agree and readings of each item."""
    return zip(think["score"], think["agreed"], think["read"], strict=True)


def _scores(found: Found) -> list[float]:
    """Scores of a split, item by item, under the run's own prompt."""
    scores: list[float] = found["think" if "think" in found else "direct"]["score"]
    return scores


def mean(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return sum(held) / len(held) if held else None
