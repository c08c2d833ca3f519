"""One provider's steps in a process of their own, so that nobody's memory is counted as another's:
python -m benchmarks.step.one PROVIDER CASE FOLDER DEVICE

CASE is the JSON of a case.Case. The last line it prints is the JSON of its steps.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.results import finite, json_lines
from benchmarks.step.case import Case
from dyme.fault_tolerance.launch import run_and_exit

PROVIDERS = ("ours", "trl", "published")


def measure(case: Case, folder: Path, device: torch.device, provider: str) -> list[dict[str, Any]]:
    """Every timed step of a provider: share, cost, phases, counts."""
    if provider == "trl":
        from benchmarks.step import peers

        return peers.measure(case, folder, device)
    from benchmarks.step import ours

    return ours.measure(case, folder, device, provider)


def isolated(case: Case, folder: Path, device: torch.device, provider: str) -> list[dict[str, Any]]:
    """`measure` in another process. Raises RuntimeError with the last line it said where it failed."""
    lines, why = json_lines("benchmarks.step.one", provider, json.dumps(asdict(case)), str(folder), str(device))
    if why or not lines:
        raise RuntimeError(why or "no steps")
    return lines[-1]


def main() -> int:
    provider, case, folder, device = sys.argv[1:]
    fields = json.loads(case)
    held = Case(**{**fields, "pictures": tuple(map(tuple, fields["pictures"])), "shares": tuple(fields["shares"])})
    print(json.dumps(finite(measure(held, Path(folder), torch.device(device), provider))), flush=True)
    return 0


if __name__ == "__main__":
    run_and_exit(main)
