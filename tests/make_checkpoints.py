"""`python -m tests.make_checkpoints DIR [--only NAME ...] [--shapes] [--weights]`: writes the checkpoints of
tests/helpers/checkpoints, for trying a command without a published model.

Without --shapes: tiny models with random weights. With it: folders with the dimensions of published models, whose
weights --weights makes up (bfloat16, as large as the real ones).
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from benchmarks.checkpoints.common import write_checkpoint
from tests.helpers.checkpoints import makers


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 for a name that does not exist."""
    options = _parser().parse_args(arguments)
    known = makers("SHAPES" if options.shapes else "CHECKPOINTS")
    names = options.only or sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            print(f"--only: no checkpoint '{name}'{hint}; there are {', '.join(sorted(known))}", file=sys.stderr)
            return 1
    for name in names:
        family, make = known[name]
        folder = write_checkpoint(options.dir / name, make(), random_weights=options.weights)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}  {family}  {size / 1e6:.2f} MB", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.make_checkpoints", description="Writes random checkpoints.")
    parser.add_argument("dir", type=Path, help="folder to write to; each checkpoint gets a folder in it")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--shapes", action="store_true", help="the dimensions of published models, without weights")
    parser.add_argument("--weights", action="store_true", help="with --shapes: random weights in bfloat16 as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
