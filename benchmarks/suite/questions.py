"""The questions of the results page, each with its plot and its table. docs/results.md answers them by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.figure import Draw, save
from benchmarks.suite import plots, tables
from benchmarks.suite.cells import Cell
from benchmarks.suite.grid import FLIPS, MAP_ITEMS, MAP_NOISE, MORE_ITEMS, NORMS, RATES, SIZES, TAUS
from benchmarks.suite.methods import LABELS, MAIN, METHODS
from benchmarks.suite.plots import Named
from benchmarks.suite.results import Results
from benchmarks.suite.tasks import TASKS
from dyme.report.figure import STYLE, WIDTH

MEMORIZE, VALIDATION = "share of groups that memorize", "validation accuracy"
PAPER = ("dyme", "reward_threshold", "annealed", "buffered")
"""The paper's order of switches: 64.9 > 64.0 > 59.6 > 52.4."""


@dataclass(frozen=True)
class Question:
    """name: of its plot, and of its table's place in docs/results.md. panels: of its plot. table: Markdown, "" where
    there is only a plot. height: of the plot, in inches."""

    name: str
    panels: Sequence[Draw]
    table: str = ""
    height: float = 2.3

    def draw(self, path: Path) -> None:
        save(path, self.panels, (WIDTH, self.height), style={**STYLE, "savefig.dpi": 200})


def questions(found: Results) -> list[Question]:
    """Of the grid's first task, where they are not about all of them."""
    first, regime = found.grid.tasks[0], found.grid.regime
    base = tables.base_of(found, first)
    trace = _worst(first)

    def cell(method: str, trace: str = trace, task: str = first, **changes: object) -> Cell:
        return Cell(task, method, trace, 1, base.capacity, tuple(changes.items()))

    def cells(task: str, methods: Sequence[str]) -> Named:
        return [(f"{LABELS[m]}, {t}", cell(m, t, task)) for t in tables.traces_of(task) for m in methods]

    def bars(named: Named, title: str, level: Cell | None = base) -> Draw:
        return lambda ax: plots.bars(ax, found, named, title, level)

    def curves(named: Named, key: str, title: str, evals: bool = False) -> Draw:
        return lambda ax: plots.curves(ax, found, named, key, title, evals)

    table = partial(tables.cells_table, found)
    plain, at = cell("dyme"), f"{first}, {trace} traces"
    thinking = [m for m in MAIN if m != "grpo"]
    by_task = {task: [(LABELS[m], cell(m, _worst(task), task)) for m in MAIN] for task in found.grid.tasks}
    norms = [(f"{n} (published code)" if n == "row" else n, cell("dyme", norm=n)) for n in NORMS]
    norms = [("group (default)", plain), *norms]
    sizes = [(f"K = {k}", plain if k == regime.group else cell("dyme", K=k)) for k in sorted({*SIZES, regime.group})]
    taus = [("tau = 0", plain), *((f"tau = {tau:g}", cell("dyme", tau=tau)) for tau in TAUS)]
    qualities = [(t, cell("dyme", t)) for t in tables.traces_of(first)]
    noisy = [
        (f"{LABELS[m]}, {flips:.0%}", cell(m, flips=flips) if flips else cell(m))
        for m in ("grpo", "dyme")
        for flips in (0.0, *FLIPS)
    ]
    rates = [
        (f"{LABELS[m]}, {lr:g}", cell(m) if lr == regime.lr else cell(m, lr=lr))
        for m in MAIN
        for lr in sorted({regime.lr, *RATES})
    ]
    unchecked = [
        (f"{task}, {words}", cell("dyme", "medium", task, **changes))
        for task in found.grid.tasks
        for words, changes in (("weight 1", {}), ("weight 0", {"thinking": 0.0}))
        if "medium" in TASKS[task].traces
    ]
    refined = [
        (f"{LABELS[m]}, {words}", made)
        for m in thinking
        for words, made in (("as they are", cell(m)), ("refined", cell(m, refiner="rules")))
    ]
    switches, methods = ([(LABELS[m], cell(m, "medium")) for m in names] for names in (_methods(found, first), METHODS))
    capacities = _capacities(found, first)
    border = [
        Cell(first, "dyme", trace, 1, capacity, (("items", items), ("noise", noise)))
        for capacity in capacities
        for items in MAP_ITEMS
        for noise in MAP_NOISE
    ]
    ends = {task: cells(task, thinking) for task in found.grid.tasks}
    return [
        Question("main", [bars(cells(t, MAIN), t, tables.base_of(found, t)) for t in found.grid.tasks], "", 3.2),
        Question(
            "collapse",
            [curves(named, "all_wrong", f"{t}: groups all wrong") for t, named in by_task.items()],
            "".join(f"{t}, {trace} traces\n\n{table(c, tables.BEHAVIOUR)}\n" for t, c in by_task.items()),
        ),
        Question(
            "copying",
            [
                _qualities(found, first, "test accuracy", lambda cell: _value(found, cell), _value(found, base)),
                _qualities(found, first, "readings that are right", found.faithful),
                _qualities(found, first, "right answers, wrong reading", found.pseudo),
            ],
            table(cells(first, MAIN), tables.BEHAVIOUR),
        ),
        Question(
            "outcomes",
            [_stacks(found, named, task) for task, named in ends.items()],
            "".join(f"{task}\n\n{table(named, ('seeds', 'test', *tables.OUTCOMES))}\n" for task, named in ends.items()),
        ),
        Question("two_stage", [curves(c, "accuracy", f"{t}: {VALIDATION}", True) for t, c in by_task.items()]),
        Question("switches", [bars(switches, f"{first}, medium traces")], table(methods, tables.METHOD, "method"), 4.2),
        Question(
            "normalization",
            [bars(norms, at), curves(norms, "memorize", MEMORIZE), curves(norms, "accuracy", VALIDATION, True)],
            table(norms),
        ),
        Question(
            "modes",
            [
                curves(named, "memorize", f"memorize share by {what}")
                for what, named in (("K", sizes), ("tau", taus), ("traces", qualities))
            ],
            table([*sizes, *taus, *qualities]),
        ),
        Question("noise", [_noise(found, noisy), curves(noisy, "memorize", MEMORIZE)], table(noisy)),
        *[_records(found, task) for task in found.grid.tasks if _has_more_records(found, task)],
        Question("refiner", [bars(refined, at)], table(refined)),
        Question("thinking", [bars(unchecked, "medium traces", None)], table(unchecked)),
        Question("map", [_heat(found, border, each) for each in capacities], tables.map_table(found, border)),
        Question("rates", [bars(rates, at)], table(rates), 3.4),
    ]


def _records(found: Results, task: str) -> Question:
    capacity, own = tables.base_of(found, task).capacity, found.grid.regime.items_of(task)
    cells = {
        items: Cell(task, "dyme", "medium", 1, capacity, () if items == own else (("items", items),))
        for items in sorted({own, *MORE_ITEMS})
    }
    groups = {
        method: [(str(items), _value(found, cell.of(method))) for items, cell in cells.items()]
        for method in ("sft", "two_stage", "dyme")
    }
    level = _value(found, tables.base_of(found, task))
    return Question(
        "records",
        [lambda ax: plots.lines(ax, groups, f"{task}: test accuracy by records", level)],
        tables.records_table(found, cells),
    )


def _qualities(
    found: Results, task: str, title: str, value: Callable[[Cell], float | None], level: float | None = None
) -> Draw:
    capacity = tables.base_of(found, task).capacity
    groups = {m: [(t, value(Cell(task, m, t, 1, capacity))) for t in tables.traces_of(task)] for m in MAIN}
    return lambda ax: plots.lines(ax, groups, f"{task}: {title}", level)


def _stacks(found: Results, named: Named, task: str) -> Draw:
    return lambda ax: plots.stacks(ax, {words: found.outcomes(cell) for words, cell in named}, tables.OUTCOMES, task)


def _noise(found: Results, noisy: Named) -> Draw:
    groups: dict[str, list[tuple[str, float | None]]] = {}
    for _, cell in noisy:
        groups.setdefault(cell.method, []).append((f"{cell.change('flips', 0.0):.0%}", _value(found, cell)))
    return lambda ax: plots.lines(ax, groups, "test accuracy by share of wrong verdicts")


def _heat(found: Results, border: Sequence[Cell], capacity: str) -> Draw:
    values = {}
    for cell in border:
        if cell.capacity == capacity:
            value = found.versus(cell, cell.of("sft"))
            values[cell.change("items", 0), cell.change("noise", 0.0)] = value.value if value else None
    return lambda ax: plots.heat(ax, values, f"DyME minus SFT, model {capacity}")


def _value(found: Results, cell: Cell) -> float | None:
    """Test accuracy."""
    estimate = found.accuracy(cell)
    return estimate.value if estimate else None


def _worst(task: str) -> str:
    return "low" if "low" in TASKS[task].traces else "own"


def _capacities(found: Results, task: str) -> list[str]:
    cells = [cell for cell in found.grid.cells if cell.task == task]
    mapped = [cell.capacity for cell in cells if dict(cell.changes).keys() >= {"items", "noise"}]
    return list(dict.fromkeys(mapped)) or [cells[0].capacity]


def _has_more_records(found: Results, task: str) -> bool:
    return any(cell.task == task and dict(cell.changes).keys() == {"items"} for cell in found.grid.cells)


def _methods(found: Results, task: str) -> list[str]:
    """Methods of the grid on medium traces, those of the paper's order first."""
    there = [c.method for c in found.grid.cells if (c.task, c.trace, c.changes) == (task, "medium", ())]
    return [method for method in dict.fromkeys([*PAPER, *there]) if method != "base"]
