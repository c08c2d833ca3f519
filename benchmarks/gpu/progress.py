"""What the parts of the suite share: steps that are done once, each written down at once."""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.results import header, load, reason, save

MORE, LOST = 4, 3
"""Exit status: not finished in time; the GPU's context broke. Either way the same command goes on."""


ATTEMPTS = 2
Steps = dict[str, Callable[[], dict[str, Any]]]
"""What a part does, by name; a step returns what is written down of it."""


class Skip(Exception):
    """A step that cannot run here; its text says why."""


def require(packages: Sequence[str]) -> None:
    """Skips a step that needs packages that are not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise Skip(f"not installed: {', '.join(missing)}")


@dataclass(frozen=True)
class Options:
    """out: folder of the results; minutes: begin nothing after that; rehearse: tiny shapes, on a CPU."""

    out: Path
    minutes: float
    rehearse: bool

    @property
    def device(self) -> torch.device:
        if self.rehearse:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise SystemExit("error: no GPU: try --rehearse, which uses tiny shapes on the CPU")
        return torch.device("cuda")


def parse(description: str | None, arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=5.0, help="begin nothing after this time")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on a CPU")
    return Options(**vars(parser.parse_args(arguments)))


def run_steps(path: Path, options: Options, steps: Steps) -> int:
    """Do the steps that `path` has no result of; a result is {"status": passed | failed | skipped, "seconds", ...}.

    A step in which the process died twice is failed. Returns an exit status: 0 when all steps have a result.
    """
    data = load(path) or {**header(options.device), "steps": {}, "begun": {}}
    deadline = time.monotonic() + 60 * options.minutes
    for name, step in steps.items():
        if name in data["steps"]:
            continue
        if data["begun"].get(name, 0) >= ATTEMPTS:
            data["steps"][name] = {"status": "failed", "detail": "the process died in this step, or its time ran out"}
            save(path, data)
            continue
        if time.monotonic() > deadline:
            return MORE
        data["begun"][name] = data["begun"].get(name, 0) + 1
        save(path, data)
        begin = time.monotonic()
        lost = False
        try:
            result = {"status": "passed", **step()}
        except Skip as skipped:
            result = {"status": "skipped", "detail": str(skipped)}
        except Exception as error:  # a failed check is a line of the table, not the end of the others
            lost = "CUDA error" in str(error)
            result = {"status": "failed", "detail": reason(error)}
        data["steps"][name] = {**result, "seconds": round(time.monotonic() - begin, 2)}
        save(path, data)
        print(f"{name}: {result['status']} {result.get('detail', '')}", flush=True)
        if lost:
            return LOST
    data["done"] = True
    save(path, data)
    return 0
