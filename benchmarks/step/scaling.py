"""What a step costs against the live fraction, K and the prompt's length: a few points each and a line through them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figure import save, unavailable
from benchmarks.step.case import WARM_UP, Case

SIDES = ("ours", "published")
AXES = {"live": "live fraction of the rows", "K": "rollouts a prompt, K", "P": "prompt tokens, P"}
COLOURS = {"ours": "#0072B2", "published": "#D55E00"}


def points(base: Case, sizes: dict[str, Sequence[int]]) -> dict[str, tuple[str, Case]]:
    """name -> (axis, case). The case of axis live has all its points; those of K and P, where every group memorizes,
    have one each."""
    whole = replace(base, shares=tuple(n / base.prompts for n in range(base.prompts + 1)))
    wrong = replace(base, shares=(0.0,))
    found = {"scaling live": ("live", whole)}
    found |= {f"scaling K={k}": ("K", replace(wrong, group_size=k)) for k in sizes["K"]}
    return found | {f"scaling P={p}": ("P", replace(wrong, tokens=p)) for p in sizes["P"]}


def pair(axis: str, case: Case, folder: Path, device: torch.device) -> dict[str, Any]:
    """Ours and the published behaviour, their steps in turn, so that whatever else the machine does meets both.

    Returns {"axis", "points": [{"x", "ours": seconds by phase, "published": ...}]}; seconds are of processor time.
    """
    from benchmarks.step.ours import Ours, row

    runs = {side: Ours(case, folder, device, published=side == "published") for side in SIDES}
    try:
        steps = [{side: row(case, s, *run.step(s)) for side, run in runs.items()} for s in range(case.steps)]
    finally:
        for run in runs.values():
            run.close()
    found = []
    for share in case.shares:
        mine = [step for step in steps[len(case.shares) * WARM_UP :] if step["ours"]["share"] == share]
        counts = mine[0]["ours"]["counts"]
        xs = {"live": counts["live_fraction"], "K": case.group_size, "P": statistics.mean(counts["prompt_tokens"])}
        found.append({"x": xs[axis], **{side: phases([step[side] for step in mine]) for side in SIDES}})
    ratios = [f"{p['x']:.3g}: {p['ours']['step'] / p['published']['step']:.3g} of published" for p in found]
    return {"axis": axis, "points": found, "detail": ", ".join(ratios)}


def phases(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median processor seconds of the whole step and of its phases, and the tokens that it trained."""
    names = {name for step in steps for name in step["phases"]}
    found = {name: statistics.median(step["phases"].get(name, 0.0) for step in steps) for name in sorted(names)}
    whole = statistics.median(step["cost"]["cpu_s"] for step in steps)
    wall = statistics.median(step["cost"]["wall_s"] for step in steps)
    return {"step": whole, "wall": wall, **found, "tokens": steps[0]["counts"]["tokens"]}


def fits(steps: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """axis -> "ours step", "ours update" ... -> slope and intercept of the least-squares line through its points."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for axis in AXES:
        held = on_axis(steps, axis)
        if len(held) < 2:
            continue
        for side in SIDES:
            for what in ("step", "update"):
                slope, start = np.polyfit([p["x"] for p in held], [p[side][what] for p in held], 1)
                found.setdefault(axis, {})[f"{side} {what}"] = {"slope": float(slope), "intercept": float(start)}
    return found


def on_axis(steps: dict[str, Any], axis: str) -> list[dict[str, Any]]:
    done = [step for step in steps.values() if step.get("axis") == axis and step["status"] == "passed"]
    return sorted((point for step in done for point in step["points"]), key=lambda point: point["x"])


def plot(data: dict[str, Any], path: Path) -> str | None:
    """One panel an axis: points and lines of the whole step, dashed of its update. Why there is no figure, or None."""
    if (why := unavailable()) is not None:
        return why
    if not data.get("fits"):
        return "nothing measured: no figure"

    def panel(axis: str, ax: Any) -> None:
        held = on_axis(data["steps"], axis)
        xs = np.array([point["x"] for point in held])
        for side in SIDES:
            for what, marker, line in (("step", "o", "-"), ("update", "x", "--")):
                fit, colour = data["fits"][axis][f"{side} {what}"], COLOURS[side]
                label = f"{side}, {what}: slope {fit['slope']:.2g}"
                ax.plot(xs, [p[side][what] for p in held], marker, color=colour, markersize=4)
                ax.plot(xs, fit["intercept"] + fit["slope"] * xs, line, color=colour, label=label, linewidth=1)
        ax.set(xlabel=AXES[axis], ylabel="processor seconds")
        ax.set_ylim(bottom=0)
        ax.legend()

    title = f"{data['hardware']['device']}, tiny model, torch {data['versions']['torch']}"
    save(path, [partial(panel, axis) for axis in data["fits"]], (11, 3.4), title=title)
    return None
