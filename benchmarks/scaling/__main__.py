"""Predicted step time on 1 to 512 GPUs for ZeRO-2, ZeRO-3 and hpZ, as a plot with its assumptions.

    python -m benchmarks.scaling [--metrics RUN/metrics.jsonl] [--network FILE] [--out DIR]

Without --metrics the phase times are assumptions. --network: a network.json of tests.stress.network; the model is then
held against what was measured there. Writes DIR/scaling.json and scaling.png. docs/scaling.md has the formulas'
meaning.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import figure
from benchmarks.kernels.results import command, load, save
from benchmarks.scaling.model import (
    ASSUMED,
    NETWORKS,
    STRATEGIES,
    Network,
    Step,
    Workload,
    compare,
    predict,
    with_phases,
)

GPUS = tuple(2**n for n in range(10))
COLOURS = {"zero2": "#009E73", "zero3": "#0072B2", "hpz": "#D55E00"}


def table(work: Workload, network: Network) -> dict[str, list[dict[str, Any]]]:
    def point(gpus: int, step: Step) -> dict[str, Any]:
        return {"gpus": gpus, "exposed_s": step.exposed, "hidden_s": step.hidden(work.update_s), **asdict(step)}

    return {name: [point(gpus, predict(name, gpus, work, network)) for gpus in GPUS] for name in STRATEGIES}


def plot(data: dict[str, Any], path: Path) -> None:
    """A panel for every network: lines without overlap, dotted with all that can overlap hidden."""

    def panel(name: str, ax: Any) -> None:
        for strategy, points in data["predicted"][name].items():
            xs, colour = [p["gpus"] for p in points], COLOURS[strategy]
            ax.plot(xs, [p["exposed_s"] for p in points], "-", color=colour, label=f"{strategy}, nothing overlaps")
            ax.plot(xs, [p["hidden_s"] for p in points], ":", color=colour, label=f"{strategy}, all that can")
        ax.plot(xs, [p["rollout"] + p["compute"] for p in points], "--", color="#777777", label="no communication")
        ax.set_xscale("log", base=2)
        ax.set_xticks(GPUS, [str(n) for n in GPUS])
        ax.set(title=name, xlabel="GPUs, as many prompts each", ylabel="predicted step, s")
        ax.set_ylim(bottom=0)
        ax.legend()

    panels = [partial(panel, name) for name in data["predicted"]]
    figure.save(path, panels, (5 * len(panels), 4.6), title="\n".join(assumptions(data)))


def assumptions(data: dict[str, Any]) -> list[str]:
    work = data["workload"]
    lines = [
        f"predicted, not measured; phase times: {data['phases']}: rollout {work['rollout_s']:.3g} s, "
        f"update {work['update_s']:.3g} s, other {work['other_s']:.3g} s",
        f"{work['parameter_bytes'] / 1e9:.2f} GB of parameters in {work['layers']} layers, "
        f"{work['micro_batches']} micro-batches, {work['rows']} replies a GPU",
    ]
    for n in data["networks"]:
        lines.append(
            f"{n['name']}: {n['gpus_per_node']} GPUs a node, alpha {1e6 * n['alpha_intra']:.0f} / "
            f"{1e6 * n['alpha_inter']:.0f} us, beta {n['beta_intra'] / 1e9:.3g} / {n['beta_inter'] / 1e9:.3g} GB/s"
        )
    return lines


def summary(data: dict[str, Any]) -> str:
    shown = [GPUS.index(n) for n in (1, 8, 64, 512)]
    lines = ["network | strategy | step s on 1, 8, 64, 512 GPUs (nothing overlaps; all that can)"]
    for name, held in data["predicted"].items():
        for strategy, points in held.items():
            cells = [f"{points[i]['exposed_s']:.1f}; {points[i]['hidden_s']:.1f}" for i in shown]
            lines.append(" | ".join([name, strategy, *cells]))
    for name, points in data["validation"].items():
        cells = [f"{p['delay_ms']:g} ms: {p['predicted_ms']:.0f} for {p['measured_ms']:.0f}" for p in points]
        lines.append(f"{name} on a CPU, predicted for measured ms | {', '.join(cells)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, help="metrics.jsonl of a run on one GPU")
    parser.add_argument("--network", type=Path, help="network.json of tests.stress.network")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(arguments)
    try:
        work = with_phases(ASSUMED, args.metrics) if args.metrics else ASSUMED
        parts = load(args.network)["parts"] if args.network else {}
    except (OSError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data = {
        "command": command(),
        "phases": "medians of a run's time/*" if args.metrics else "assumed",
        "workload": asdict(work),
        "networks": [asdict(network) for network in NETWORKS],
        "predicted": {network.name: table(work, network) for network in NETWORKS},
        "validation": {name: compare(part) for name, part in parts.items()},
    }
    save(args.out / "scaling.json", data)
    plot(data, args.out / "scaling.png")
    print(summary(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
