"""Render: results.md, results.json and the plots of what is done, and docs/results.md with its plots."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.suite import answers, tables
from benchmarks.suite.cells import Cell
from benchmarks.suite.grid import Grid
from benchmarks.suite.methods import BASE, LABELS, MAIN
from benchmarks.suite.questions import Question, draw_main, questions
from benchmarks.suite.results import Found, Results, load
from benchmarks.suite.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("score", "agreed", "read", "samples")  # item by item; they stay in the cells


def render(grid: Grid, preset: str, out: Path, *, docs: bool) -> None:
    """Works on a part of the grid too, and says what is missing. `docs`: writes docs/results.md and its plots."""
    found = load(grid, out)
    asked = questions(found)
    draw_main(found, out / "main.png")
    for question in asked:
        question.draw(out / f"{question.name}.png")
    (out / "results.json").write_text(json.dumps(summary(found, preset), indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(page(found, preset, asked, ""), encoding="utf-8")
    if docs:
        text = page(found, preset, asked, "images/results-")
        (ROOT / "docs" / "results.md").write_text(text, encoding="utf-8")
        for name in ("main", *(question.name for question in asked if answered(question))):
            shutil.copy(out / f"{name}.png", ROOT / "docs" / "images" / f"results-{name}.png")


def page(found: Results, preset: str, asked: Sequence[Question], images: str) -> str:
    """The results page; plots lie at `images` + name."""
    regime, parts = found.grid.regime, ["# Results\n"]
    records = ", ".join(f"{regime.items_of(task)} ({task})" for task in found.grid.tasks)
    parts.append(
        f"Made by `python -m benchmarks.suite --preset {preset} --out DIR`; do not edit. {_state(found)}\n\n"
        f"Every run of stage 2 starts from one base, which answers directly, and takes {regime.steps} steps of "
        f"{regime.prompts} prompts on {records} records, K = {regime.group}, lr {regime.lr:g}, unless the table "
        "says otherwise. Seeds change the records of stage 2, their order and the sampling; the base is the same. "
        "Accuracy counts a right answer in a valid format, greedy. Brackets are 95 % bootstrap intervals over "
        "seeds and items (over items alone with one seed); differences are over the same seeds and items, **bold** "
        "where the interval excludes zero. *best checkpoint* is the one that was best on validation records, which are "
        f"drawn like those of training; it is one of about {regime.evals}. A low trace holds a wrong reading with "
        f"probability {regime.noise:g}.\n"
    )
    parts += filter(None, [f"![main]({images}main.png)\n", answers.headline(found)])
    for task in found.grid.tasks:
        parts.append(f"## {task}\n\n{tables.main_table(found, task)}")
        parts.append(f"### What DyME adds on {task}\n\n{tables.difference_table(found, task)}")
    for task in [name for name in TASKS if name not in found.grid.tasks and _has(found, name)]:
        parts.append(f"## {task}\n\n{tables.main_table(found, task)}")
    for question in asked:
        image = f"![{question.name}]({images}{question.name}.png)\n"
        shown = (_lines(question.answer), image, question.table) if answered(question) else ("Not run yet.\n",)
        parts.append(f"## {question.text}\n\n" + "\n".join(filter(None, shown)))
    parts.append(_what_lacks(found))
    return "\n".join(parts).rstrip() + "\n"


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


def _lines(text: str) -> str:
    return f"{textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)}\n" if text else ""


def _state(found: Results) -> str:
    cells = len(found.grid.cells)
    if not found.cells:
        return f"0 of {cells} cells are done."
    devices = Counter(run["versions"]["device"] for run in found.cells.values())
    commits = sorted({run["commit"] for run in found.cells.values()})
    first = next(iter(found.cells.values()))["versions"]
    minutes = sum(run["cpu_s"] for run in found.cells.values()) / 60
    return (
        f"{len(found.cells)} of {cells} cells are done, {minutes:.0f} CPU minutes on {', '.join(devices)} (one process "
        f"a cell), torch {first['torch']}, deepspeed {first['deepspeed']}, transformers {first['transformers']}, "
        f"commit {', '.join(commits)}."
    )


def _what_lacks(found: Results) -> str:
    """Missing cells by method and task."""
    if not found.missing:
        return "## Not run\n\nNothing: the grid is whole.\n"
    counts = Counter((cell.task, LABELS[cell.method], _words(cell)) for cell in found.missing)
    rows = [[task, method, words, str(count)] for (task, method, words), count in counts.items()]
    failed = "".join(
        f"- {name}: {entry['tail'][-1] if entry['tail'] else ''}\n" for name, entry in found.failed.items()
    )
    told = f"\nFailed:\n\n{failed}" if failed else ""
    return f"## Not run\n\n{tables.table(['task', 'method', 'what', 'cells'], rows)}{told}"


def _words(cell: Cell) -> str:
    changes = ", ".join(name for name, _ in cell.changes)
    return changes or ("main table" if cell.method in MAIN else "base" if cell.method == BASE else "other methods")


def _has(found: Results, task: str) -> bool:
    return any(run["task"] == task for run in found.cells.values())


def _plain(value: Any) -> dict[str, Any] | None:
    return None if value is None else {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(value).items()}


def _light(run: Found) -> Any:
    if isinstance(run, dict):
        return {key: _light(value) for key, value in run.items() if key not in HEAVY}
    return run
