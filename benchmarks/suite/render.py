"""Render: results.md, results.json and the plots of what is done, and the tables and plots of docs/results.md."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kernels.results import ROOT
from benchmarks.suite import tables
from benchmarks.suite.cells import Cell
from benchmarks.suite.grid import Grid
from benchmarks.suite.methods import BASE, LABELS, MAIN
from benchmarks.suite.questions import Question, questions
from benchmarks.suite.results import Results, load
from benchmarks.suite.tasks import TASKS

DOCS = ROOT / "docs"
HEAVY = ("score", "agreed", "read", "samples")  # item by item; they stay in the cells
PLACE = re.compile(r"(<!-- table: ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(grid: Grid, preset: str, out: Path, *, docs: bool) -> None:
    """Works on a part of the grid too, and says what is missing. `docs`: fills docs/results.md and its plots."""
    found = load(grid, out)
    asked = questions(found)
    for question in asked:
        question.draw(out / f"{question.name}.png")
    (out / "results.json").write_text(json.dumps(summary(found, preset), indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(page(found, asked), encoding="utf-8")
    if docs:
        path = DOCS / "results.md"
        path.write_text(fill(path.read_text(encoding="utf-8"), texts(found, asked)), encoding="utf-8")
        for question in asked:
            shutil.copy(out / f"{question.name}.png", DOCS / "images" / f"results-{question.name}.png")


def texts(found: Results, asked: Sequence[Question]) -> dict[str, str]:
    """What is generated for a page, by name: the state of the grid, tables ("" where there is a plot alone), missing
    cells."""
    out = {"state": _state(found)}
    for task in found.grid.tasks:
        out[task] = tables.main_table(found, task)
        out[f"{task} differences"] = tables.difference_table(found, task)
    done = {run["task"] for run in found.cells.values()}
    out |= {task: tables.main_table(found, task) for task in TASKS if task in done.difference(found.grid.tasks)}
    return out | {question.name: question.table for question in asked} | {"Not run": _what_lacks(found)}


def page(found: Results, asked: Sequence[Question]) -> str:
    """results.md of the folder: every text under its name, with its plot."""
    parts = ["# Results\n"]
    drawn = {question.name: question for question in asked}
    for name, text in texts(found, asked).items():
        image = f"![{name}]({name}.png)\n" if name in drawn else ""
        shown = (image, text) if name not in drawn or answered(drawn[name]) else ("Not run yet.\n",)
        parts.append(f"## {name}\n\n" + "\n".join(filter(None, shown)))
    return "\n".join(parts).rstrip() + "\n"


def fill(page: str, made: Mapping[str, str]) -> str:
    """The page with each `<!-- table: NAME -->` ... `<!-- end -->` filled anew; all else is written by hand. Raises
    KeyError for a name that is not made."""
    return PLACE.sub(lambda place: f"{place[1]}\n{made[place[2]].rstrip()}\n\n{place[3]}", page)


def answered(question: Question) -> bool:
    """Whether a row of the question's table has its last figure."""
    return not question.table or bool(re.search(r"\d[^|]*\|$", question.table, re.MULTILINE))


def summary(found: Results, preset: str) -> dict[str, Any]:
    """results.json: estimates over seeds, and every cell without its items."""
    groups: dict[str, Any] = {}
    for cell in found.grid.cells:
        name = cell.id if cell.method == BASE else cell.id.removesuffix(f"-s{cell.seed}")
        if name in groups or not found.runs(cell):
            continue
        splits = found.splits(cell.task)
        groups[name] = {"accuracy": {split: _plain(found.accuracy(cell, split)) for split in splits}}
        if cell.method not in ("dyme", BASE):
            ours = cell.of("dyme")
            groups[name]["dyme_minus"] = {split: _plain(found.versus(ours, cell, split)) for split in splits}
    return {
        "preset": preset,
        "missing": [cell.id for cell in found.missing],
        "failed": {name: entry["tail"][-3:] for name, entry in found.failed.items()},
        "groups": groups,
        "cells": {name: _light(run) for name, run in found.cells.items()},
    }


def _state(found: Results) -> str:
    cells = len(found.grid.cells)
    if not found.cells:
        return f"0 of {cells} cells are done.\n"
    devices = Counter(run["versions"]["device"] for run in found.cells.values())
    commits = sorted({run["commit"] for run in found.cells.values()})
    first = next(iter(found.cells.values()))["versions"]
    minutes = sum(run["cpu_s"] for run in found.cells.values()) / 60
    return (
        f"{len(found.cells)} of {cells} cells are done, {minutes:.0f} CPU minutes on {', '.join(devices)} (one process "
        f"a cell), torch {first['torch']}, deepspeed {first['deepspeed']}, transformers {first['transformers']}, "
        f"commit {', '.join(commits)}.\n"
    )


def _what_lacks(found: Results) -> str:
    """Missing cells by method and task."""
    if not found.missing:
        return "Nothing: the grid is whole.\n"
    counts = Counter((cell.task, LABELS[cell.method], _words(cell)) for cell in found.missing)
    rows = [[task, method, words, str(count)] for (task, method, words), count in counts.items()]
    failed = [f"- {name}: {''.join(entry['tail'][-1:])}\n" for name, entry in found.failed.items()]
    told = "".join(["\nFailed:\n\n", *failed]) if failed else ""
    return f"{tables.table(['task', 'method', 'what', 'cells'], rows)}{told}"


def _words(cell: Cell) -> str:
    changes = ", ".join(name for name, _ in cell.changes)
    return changes or ("main table" if cell.method in MAIN else "base" if cell.method == BASE else "other methods")


def _plain(value: Any) -> dict[str, Any] | None:
    return None if value is None else {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(value).items()}


def _light(run: Any) -> Any:
    return {k: _light(v) for k, v in run.items() if k not in HEAVY} if isinstance(run, dict) else run
