"""Step time against the latency and loss of the network, for ZeRO-1, -2 and -3 on 2 and 4 ranks.

    python -m tests.stress.network [--ranks 2 4] [--stages 1 2 3] [--steps 9] [--out DIR]

Every rank is a process in a network namespace of its own on this machine, joined by links with a one-way delay and a
share of lost packets (tests/stress/network/link.py; needs Linux and root, no GPU). Writes DIR/network.json after every
part and network.png last; a part that is there is not measured again. docs/scaling.md says what came out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import figure
from benchmarks.kernels.results import command, hardware, load, save, versions
from benchmarks.scaling.model import one_way_trips
from tests.stress.network.bed import run_job
from tests.stress.network.link import MTU, unavailable
from tests.stress.network.rank import Job
from tests.stress.network.workload import config

DELAYS_S = (0.0, 0.001, 0.005, 0.02)
LOSSES = (0.0, 0.01)
COLOURS = {1: "#009E73", 2: "#D55E00", 3: "#0072B2"}


def measure(stage: int, ranks: int, steps: int) -> dict[str, Any]:
    """One part of the sweep: medians under all conditions, the fitted line, the load of the machine."""
    conditions = tuple((delay, loss) for loss in LOSSES for delay in DELAYS_S)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        found = run_job(Job(config(Path(folder), stage), conditions, steps), ranks)
    return part(found, stage, [round(load, 1) for load in (before[0], *os.getloadavg()[:2])])


def part(found: dict[str, Any], stage: int, loads: Sequence[float]) -> dict[str, Any]:
    """What is kept of `rank.measure`. slope: ms of a step per ms of one-way delay, the trips that wait for one another;
    rings: the same from the count of collectives if none overlapped and all were rings and trees."""
    ranks, points = found["world_size"], []
    for held in found["conditions"]:
        times = sorted(held["steps_s"])
        quarter = max(1, len(times) // 4)
        points.append(
            {
                "delay_ms": 1e3 * held["delay_s"],
                "loss": held["loss"],
                "step_ms": 1e3 * statistics.median(times),
                "quartiles_ms": [1e3 * times[quarter - 1], 1e3 * times[-quarter]],
                "phases_ms": _phases(held["phases_s"]),
                "probes_ms": {k: 1e3 * statistics.median(v) for k, v in held["probes_s"].items()},
            }
        )
    counts = [each for held in found["conditions"] for each in held["collectives"]]
    if any(each != counts[0] for each in counts):
        raise AssertionError("steps made different collectives: their times cannot be compared")
    dry = [p for p in points if not p["loss"]]
    names = list(dry[0]["probes_ms"])
    return {
        "stage": stage,
        "ranks": ranks,
        "parameters": found["parameters"],
        "steps": len(found["conditions"][0]["steps_s"]),
        "load_before_during_after": list(loads),
        "collectives": counts[0],
        "elements": statistics.median(e for held in found["conditions"] for e in held["elements"]),
        "rings": sum(n * one_way_trips(name, ranks) for name, n in counts[0].items()),
        **fit([p["delay_ms"] for p in dry], [p["step_ms"] for p in dry]),
        "probe_slopes": {
            n: fit([p["delay_ms"] for p in dry], [p["probes_ms"][n] for p in dry])["slope"] for n in names
        },
        "packets": found["packets"],
        "dropped": found["dropped"],
        "points": points,
    }


def _phases(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name.removeprefix("time/"): 1e3 * statistics.median(s[name] for s in steps) for name in steps[0]}


def fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least-squares line through the points."""
    slope, intercept = np.polyfit(x, y, 1)
    return {"slope": float(slope), "intercept": float(intercept)}


def plot(data: dict[str, Any], path: Path) -> None:
    """A panel for every number of ranks: points and line without loss, crosses with it."""

    def panel(ranks: int, ax: Any) -> None:
        for held in sorted((p for p in data["parts"].values() if p["ranks"] == ranks), key=lambda p: p["stage"]):
            colour = COLOURS[held["stage"]]
            dry, wet = ([p for p in held["points"] if bool(p["loss"]) == lossy] for lossy in (False, True))
            xs = np.array([p["delay_ms"] for p in dry])
            label = f"ZeRO-{held['stage']}: slope {held['slope']:.0f}, {sum(held['collectives'].values())} collectives"
            ax.plot(xs, held["intercept"] + held["slope"] * xs, color=colour, linewidth=1, label=label)
            ax.plot(xs, [p["step_ms"] for p in dry], "o", color=colour, markersize=4)
            ax.plot([p["delay_ms"] for p in wet], [p["step_ms"] for p in wet], "x", color=colour, markersize=5)
        ax.set(title=f"{ranks} ranks (x: {max(LOSSES):.0%} of the packets lost)")
        ax.set(xlabel="one-way latency, ms", ylabel="step, ms (median)")
        ax.set_ylim(bottom=0)
        ax.legend()

    sizes = sorted({held["ranks"] for held in data["parts"].values()})
    loads = [value for held in data["parts"].values() for value in held["load_before_during_after"]]
    title = (
        f"{data['hardware']['cores']} CPU cores for all ranks, load {min(loads):.0f} to {max(loads):.0f}, gloo, tiny "
        f"model, 1 micro-batch, torch {data['versions']['torch']}, deepspeed {data['versions']['deepspeed']}"
    )
    figure.save(path, [partial(panel, ranks) for ranks in sizes], (5 * len(sizes), 4), title=title)


def summary(data: dict[str, Any]) -> str:
    lines = [
        "ranks | ZeRO | collectives | slope | rings say | step ms at " + ", ".join(f"{1e3 * d:g}" for d in DELAYS_S)
    ]
    lines[0] += " ms, then with loss"
    for held in sorted(data["parts"].values(), key=lambda p: (p["ranks"], p["stage"])):
        times = ", ".join(f"{p['step_ms']:.0f}" for p in held["points"])
        total = sum(held["collectives"].values())
        lines.append(f"{held['ranks']} | {held['stage']} | {total} | {held['slope']:.1f} | {held['rings']} | {times}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=9, help="timed under each latency and loss")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(arguments)
    if why := unavailable():
        print(f"error: links cannot be made here: {why}; run it as root on Linux with iproute2", file=sys.stderr)
        return 2
    path = args.out / "network.json"
    told = {"command": command(), "versions": versions(), "hardware": hardware(torch.device("cpu")), "mtu": MTU}
    data = {**told, "parts": load(path).get("parts", {})}
    for ranks in args.ranks:
        for stage in args.stages:
            name = f"zero{stage} x{ranks}"
            if name not in data["parts"]:
                data["parts"][name] = measure(stage, ranks, args.steps)
                save(path, data)
    plot(data, args.out / "network.png")
    print(summary(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
