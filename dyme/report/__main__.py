"""`python -m dyme.report RUN [RUN ...] [--out DIR]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dyme.report import ReportError, write_report


def main(arguments: list[str] | None = None) -> int:
    """Write the report and print the paths of its files; returns 2 when a folder is not a run."""
    parser = argparse.ArgumentParser(
        prog="python -m dyme.report",
        description="Write report.png and a self-contained report.html of one run, or of several runs overlaid.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (run.dir of its config)")
    parser.add_argument("--out", type=Path, help="where to write the report (default: the first run folder)")
    options = parser.parse_args(arguments)
    try:
        written = write_report(options.runs, options.out or options.runs[0])
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
