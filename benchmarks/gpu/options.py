"""Which launch options suit the row kernel: python -m benchmarks.gpu.options --out DIR [--minutes M] [--rehearse]

Times `policy_loss`, forward and backward, under every combination of block, warps and programs per multiprocessor that
fits, and prints the best. Writes DIR/options.json after every block size. The defaults are in
kernels/dyme_kernels/triton_rows.py (`compile_options`, `programs`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.progress import Options, Steps, parse, run_steps
from benchmarks.kernels.case import Case, Inputs, make_inputs
from benchmarks.kernels.ours import make_ours
from benchmarks.kernels.presets import QWEN
from benchmarks.kernels.results import load, reason
from benchmarks.kernels.timing import Clock, Effort, interleave
from dyme_kernels import triton_rows

THREADS = 2048  # of a multiprocessor
DEFAULT = "default"


@dataclass(frozen=True)
class Launch:
    """block: logits a program reads at once; warps of a program; per_sm: programs per multiprocessor."""

    block: int
    warps: int
    per_sm: int

    @property
    def registers(self) -> int:
        """The most a thread may have with that many programs on a multiprocessor."""
        return min(255, triton_rows.REGISTERS // (32 * self.warps * self.per_sm))

    @property
    def fits(self) -> bool:
        per_thread = self.block // (32 * self.warps)
        return 8 <= per_thread <= 64 and 32 * self.warps * self.per_sm <= THREADS and self.registers >= per_thread


def candidates(block: int) -> list[Launch]:
    found = [Launch(block, warps, per_sm) for warps in (4, 8, 16, 32) for per_sm in (1, 2, 4)]
    return [launch for launch in found if launch.fits]


def forced(launch: Launch | None) -> AbstractContextManager[Any]:
    """Row kernels launch as told, within the block; None: as they do by default."""
    if launch is None:
        return nullcontext()

    def options(vocabulary: int) -> dict[str, int]:
        return {"BLOCK": launch.block, "num_warps": launch.warps, "maxnreg": launch.registers}

    def programs(vocabulary: int, itemsize: int, device: torch.device) -> int:
        if device.type != "cuda":
            return 1 << 30
        return launch.per_sm * torch.cuda.get_device_properties(device).multi_processor_count

    return mock.patch.multiple(triton_rows, compile_options=options, programs=programs)


def measure(inputs: Inputs, launches: dict[str, Launch | None], effort: Effort) -> list[dict[str, Any]]:
    """Rows of the launches, the fastest first; one that does not compile has a reason."""
    calls = make_ours(inputs, "triton")
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[Any, tuple[Callable[[], Any], Callable[[], None]]] = {}

    def call(launch: Launch | None) -> object:
        with forced(launch):
            return calls.forward_backward()  # type: ignore[misc]

    def failed(name: str, error: Exception) -> None:
        rows[name]["reason"] = reason(error)

    for name, launch in launches.items():
        rows[name] = {"launch": name, **({} if launch is None else asdict(launch)), "reason": None}
        calls.reset()
        try:
            call(launch)
        except Exception as error:  # too many registers or threads for this chip
            if "CUDA error" in str(error):
                raise
            failed(name, error)
            continue
        ready[name] = (partial(call, launch), calls.reset)
    times = interleave(Clock(inputs.device), ready, effort, failed)
    for (name, cache), found in times.items():
        if cache == "cold":
            rows[name] |= asdict(found)
    if not times:
        raise RuntimeError(f"no launch worked: {rows[DEFAULT]['reason']}")
    return sorted(rows.values(), key=lambda row: row.get("median_ms", float("inf")))


def steps(options: Options) -> Steps:
    small = options.rehearse
    case = Case("logits_policy", 12, 333, dtype="float32") if small else Case("logits_policy", 16384, QWEN[0])
    blocks = (1024,) if small else (16384, 8192, 32768, 4096, 2048)
    effort = Effort(warmup=1, least=2, most=2 if small else 9, seconds=0.1)
    path = options.out / "options.json"

    def one(block: int) -> dict[str, Any]:
        launches = {f"{c.block}/{c.warps}/{c.per_sm}": c for c in candidates(block)}
        rows = measure(make_inputs(case, options.device), {DEFAULT: None, **launches}, effort)
        return {"rows": rows, "detail": f"best {_said(rows[0])}"}

    def final() -> dict[str, Any]:
        found = [row for step in load(path)["steps"].values() for row in step.get("rows", [])]
        named = {r["launch"]: r for r in found if r.get("median_ms") and r["launch"] != DEFAULT}
        best = sorted(named.values(), key=lambda row: row["median_ms"])[:5]
        launches = {r["launch"]: Launch(r["block"], r["warps"], r["per_sm"]) for r in best}
        more = Effort(warmup=1, least=2, most=2 if small else 40, seconds=1.0)
        rows = measure(make_inputs(case, options.device), {DEFAULT: None, **launches}, more)
        default = next(row for row in rows if row["launch"] == DEFAULT)
        detail = f"best BLOCK/num_warps/programs per SM {_said(rows[0])}; default {_said(default)}"
        return {"rows": rows, "case": case.name, "detail": detail}

    return {f"BLOCK {block}": partial(one, block) for block in blocks} | {"final": final}


def _said(row: dict[str, Any]) -> str:
    return f"{row['launch']} {row['median_ms']:.4g} ms" if row.get("median_ms") else f"{row['launch']}: {row['reason']}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(__doc__, arguments)
    return run_steps(options.out / "options.json", options, steps(options))


if __name__ == "__main__":
    sys.exit(main())
