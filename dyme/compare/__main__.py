"""`python -m dyme.compare RUN_A RUN_B [--out FILE] [--limit N]`, or one RUN to compare its columns."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dyme.compare.items import CompareError, read_evaluation
from dyme.compare.page import render_page
from dyme.compare.paired import compare_columns, compare_runs
from dyme.compare.pictures import Pictures
from dyme.compare.text import render_text
from dyme.evaluation.folder import write_whole


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison and write the page; 2 when the evaluations cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m dyme.compare",
        description="Paired comparison of two evaluations of the same data, as text and as one self-contained page.",
    )
    run = "run folder or its evaluation folder: A, then B; a single one has its direct and think columns compared"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=run)
    parser.add_argument("--out", type=Path, help="page to write (default: compare.html in the evaluation folder of B)")
    limit = "flipped items printed in each direction (default 20)"
    parser.add_argument("--limit", type=_count, default=20, help=limit)
    try:
        return _compare(parser.parse_args(arguments))
    except (CompareError, OSError) as error:  # OSError: a folder without permission to read or write
        print(f"compare: {error}", file=sys.stderr)
        return 2


def _compare(options: argparse.Namespace) -> int:
    if len(options.runs) > 2:
        raise CompareError(f"{len(options.runs)} runs given; compare two at a time")
    runs = [read_evaluation(path) for path in options.runs]
    comparison = compare_runs(*runs) if len(runs) == 2 else compare_columns(runs[0])
    out = options.out or runs[-1].folder / "compare.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, render_page(comparison, Pictures(runs[-1].folder)))
    print(f"{render_text(comparison, options.limit)}\n\n{out}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
