"""DyME against its baselines and against other switching rules, at equal budgets, with seeds and intervals.

    python -m benchmarks.suite --preset cpu|gpu|smoke --out DIR [--jobs N] [--minutes M] [--only REGEX] [--render]

Runs the cells of a grid, one process each, and writes DIR/cells/<id>/cell.json for every one; the same command goes on
where the last one ended or was killed. Then it makes DIR/results.md, results.json and the plots of what is there.
--only: cells whose id matches, and what they need. --minutes: nothing is begun after so many. --render: no runs.
--docs: benchmarks/results/suite-PRESET.jsonl.gz too, whose cells are not run again, and for the cpu preset the plots
and tables of docs/results.md. The sentences there are written by hand: read them again after it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from benchmarks.suite.grid import GRIDS
from benchmarks.suite.results import record_of, unpack_record, write_record
from benchmarks.suite.runner import run_grid


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=GRIDS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, help="processes at a time; default: one for each GPU, or CPU core")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--only", default="")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--docs", action="store_true")
    args = parser.parse_args(arguments)
    grid, out = GRIDS[args.preset](), args.out.resolve()
    marker = out / "preset.txt"
    if marker.exists() and marker.read_text(encoding="utf-8").strip() != args.preset:
        print(f"error: {out} holds the preset {marker.read_text().strip()}: choose another --out", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(args.preset + "\n", encoding="utf-8")
    unpack_record(grid, out, record_of(args.preset))
    failed = False
    if not args.render:
        jobs = args.jobs or torch.cuda.device_count() or os.cpu_count() or 1
        failed = run_grid(grid, args.preset, out, jobs=jobs, minutes=args.minutes, only=args.only)
    from benchmarks.suite.render import render  # matplotlib, only where it is used

    render(grid, args.preset, out, docs=args.docs and args.preset == "cpu")
    if args.docs:
        write_record(grid, out, record_of(args.preset))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
