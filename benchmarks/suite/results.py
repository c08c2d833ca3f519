"""Results: the cells that are done, and what is asked of them over seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.suite.analysis import Estimate, difference, estimate, ratio
from benchmarks.suite.cells import DONE, FAILED, Cell, digest
from benchmarks.suite.grid import SEEDS, Grid

Found = dict[str, Any]


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
        scores = [got for run in self.runs(cell) if (got := scores_of(run, split, best)) is not None]
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
                pairs.append(tuple(scores_of(run, split) or [] for run in found if run))
        return difference([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None

    def mean(self, cell: Cell, key: str) -> float | None:
        """The mean over seeds of a figure of cell.json; None where no run has it."""
        return mean([run.get(key) for run in self.runs(cell)])

    def of_thinking(self, cell: Cell, key: str, split: str = "test") -> float | None:
        return mean([run["splits"][split].get("think", {}).get(key) for run in self.runs(cell)])

    def faithful(self, cell: Cell, split: str = "test") -> float | None:
        """Readings that agree, of all readings of all replies; the mean over seeds."""
        thinks = [run["splits"][split]["think"] for run in self.runs(cell) if "think" in run["splits"][split]]
        return mean([ratio(think["agreed"], think["read"]) for think in thinks])

    def pseudo(self, cell: Cell, split: str = "test") -> float | None:
        """Right answers with a wrong reading in their trace, of all right ones with readings; the mean over seeds."""
        shares = []
        for run in self.runs(cell):
            if think := run["splits"][split].get("think"):
                rows = zip(think["score"], think["agreed"], think["read"], strict=True)
                wrong = [agreed < read for score, agreed, read in rows if score > 0.5 and read]
                shares.append(ratio([sum(wrong)], [len(wrong)]))
        return mean(shares)

    def outcomes(self, cell: Cell, split: str = "test") -> tuple[float, float, float] | None:
        """Shares of all replies, the mean over seeds: right answers with a wrong reading in their trace, wrong answers
        with one, and wrong answers without."""
        runs = []
        for run in self.runs(cell):
            if think := run["splits"][split].get("think"):
                rows = zip(think["score"], think["agreed"], think["read"], strict=True)
                kinds = Counter((score > 0.5, agreed < read) for score, agreed, read in rows)
                runs.append([kinds[kind] / kinds.total() for kind in ((True, True), (False, True), (False, False))])
        if not runs:
            return None
        first, second, third = (sum(part) / len(runs) for part in zip(*runs))
        return first, second, third

    def direct(self, cell: Cell, split: str = "test") -> float | None:
        """Accuracy when the trained model is asked for the answer alone."""
        scores = [
            run["splits"][split]["direct"]["score"] for run in self.runs(cell) if "direct" in run["splits"][split]
        ]
        return mean([sum(run) / len(run) for run in scores])

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
            path = out / "cells" / cell.id / name
            entry = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if entry.get("digest") == digest(cell, grid.regime, out):
                held[cell.id] = entry
    return Results(grid, found[DONE], found[FAILED])


def scores_of(run: Found, split: str, best: bool = False) -> list[float] | None:
    """Scores item by item under the run's own prompt: the end of the run, or its best checkpoint on validation."""
    splits = (run["best"] or {}).get("splits", {}) if best else run["splits"]
    if split not in splits:
        return None
    found = splits[split]
    scores: list[float] = found.get("think", found.get("direct"))["score"]
    return scores


def mean(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return sum(held) / len(held) if held else None
