"""The questions of the results page, each with its plot and its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.suite import answers, plots, tables
from benchmarks.suite.answers import PAPER
from benchmarks.suite.cells import Cell
from benchmarks.suite.grid import FLIPS, MAP_ITEMS, MAP_NOISE, MORE_ITEMS, NORMS, SIZES, TAUS
from benchmarks.suite.methods import LABELS, MAIN
from benchmarks.suite.results import Results
from benchmarks.suite.tasks import TASKS

Named = list[tuple[str, Cell]]
RULES = (
    "The rules are those of docs/method.md with the defaults of docs/configuration.md, but for what "
    "`benchmarks/suite/methods.py` sets: a threshold of 1.5 on rewards of 3 at most, a KL weight that rises to "
    "0.04, modulation 0.2, a length reward of 0.5 in the last third. With gamma = 0 and verdicts of 0 or 1 `any "
    "right` and the accuracy gate are DyME's rule. PCuRL and GRPO with KL memorize nothing, so they end as GRPO "
    "does. CHORD's token weight p (1 - p) is next to nothing where p is: the answer flag, which the base never "
    "writes, is hardly learned with it.\n"
)


@dataclass(frozen=True)
class Question:
    """`answer` is what the figures say, "" before they are there; `draw(path)` makes the plot, `table` the table."""

    name: str
    text: str
    answer: str
    draw: Callable[[Path], None]
    table: str


def questions(found: Results) -> list[Question]:
    """Of the grid's first task, where they are not about all of them."""
    first = found.grid.tasks[0]
    base = tables.base_of(found, first)
    trace = "low" if "low" in TASKS[first].traces else "own"

    def dyme(**changes: object) -> Cell:
        return Cell(first, "dyme", trace, 1, base.capacity, tuple(changes.items()))

    plain = dyme()
    size, rate = found.grid.regime.group, found.grid.regime.lr
    by_task: dict[str, Named] = {
        task: [
            (LABELS[m], Cell(task, m, "low" if "low" in TASKS[task].traces else "own", 1, base.capacity)) for m in MAIN
        ]
        for task in found.grid.tasks
    }
    norms: Named = [("group (default)", plain), *((_norm(name), dyme(norm=name)) for name in NORMS)]
    sizes: Named = [(f"K = {k}", plain if k == size else dyme(K=k)) for k in sorted({*SIZES, size})]
    taus: Named = [("tau = 0", plain), *((f"tau = {tau:g}", dyme(tau=tau)) for tau in TAUS)]
    qualities: Named = [
        (t, Cell(first, "dyme", t, 1, base.capacity)) for t in tables.TRACES if t in TASKS[first].traces
    ]
    noisy: Named = [
        (
            f"{LABELS[m]}, {flips:.0%}",
            plain.of(m) if not flips else Cell(first, m, trace, 1, base.capacity, (("flips", flips),)),
        )
        for m in ("grpo", "dyme")
        for flips in (0.0, *FLIPS)
    ]
    rates: Named = [
        (f"{LABELS[m]}, {lr:g}", plain.of(m) if lr == rate else Cell(first, m, trace, 1, base.capacity, (("lr", lr),)))
        for m in MAIN
        for lr in sorted({rate, *_rates(found)})
    ]
    unchecked: Named = [
        (f"{task}, {words}", Cell(task, "dyme", "medium", 1, base.capacity, changes))
        for task in found.grid.tasks
        for words, changes in (("weight 1", ()), ("weight 0", (("thinking", 0.0),)))
        if "medium" in TASKS[task].traces
    ]
    polished = dyme(refiner="rules")
    refined: Named = [
        (f"{LABELS[m]}, {words}", cell.of(m))
        for m in ("sft", "two_stage", "dyme")
        for words, cell in (("as they are", plain), ("refined", polished))
    ]
    switches: Named = [(LABELS[m], Cell(first, m, "medium", 1, base.capacity)) for m in _methods(found, first)]
    border = [
        Cell(first, "dyme", trace, 1, capacity, (("items", items), ("noise", noise)))
        for capacity in _capacities(found, first)
        for items in MAP_ITEMS
        for noise in MAP_NOISE
    ]
    ends: dict[str, Named] = {
        task: [
            (f"{LABELS[m]}, {t}", Cell(task, m, t, 1, base.capacity))
            for t in tables.TRACES
            if t in TASKS[task].traces
            for m in MAIN
            if m != "grpo"
        ]
        for task in found.grid.tasks
    }
    return [
        Question(
            "collapse",
            "Does GRPO collapse where DyME does not?",
            answers.collapse(found, by_task),
            _row([_curves(found, cells, "all_wrong", f"{t}: groups all wrong") for t, cells in by_task.items()]),
            "".join(f"{t}, {trace} traces\n\n{tables.behaviour_table(found, c)}\n" for t, c in by_task.items()),
        ),
        Question(
            "copying",
            "Does SFT copy pseudo traces, and does exploration undo it?",
            answers.copying(found, qualities),
            _row([_qualities(found, first, base, what) for what in ("accuracy", "faithful", "pseudo")]),
            tables.behaviour_table(found, [(f"{LABELS[m]}, {t}", c.of(m)) for t, c in qualities for m in MAIN]),
        ),
        Question(
            "outcomes",
            "Are wrong answers wrong readings or wrong steps?",
            answers.outcomes(found, ends),
            _row([_stacks(found, named, task) for task, named in ends.items()]),
            "".join(f"{task}\n\n{tables.outcomes_table(found, named)}\n" for task, named in ends.items()),
        ),
        Question(
            "two_stage",
            "Where does SFT then GRPO end?",
            answers.two_stage(found, by_task),
            _row([_curves(found, c, "accuracy", f"{t}: validation accuracy", True) for t, c in by_task.items()]),
            "",
        ),
        Question(
            "switches",
            "Binary switch against threshold, annealing, buffer and the others: does the paper's order hold?",
            answers.switches(found, switches),
            _row([lambda ax: plots.bars(ax, found, switches, f"{first}, medium traces", base)], 4.2),
            f"{tables.methods_table(found, first)}\n{RULES}",
        ),
        Question(
            "normalization",
            "What does the 1/K weight of the published code (`row`) cost against `component` and `group`?",
            answers.variants(found, norms),
            _row(
                [
                    lambda ax: plots.bars(ax, found, norms, f"{first}, {trace} traces", base),
                    _curves(found, norms, "memorize", "share of groups that memorize"),
                    _curves(found, norms, "accuracy", "validation accuracy", True),
                ]
            ),
            tables.variants_table(found, norms),
        ),
        Question(
            "modes",
            "How do K, tau and the quality of traces move the mode share?",
            answers.shares(found, K=sizes, tau=taus, traces=qualities),
            _row(
                [
                    _curves(found, named, "memorize", f"memorize share by {what}")
                    for what, named in (("K", sizes), ("tau", taus), ("traces", qualities))
                ]
            ),
            tables.variants_table(found, [*sizes, *taus, *qualities]),
        ),
        Question(
            "noise",
            "What happens when verdicts are noisy?",
            answers.variants(found, noisy),
            _row([_noise(found, noisy), _curves(found, noisy, "memorize", "share of groups that memorize")]),
            tables.variants_table(found, noisy),
        ),
        *[_records(found, task) for task in found.grid.tasks if _has_more_records(found, task)],
        Question(
            "refiner",
            f"What does the refiner add? Rules rewrite the reference traces from the facts; {first}, {trace} traces",
            _all(
                answers.variants(found, refined),
                answers.beside(found, [("traces as they are", plain), ("refined traces", polished)]),
            ),
            _row([lambda ax: plots.bars(ax, found, refined, f"{first}, {trace} traces", base)]),
            tables.variants_table(found, refined),
        ),
        Question(
            "thinking",
            "What is the thinking reward worth?",
            _all(answers.variants(found, unchecked), answers.readings(found, unchecked)),
            _row([lambda ax: plots.bars(ax, found, unchecked, "medium traces")]),
            tables.variants_table(found, unchecked),
        ),
        Question(
            "map",
            "Where is the border between SFT and DyME? Records, noise of traces and capacity at equal steps",
            answers.border(found, border),
            _row([_heat(found, border, capacity) for capacity in _capacities(found, first)]),
            tables.map_table(found, border),
        ),
        Question(
            "rates",
            "The learning rate, swept equally for the main methods at one seed",
            answers.rates(found, rates),
            _row([lambda ax: plots.bars(ax, found, rates, f"{first}, {trace} traces", base)], 3.4),
            tables.variants_table(found, rates),
        ),
    ]


def draw_main(found: Results, path: Path) -> None:
    """The main methods on all qualities of traces, a panel for each task."""

    def panel(task: str) -> Draw:
        base = tables.base_of(found, task)
        named = [
            (f"{LABELS[m]}, {trace}", Cell(task, m, trace, 1, base.capacity))
            for trace in tables.TRACES
            if trace in TASKS[task].traces
            for m in MAIN
        ]
        return lambda ax: plots.bars(ax, found, named, task, base)

    _row([panel(task) for task in found.grid.tasks], 3.2)(path)


def _records(found: Results, task: str) -> Question:
    capacity, own = tables.base_of(found, task).capacity, found.grid.regime.items_of(task)
    cells = {
        items: Cell(task, "dyme", "medium", 1, capacity, () if items == own else (("items", items),))
        for items in sorted({own, *MORE_ITEMS})
    }
    groups: dict[str, list[tuple[str, float | None]]] = {}
    for method in ("sft", "two_stage", "dyme"):
        for items, cell in cells.items():
            value = found.accuracy(cell.of(method))
            groups.setdefault(method, []).append((str(items), value.value if value else None))
    level = found.accuracy(tables.base_of(found, task))
    return Question(
        "records",
        f"Do more records help? {task}, medium traces, equal steps",
        answers.beside(found, [(f"{items} records", cell) for items, cell in cells.items()]),
        _row([lambda ax: plots.lines(ax, groups, f"{task}: test accuracy by records", level.value if level else None)]),
        tables.records_table(found, cells),
    )


Draw = Callable[[Axes], None]


def _row(panels: Sequence[Draw], height: float = 2.3) -> Callable[[Path], None]:
    def all_of(axes: Sequence[Axes]) -> None:
        for ax, draw in zip(axes, panels):
            draw(ax)

    return lambda path: plots.save(path, len(panels), all_of, height)


def _curves(found: Results, cells: Named, key: str, title: str, evals: bool = False) -> Draw:
    return lambda ax: plots.curves(ax, found, cells, key, title, evals)


def _qualities(found: Results, task: str, base: Cell, what: str) -> Draw:
    titles = {
        "accuracy": "test accuracy",
        "faithful": "readings that are right",
        "pseudo": "right answers, wrong reading",
    }

    def value(cell: Cell) -> float | None:
        if what == "accuracy":
            found_ = found.accuracy(cell)
            return found_.value if found_ else None
        return found.faithful(cell) if what == "faithful" else found.pseudo(cell)

    groups = {
        m: [(t, value(Cell(task, m, t, 1, base.capacity))) for t in tables.TRACES if t in TASKS[task].traces]
        for m in MAIN
    }
    level = value(base) if what == "accuracy" else None
    return lambda ax: plots.lines(ax, groups, f"{task}: {titles[what]}", level)


def _stacks(found: Results, named: Named, task: str) -> Draw:
    names = ("right, a wrong reading", "wrong, a wrong reading", "wrong, no wrong reading")
    return lambda ax: plots.stacks(ax, {words: found.outcomes(cell) for words, cell in named}, names, task)


def _noise(found: Results, noisy: Named) -> Draw:
    groups: dict[str, list[tuple[str, float | None]]] = {}
    for _, cell in noisy:
        value = found.accuracy(cell)
        place = f"{cell.change('flips', 0.0):.0%}"
        groups.setdefault(cell.method, []).append((place, value.value if value else None))
    return lambda ax: plots.lines(ax, groups, "test accuracy by share of wrong verdicts")


def _heat(found: Results, border: Sequence[Cell], capacity: str) -> Draw:
    values = {}
    for cell in border:
        if cell.capacity == capacity:
            value = found.versus(cell, cell.of("sft"))
            values[cell.change("items", 0), cell.change("noise", 0.0)] = value.value if value else None
    return lambda ax: plots.heat(ax, values, f"DyME minus SFT, model {capacity}")


def _capacities(found: Results, task: str) -> list[str]:
    cells = [cell for cell in found.grid.cells if cell.task == task]
    mapped = [cell.capacity for cell in cells if dict(cell.changes).keys() >= {"items", "noise"}]
    return list(dict.fromkeys(mapped)) or [cells[0].capacity]


def _has_more_records(found: Results, task: str) -> bool:
    return any(cell.task == task and dict(cell.changes).keys() == {"items"} for cell in found.grid.cells)


def _methods(found: Results, task: str) -> list[str]:
    """Methods of the grid on medium traces, those of the paper's order first."""
    there = [
        c.method
        for c in found.grid.cells
        if (c.task, c.trace, c.changes) == (task, "medium", ()) and c.method in LABELS
    ]
    there = [method for method in dict.fromkeys(there) if method != "base"]
    return [*PAPER, *(method for method in there if method not in PAPER)]


def _rates(found: Results) -> set[float]:
    return {cell.change("lr", found.grid.regime.lr) for cell in found.grid.cells}


def _all(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _norm(name: str) -> str:
    return f"{name} (published code)" if name == "row" else name
