"""Collects finished runs into one JSON of results: `python -m benchmarks.record RUN [RUN ...] --out FILE`.

Each entry holds the run's summary.json (command, figures, versions, hardware), its configuration, and the summary of
its evaluation where it has one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml


def entry(run: Path) -> dict[str, Any]:
    """What is recorded of one finished run. Raises `FileNotFoundError` when it is not finished."""
    if not (run / "DONE").exists():
        raise FileNotFoundError(f"{run} has no DONE marker: let the run finish first")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    found = {"summary": summary, "config": config}
    evaluation = run / "evaluation" / "summary.json"
    if evaluation.exists():
        found["evaluation"] = json.loads(evaluation.read_text(encoding="utf-8"))
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(arguments)
    try:
        results = {run.name: entry(run) for run in args.runs}
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
