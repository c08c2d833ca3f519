"""Answers: what the figures of each question say, in sentences made from them, so that they cannot go stale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from benchmarks.suite.analysis import Estimate
from benchmarks.suite.cells import Cell
from benchmarks.suite.grid import SEEDS
from benchmarks.suite.methods import BASE, LABELS, MAIN
from benchmarks.suite.results import Results, mean
from benchmarks.suite.tables import say, share

Named = Sequence[tuple[str, Cell]]
PAPER = ("dyme", "reward_threshold", "annealed", "buffered")
"""The paper's order of switches: 64.9 > 64.0 > 59.6 > 52.4."""
ENDS = 4  # points of a curve that stand for its beginning, or its end


def collapse(found: Results, by_task: Mapping[str, Named]) -> str:
    """The share of groups without a right answer under GRPO, and how it falls under DyME."""
    said = []
    for task, named in by_task.items():
        grpo, dyme = (next(cell for _, cell in named if cell.method == m) for m in ("grpo", "dyme"))
        stuck, begin, end = (
            found.mean(grpo, "collapse"),
            _of_curve(found, dyme, "all_wrong", slice(ENDS)),
            _of_curve(found, dyme, "all_wrong", slice(-ENDS, None)),
        )
        if stuck is not None and begin is not None and end is not None:
            said.append(
                f"{task}: no right answer in {share(stuck)} of GRPO's groups over the whole run; in {share(begin)} "
                f"of DyME's in the first tenth of the steps and {share(end)} in the last. On the test split DyME is "
                f"{_verdict(found.versus(dyme, grpo), 'GRPO')}."
            )
    return " ".join(said)


def copying(found: Results, qualities: Named) -> str:
    """Right answers whose trace holds a wrong reading, on the test split and on average out of distribution."""
    if not qualities:
        return ""
    task = qualities[0][1].task
    ood = [split for split in found.splits(task) if split != "test"]
    said = []
    for trace, cell in qualities:
        parts = []
        for method in ("sft", "two_stage", "dyme"):
            pseudo = found.pseudo(cell.of(method))
            beyond = mean([found.pseudo(cell.of(method), split) for split in ood])
            if pseudo is not None and beyond is not None:
                parts.append(f"{LABELS[method]} {share(pseudo)} ({share(beyond)})")
        if parts:
            said.append(f"{trace} traces: {', '.join(parts)}")
    if not said:
        return ""
    return (
        "Right answers whose trace holds a wrong reading, on the test split and, in brackets, on average out of "
        f"distribution. {'; '.join(said)}."
    )


def outcomes(found: Results, by_task: Mapping[str, Named]) -> str:
    """Wrong answers with and without a wrong reading in their traces, task by task."""
    said = []
    for task, named in by_task.items():
        got = [(words, value) for words, cell in named if (value := found.outcomes(cell))]
        if got:
            parts = [f"{words} {share(read)} and {share(step)}" for words, (_, read, step) in got]
            said.append(f"{task}: {', '.join(parts)}.")
    return f"Wrong answers with and without a wrong reading, of all replies. {' '.join(said)}" if said else ""


def two_stage(found: Results, by_task: Mapping[str, Named]) -> str:
    """What the second stage adds to the first, and how DyME stands to the end of both."""
    said = []
    for task, named in by_task.items():
        cell = next(cell for _, cell in named if cell.method == "two_stage")
        half = found.grid.regime.steps // 2
        runs = found.runs(cell)
        before = mean([next((e["accuracy"] for e in run["evals"] if e["step"] == half), None) for run in runs])
        after = mean([run["evals"][-1]["accuracy"] for run in runs])
        if before is not None and after is not None:
            said.append(
                f"{task}: {before:.3f} on validation when SFT ends (step {half}), {after:.3f} at the end; on the test "
                f"split it is {_verdict(found.versus(cell, cell.of('sft')), 'SFT alone')}, and DyME is "
                f"{_verdict(found.versus(cell.of('dyme'), cell), 'it')}."
            )
    return " ".join(said)


def switches(found: Results, named: Named) -> str:
    """The paper's order of four switches in pairs, then every other method beside DyME."""
    by_method = {cell.method: cell for _, cell in named}
    said = []
    four = [by_method[m] for m in PAPER if m in by_method]
    seeds = [seed for seed in SEEDS if all(replace(cell, seed=seed).id in found.cells for cell in four)]
    ranked = [(value.value, cell.method) for cell in four if (value := found.accuracy(cell, seeds=seeds))]
    if len(ranked) == len(PAPER):
        order = " > ".join(f"{LABELS[m]} {value:.3f}" for value, m in sorted(ranked, key=lambda entry: -entry[0]))
        steps = [found.versus(a, b, seeds=seeds) for a, b in pairwise(four)]
        kept = [step for step in steps if step and step.excludes_zero and step.value > 0]
        turned = [step for step in steps if step and step.excludes_zero and step.value < 0]
        said.append(
            f"Here, over the {len(seeds)} seed{'s' * (len(seeds) > 1)} that all four have, {order}. Of the paper's "
            f"three steps (DyME > threshold > annealing > buffer) {len(kept)} hold with intervals that exclude zero, "
            f"{len(turned)} are turned round, {len(steps) - len(kept) - len(turned)} cannot be told."
        )
    sides: dict[str, list[str]] = {"ahead of": [], "behind": [], "not told apart from": []}
    for method, cell in by_method.items():
        value = found.versus(by_method["dyme"], cell) if method != "dyme" else None
        if value is not None:
            sides[_side(value)].append(LABELS[method])
    for side, methods in sides.items():
        if methods:
            said.append(f"DyME is {side} {', '.join(methods)}.")
    return " ".join(said)


def variants(found: Results, named: Named) -> str:
    """Each changed cell beside the same one without its change."""
    said = []
    for words, cell in named:
        value = found.versus(cell, replace(cell, changes=())) if cell.changes else None
        if value is not None:
            said.append(f"{words} is {_verdict(value, 'its default')}")
    return f"{'; '.join(said)}." if said else ""


def beside(found: Results, named: Named) -> str:
    """Each cell of DyME beside SFT and SFT then GRPO with the same changes."""
    said = []
    for words, cell in named:
        values = {m: found.versus(cell, cell.of(m)) for m in ("sft", "two_stage")}
        if all(values.values()):
            verdicts = "; ".join(_verdict(value, LABELS[m]) for m, value in values.items())
            said.append(f"{words}: {verdicts}.")
    return f"DyME is, with {' With '.join(said)}" if said else ""


def readings(found: Results, named: Named) -> str:
    """The share of readings that are right in each cell."""
    said = [f"{words} {share(value)}" for words, cell in named if (value := found.faithful(cell)) is not None]
    return f"Readings that are right: {', '.join(said)}." if len(said) > 1 else ""


def shares(found: Results, **groups: Named) -> str:
    """The share of memorizing groups over a run, for each value of what is changed."""
    said = []
    for what, named in groups.items():
        parts = [
            f"{words} {share(value)}" for words, cell in named if (value := found.mean(cell, "memorize")) is not None
        ]
        if len(parts) > 1:
            said.append(f"By {what}: {', '.join(parts)}")
    return f"Groups that memorize, over the whole run. {'. '.join(said)}." if said else ""


def border(found: Results, cells: Sequence[Cell]) -> str:
    """Where DyME is ahead of SFT, even and behind, by capacity and noise."""
    said = []
    for capacity, noise in dict.fromkeys((cell.capacity, cell.change("noise", 0.0)) for cell in cells):
        sides: dict[str, list[str]] = {"ahead of": [], "not told apart from": [], "behind": []}
        for cell in cells:
            value = found.versus(cell, cell.of("sft"))
            if (cell.capacity, cell.change("noise", 0.0)) == (capacity, noise) and value is not None:
                sides[_side(value)].append(str(cell.change("items", 0)))
        parts = [f"{side} it at {', '.join(items)}" for side, items in sides.items() if items]
        if parts:
            said.append(f"Model {capacity}, {share(noise)} of traces wrong: {'; '.join(parts)} records.")
    return f"DyME against SFT. {' '.join(said)}" if said else ""


def rates(found: Results, named: Named) -> str:
    """Each method at the rate that is best on validation, and DyME's beside the others' on the test split; one seed."""
    tried: dict[str, list[tuple[float, str, Cell]]] = {}
    for words, cell in named:
        for run in found.runs(cell, (cell.seed,)):
            tried.setdefault(cell.method, []).append((run["evals"][-1]["accuracy"], words, cell))
    if min(len(tried.get(m, ())) for m in MAIN) < 2:
        return ""
    best = {m: max(entries, key=lambda entry: entry[0]) for m, entries in tried.items()}
    ours = best["dyme"][2]
    said = ", ".join(f"{words} ({value:.3f})" for value, words, _ in best.values())
    told = "; ".join(
        _verdict(found.versus(ours, cell, seeds=(cell.seed,)), LABELS[m])
        for m, (_, _, cell) in best.items()
        if m != "dyme"
    )
    return f"Best on validation: {said}. At these rates DyME is, on the test split and over one seed, {told}."


def headline(found: Results) -> str:
    """DyME beside the other main methods and beside the base, task by task and trace by trace."""
    said = []
    for task in found.grid.tasks:
        for trace in ("medium", "low", "own"):
            ours = next((c for c in found.grid.cells if (c.task, c.trace, c.method) == (task, trace, "dyme")), None)
            values = {m: found.versus(ours, ours.of(m)) for m in MAIN if m != "dyme"} if ours else {}
            if ours is None or any(value is None for value in values.values()):
                continue
            parts = "; ".join(_verdict(value, LABELS[m]) for m, value in values.items())
            base = found.versus(ours, ours.needs[0])
            said.append(f"- {task}, {trace} traces: {parts}; {_verdict(base, f'the {LABELS[BASE]}')}\n")
    return "".join(["DyME on the test split is\n\n", *said]) if said else ""


def _verdict(value: Estimate | None, other: str) -> str:
    """ahead of SFT (+0.10 [+0.05, +0.15]), behind it, or not told apart from it."""
    return f"{_side(value)} {other} ({say(value, True).strip('*')})" if value else f"not measured beside {other}"


def _side(value: Estimate) -> str:
    if not value.excludes_zero:
        return "not told apart from"
    return "ahead of" if value.value > 0 else "behind"


def _of_curve(found: Results, cell: Cell, key: str, part: slice) -> float | None:
    return mean([mean([point.get(key) for point in run["curve"][part]]) for run in found.runs(cell)])
