"""Tables of the results page, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.suite.analysis import Estimate
from benchmarks.suite.cells import Cell
from benchmarks.suite.methods import BASE, LABELS, MAIN
from benchmarks.suite.results import Results, mean
from benchmarks.suite.tasks import TASKS

NOTHING = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def main_table(found: Results, task: str) -> str:
    """Every main method on every quality of traces, with the base above them."""
    base = base_of(found, task)
    ood = [name for name in found.splits(task) if name != "test"]
    head = ["traces", "method", "seeds", "test", "minus the base", "best checkpoint", *ood]
    rows = [[NOTHING, LABELS[BASE], "1", say(found.accuracy(base)), NOTHING, NOTHING]]
    rows[0] += [say(found.accuracy(base, split)) for split in ood]
    for trace in traces_of(task):
        for method in MAIN:
            cell = Cell(task, method, trace, 1, base.capacity)
            if cell not in found.grid.cells:
                continue
            row = [trace, LABELS[method], str(len(found.runs(cell))), say(found.accuracy(cell))]
            row += [say(found.versus(cell, base), True), say(found.accuracy(cell, best=True))]
            rows.append(row + [say(found.accuracy(cell, split)) for split in ood])
    return table(head, rows)


def columns(found: Results) -> dict[str, Callable[[Cell], str]]:
    """What a table may say of a cell, the mean over its seeds; by the head of the column."""

    def readings(cell: Cell) -> float | None:
        return mean([sum(think["read"]) / len(think["read"]) for think in found.columns(cell)])

    def over(cell: Cell) -> str:
        return NOTHING if cell.method == "dyme" else say(found.versus(cell.of("dyme"), cell), True)

    def outcome(part: int) -> Callable[[Cell], str]:
        return lambda cell: share(held[part] if (held := found.outcomes(cell)) else None)

    return {
        "seeds": lambda cell: str(len(found.runs(cell))),
        "test": lambda cell: say(found.accuracy(cell)),
        "best checkpoint": lambda cell: say(found.accuracy(cell, best=True)),
        "DyME minus it": over,
        "asked directly": lambda cell: share(found.direct(cell)),
        "format": lambda cell: share(found.of_thinking(cell, "format")),
        "collapse": lambda cell: share(found.mean(cell, "collapse")),
        "memorize": lambda cell: share(found.mean(cell, "memorize")),
        "readings right": lambda cell: share(found.faithful(cell)),
        "readings": lambda cell: number(readings(cell), 1),
        "thinking tokens": lambda cell: number(found.of_thinking(cell, "thinking_tokens"), 1),
        "tokens sampled": lambda cell: thousands(found.mean(cell, "rollout_tokens")),
        "tokens trained": lambda cell: thousands(found.mean(cell, "trained_tokens")),
        "training s": lambda cell: number(found.mean(cell, "train_s"), 0),
        **{name: outcome(part) for part, name in enumerate(OUTCOMES)},
    }


ACCURACY = ("seeds", "test", "best checkpoint")
METHOD = (*ACCURACY, "DyME minus it", "memorize")
VARIANT = (*ACCURACY, "collapse", "memorize", "readings right")
BEHAVIOUR = (
    *("asked directly", "format", "collapse", "memorize", "readings right", "readings", "thinking tokens"),
    *("tokens sampled", "tokens trained", "training s"),
)
OUTCOMES = ("right, a wrong reading", "wrong, a wrong reading", "wrong, no wrong reading")


def cells_table(
    found: Results, cells: Sequence[tuple[str, Cell]], heads: Sequence[str] = VARIANT, first: str = ""
) -> str:
    """A row for each cell, with its words, and a column for each head of `columns`."""
    known = columns(found)
    return table([first, *heads], [[words, *(known[head](cell) for head in heads)] for words, cell in cells])


def difference_table(found: Results, task: str) -> str:
    """DyME minus each other main method, on the test split and out of distribution."""
    base, splits = base_of(found, task), found.splits(task)
    rows = []
    for trace in traces_of(task):
        ours = Cell(task, "dyme", trace, 1, base.capacity)
        for method in MAIN:
            if method != "dyme":
                rows.append(
                    [trace, LABELS[method], *(say(found.versus(ours, ours.of(method), s), True) for s in splits)]
                )
    return table(["traces", "DyME minus", *splits], rows)


def records_table(found: Results, by_items: Mapping[int, Cell]) -> str:
    """SFT, SFT then GRPO and DyME for each number of records, on the test split."""
    rows = []
    for items, cell in by_items.items():
        others = [cell.of("sft"), cell.of("two_stage")]
        row = [str(items), str(len(found.runs(cell))), *(say(found.accuracy(c)) for c in (*others, cell))]
        rows.append([*row, *(say(found.versus(cell, other), True) for other in others)])
    head = ["records", "seeds", LABELS["sft"], LABELS["two_stage"], LABELS["dyme"]]
    return table([*head, "DyME minus SFT", "DyME minus SFT then GRPO"], rows)


def map_table(found: Results, cells: Sequence[Cell]) -> str:
    """The border: for each number of records, noise and capacity the base, SFT, DyME and their difference."""
    rows = []
    for cell in cells:
        items, noise = cell.change("items", 0), cell.change("noise", 0.0)
        sft = cell.of("sft")
        row = [cell.capacity, str(items), f"{noise:g}", say(found.accuracy(cell.needs[0])), say(found.accuracy(sft))]
        rows.append([*row, say(found.accuracy(cell)), say(found.versus(cell, sft), True)])
    return table(["model", "records", "noise", "base, directly", "SFT", "DyME", "DyME minus SFT"], rows)


def traces_of(task: str) -> list[str]:
    return [trace for trace in ("high", "medium", "low", "own") if trace in TASKS[task].traces]


def base_of(found: Results, task: str) -> Cell:
    """The base that the main table's cells of a task start from."""
    return next(cell.needs[0] for cell in found.grid.cells if cell.task == task and cell.method == "sft")


def say(value: Estimate | None, signed: bool = False) -> str:
    """0.81 [0.77, 0.85]; a difference has its sign, and is bold where the interval excludes zero."""
    if value is None:
        return NOTHING
    form = "+.3f" if signed else ".3f"
    interval = "" if value.low is None or value.high is None else f" [{value.low:{form}}, {value.high:{form}}]"
    text = f"{value.value:{form}}{interval}"
    return f"**{text}**" if signed and value.excludes_zero else text


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def thousands(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 1000:.0f}k"
