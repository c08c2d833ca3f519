"""Record: the finished cells of a preset in one committed file, a line each; a suite goes on where that ends.

The file is compressed: every cell holds the score of every item, so that differences can be taken again.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from benchmarks.suite.cells import DONE, digest
from benchmarks.suite.grid import Grid
from benchmarks.suite.results import load

RESULTS = Path(__file__).resolve().parents[1] / "results"


def path_of(preset: str, folder: Path = RESULTS) -> Path:
    return folder / f"suite-{preset}.jsonl.gz"


def write(grid: Grid, out: Path, path: Path) -> None:
    """Every cell that is done, whole, in the order of the grid."""
    cells = load(grid, out).cells
    partial = path.with_suffix(".part")
    lines = "".join(json.dumps(cell, separators=(",", ":")) + "\n" for cell in cells.values())
    partial.write_bytes(gzip.compress(lines.encode(), mtime=0))  # no time: the same cells are the same bytes
    partial.replace(path)


def unpack(grid: Grid, out: Path, path: Path) -> int:
    """Writes the recorded cells that the folder lacks, if they were made with these settings; how many."""
    if not path.exists():
        return 0
    known = {cell.id: cell for cell in grid.cells}
    count = 0
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        found = json.loads(line)
        target = out / "cells" / found["id"] / DONE
        cell = known.get(found["id"])
        if cell is None or target.exists() or found["digest"] != digest(cell, grid.regime, out):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(line + "\n", encoding="utf-8")
        count += 1
    return count
