"""One whole training step of ours, of TRL's GRPOTrainer and with the published behaviour, on the same data.

    python -m benchmarks.step [--preset rehearsal|tiny|full] [--out DIR] [--minutes M]

ours: as configured by default. trl: GRPOTrainer on the same model, records, K, lengths and reward, in one process.
published: ours with rollout.engine hf, a prompt of its own for every row, and dead rows kept. A script decides which
groups are mixed (they explore) and which all wrong (they memorize).
Writes DIR/step.json after every part, and step-scaling.png; the same command goes on where the last one ended and exits
with 0 when all is done. full wants a GPU; tiny runs on the CPU, rehearsal in seconds. docs/performance.md says more.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.progress import Options, Steps, require, run_steps
from benchmarks.kernels.results import load, save
from benchmarks.kernels.table import number
from benchmarks.rollout.__main__ import arguments_of, report
from benchmarks.rollout.meter import Cost, medians
from benchmarks.step import scaling
from benchmarks.step.case import REGIMES, Case
from benchmarks.step.one import PROVIDERS, isolated

DYME = ("transformers", "deepspeed", "pydantic", "datasets")
NEEDED = {"ours": DYME, "published": DYME, "trl": ("trl", *DYME)}
Measure = Callable[[Case, Path, torch.device, str], list[dict[str, Any]]]


@dataclass(frozen=True)
class Preset:
    """cases: steps of all providers; scaling: the case whose live fraction, K and prompt length are varied, and the
    values of the last two."""

    cases: tuple[Case, ...]
    scaling: Case | None = None
    sizes: dict[str, Sequence[int]] = field(default_factory=dict)


PROVIDER_MINUTES = 4
"""What the steps of one provider may take at full size: begun later, they would be lost with the call."""
SMALL = ((48, 32), (32, 48))
LARGE = ((600, 400), (1200, 800))
PRESETS = {
    "rehearsal": Preset(
        (Case("llava-onevision", "fp32", SMALL, 0, 10, 2, 2, micro_rows=20, repeats=1),),
        Case("llava-onevision", "fp32", SMALL, 0, 2, 2, 2, repeats=1),
        {"K": (2, 4), "P": ()},
    ),
    "tiny": Preset(
        tuple(Case(m, "fp32", SMALL, 200, new_tokens=32, repeats=4) for m in ("llava-onevision", "smolvlm-v1")),
        Case("llava-onevision", "fp32", SMALL, 200, 4, 8, 32, repeats=2),
        {"K": (2, 4, 8, 16), "P": (100, 200, 300, 400)},
    ),
    "full": Preset(
        tuple(
            Case(m, "bf16", LARGE, 0, budget=16384, repeats=2, checkpointing=True)
            for m in ("llava-onevision-0.5b", "smolvlm-500m")
        ),
    ),
}


def benchmark(preset: Preset, options: Options, measure: Measure = isolated) -> int:
    """Run or go on with a preset into out/step.json; an exit status, see `run_steps`."""
    path = options.out / "step.json"
    steps: Steps = {
        f"{case.model} | {provider}": partial(_measure, case, options, provider, measure)
        for case in preset.cases
        for provider in PROVIDERS
    }
    if preset.scaling is not None:
        steps |= {
            name: partial(_pair, axis, case, options)
            for name, (axis, case) in scaling.points(preset.scaling, preset.sizes).items()
        }
    status = run_steps(path, options, steps)
    data = load(path)
    if status == 0:
        data["preset"] = asdict(preset)
        if preset.scaling is not None:
            data["fits"] = scaling.fits(data["steps"])
            data["figure"] = scaling.plot(data, options.out / "step-scaling.png") or "step-scaling.png"
        save(path, data)
        for place in (options.out / "checkpoints", *options.out.glob("records-*")):
            shutil.rmtree(place, ignore_errors=True)
    return status


def _pair(axis: str, case: Case, options: Options) -> dict[str, Any]:
    require(NEEDED["ours"])
    return scaling.pair(axis, case, options.out, options.device)


def _measure(case: Case, options: Options, provider: str, measure: Measure) -> dict[str, Any]:
    require(NEEDED[provider])
    rows = measure(case, options.out, options.device, provider)
    regimes = {}
    for name, share in REGIMES.items():
        mine = [row for row in rows if row["share"] == share]
        phases = {
            phase: statistics.median(row["phases"].get(phase, 0.0) for row in mine)
            for phase in dict.fromkeys(phase for row in mine for phase in row["phases"])
        }
        counts = [row["counts"] for row in mine]
        if any(found != counts[0] for found in counts):
            raise AssertionError(f"the steps of regime {name} ran different rows")
        regimes[name] = {**medians([Cost(**row["cost"]) for row in mine]), "phases": phases, **counts[0]}
    return {"regimes": regimes, "detail": ", ".join(f"{n} {r['wall_s']:.3g} s" for n, r in regimes.items())}


def summary(data: dict[str, Any]) -> str:
    """A line for every provider and regime, and the slopes. Ratios are of ours over it, in seconds of the wall and of
    the processor."""
    lines = [
        "model | provider | regime | step s | processor s | rollout s | update s | extra MB | rows | tokens | live | "
        "ours over it, wall | processor"
    ]
    steps = data["steps"]
    for key, found in steps.items():
        if " | " not in key:
            continue
        if found["status"] != "passed":
            lines.append(f"{key} | {found['status']}: {found.get('detail', '')}")
            continue
        mine = steps.get(f"{key.split(' | ')[0]} | ours", {}).get("regimes", {})
        for name, r in found["regimes"].items():
            cells = [number(r[k]) for k in ("wall_s", "cpu_s")]
            cells += [number(r["phases"].get(phase)) for phase in ("rollout", "update")]
            cells += [number(r["extra_mb"]), str(r["rows"]), str(r["tokens"]), number(r["live_fraction"])]
            cells += [number(mine[name][k] / r[k]) if name in mine else "-" for k in ("wall_s", "cpu_s")]
            lines.append(" | ".join([key, name, *cells]))
    for axis, held in data.get("fits", {}).items():
        told = ", ".join(f"{what} {number(f['intercept'])} + {number(f['slope'])} x" for what, f in held.items())
        lines.append(f"processor seconds against {axis}: {told}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    preset, options = arguments_of(__doc__, arguments)
    if preset == "full":
        options = replace(options, minutes=max(0.05, options.minutes - PROVIDER_MINUTES))
    status, path = benchmark(PRESETS[preset], options), options.out / "step.json"
    note = "Tiny models on a CPU: what counts here is how the cost grows, not its size."
    return report(summary(load(path)), "" if preset == "full" else note, path, status)


if __name__ == "__main__":
    sys.exit(main())
