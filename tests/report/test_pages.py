"""Text of models, data and folder names on every page: escaped, and never a tag."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dyme.compare.items import read_evaluation
from dyme.compare.page import render_page as compare_page
from dyme.compare.paired import compare_runs
from dyme.compare.pictures import Pictures
from dyme.report import load_runs
from dyme.report.page import render_page as report_page

EVIL = "<script>alert('1')<b>"
ESCAPED = "&lt;script&gt;alert(&#39;1&#39;)&lt;b&gt;"


def write(file: Path, row: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row) + "\n")
    return file


def report(folder: Path) -> str:
    run = write(folder / f"run {EVIL}" / "metrics.jsonl", {"step": 1}).parent
    write(run / "config.yaml", {"method": f"method {EVIL}"})
    row = {key: f"{key} {EVIL}" for key in ("id", "kind", "question", "gold", "completion", "answer", "image")}
    write(run / "samples.jsonl", {"step": 1, **row})
    return report_page(load_runs([run]), write(folder / "figure.png", {}))


def compare(folder: Path) -> str:
    row = {key: f"{key} {EVIL}" for key in ("id", "kind", "question", "gold", "image")}
    texts = {key: f"{key} {EVIL}" for key in ("completion", "thinking", "answer")}
    sides = []
    for right in (True, False):
        reply = {"correct": right, "score": float(right), "format": right, **texts}
        sides.append(write(folder / f"run {EVIL}{right}" / "evaluation" / "items.jsonl", {**row, "think": [reply]}))
    a, b = (read_evaluation(side.parent) for side in sides)
    return compare_page(compare_runs(a, b), Pictures(b.folder))


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        (report, ("run", "method", "kind", "question", "gold", "completion", "answer")),
        (compare, ("run", "id", "kind", "question", "gold", "image", "completion", "thinking", "answer")),
    ],
)
def test_hostile_text_is_escaped(page: Callable[[Path], str], shown: tuple[str, ...], tmp_path: Path) -> None:
    text = page(tmp_path)
    assert EVIL not in text and "<script>alert" not in text
    assert not [key for key in shown if f"{key} {ESCAPED}" not in text]
