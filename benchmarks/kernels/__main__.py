"""Speed, memory and accuracy of the losses beside those of other libraries, on one machine in one run.

    python -m benchmarks.kernels [--preset tiny|full] [--out DIR] [--minutes M] [--table]

Writes DIR/kernels.json after every case and DIR/kernels.png last. A second call with the same DIR goes on where the
first one ended; it exits with 4 where something is left. Without --preset: full on a GPU, tiny elsewhere.
docs/performance.md says how the figures are made.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.kernels import memory
from benchmarks.kernels.churn import churn
from benchmarks.kernels.presets import PRESETS
from benchmarks.kernels.provider import Provider
from benchmarks.kernels.results import hardware, header, load, save
from benchmarks.kernels.roofline import Ceilings, measure_ceilings
from benchmarks.kernels.sweep import PROVIDERS, DeviceLost, of_task, sweep
from benchmarks.kernels.table import plot, summary, table


def benchmark(name: str, out: Path, minutes: float, providers: Sequence[Provider] = PROVIDERS) -> bool:
    """Run or go on with preset `name` into out/kernels.json; True when it is complete.

    Raises DeviceLost where a provider broke the GPU's context: a new process goes on without it.
    """
    deadline = time.monotonic() + 60 * minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset, path = PRESETS[name](), out / "kernels.json"
    data = load(path)
    if data and (data["preset"], data["hardware"]) != (name, hardware(device)):
        raise SystemExit(f"{path} holds preset {data['preset']} of {data['hardware']['device']}: choose another --out")
    if not data:
        ceilings = measure_ceilings(device, preset.cases[0].dtype, preset.small)
        data = {"schema": 1, "preset": name, **header(device), "ceilings": asdict(ceilings)}
        data |= {"rows": [], "memory": [], "churn": []}
        save(path, data)
    ceilings = Ceilings(**data["ceilings"])
    if not sweep(path, preset.cases, device, ceilings, preset.effort, deadline, providers):
        return False
    data = load(path)
    for provider in providers:
        if any(row["provider"] == provider.name for row in data["memory"]):
            continue
        if time.monotonic() > deadline:
            return False
        data["memory"] += memory.measure(preset.memory, provider)
        save(path, data)
    for case in preset.churn:
        for provider in of_task(case.task, providers):
            if any((row["name"], row["provider"]) == (case.name, provider.name) for row in data["churn"]):
                continue
            if time.monotonic() > deadline:
                return False
            data["churn"].append(churn(case, preset.lengths, provider, device))
            save(path, data)
    data["figure"] = plot(data, out / "kernels.png") or "kernels.png"
    data["done"] = True
    save(path, data)
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing after this time")
    parser.add_argument("--table", action="store_true", help="print every row, not the summary only")
    args = parser.parse_args(arguments)
    preset = args.preset or ("full" if torch.cuda.is_available() else "tiny")
    try:
        complete = benchmark(preset, args.out, args.minutes)
    except DeviceLost as error:
        print(f"error: {error}; run the same command again: it goes on without this provider there", file=sys.stderr)
        return 3
    data = load(args.out / "kernels.json")
    if args.table:
        print(table(data))
    print(summary(data))
    if preset == "tiny":
        print("The tiny preset shows that everything runs. Its times say nothing about speed.")
    print(f"{'complete' if complete else 'to be continued with the same command'}: {args.out / 'kernels.json'}")
    return 0 if complete else 4


if __name__ == "__main__":
    sys.exit(main())
