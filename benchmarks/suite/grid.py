"""The grids: for each preset its regime and its cells, the most important first, so that a part of them has answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.suite.cells import Cell
from benchmarks.suite.methods import MAIN, OTHERS
from benchmarks.suite.tasks import CPU, GPU, SMOKE, TASKS, Regime

SEEDS = (1, 2, 3)
RATES = (3e-4, 3e-3)  # beside the regime's own
NORMS = ("row", "component")
SIZES = (2, 4, 16)
TAUS = (0.05, 0.1, 0.2)
FLIPS = (0.05, 0.2)
MORE_ITEMS = (128, 256)  # of a second task, beside the regime's own
MAP_ITEMS, MAP_NOISE = (64, 256, 1024, 4096), (0.0, 0.3, 1.0)


@dataclass(frozen=True)
class Grid:
    """`tasks` stand in the main table; the others of the methods and all questions are asked of `tasks[0]`."""

    regime: Regime
    tasks: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def kept(self) -> frozenset[str]:
        """Ids of cells whose models another cell needs."""
        return frozenset(need.id for cell in self.cells for need in cell.needs)


def main_table(tasks: Iterable[str], seed: int, capacity: str) -> Iterator[Cell]:
    for trace in ("medium", "low", "high", "own"):
        for task in tasks:
            if trace in TASKS[task].traces:
                yield from (Cell(task, method, trace, seed, capacity) for method in MAIN)


def others(task: str, seed: int, capacity: str) -> Iterator[Cell]:
    yield from (Cell(task, method, "medium", seed, capacity) for method in OTHERS)


def questions(task: str, seed: int, capacity: str) -> Iterator[Cell]:
    """What the 1/K weight costs, noisy verdicts, K and tau."""

    def dyme(trace: str, **changes: object) -> Cell:
        return Cell(task, "dyme", trace, seed, capacity, tuple(changes.items()))

    yield from (dyme("low", norm=norm) for norm in NORMS)
    for flips in FLIPS:
        yield from (Cell(task, method, "low", seed, capacity, (("flips", flips),)) for method in ("grpo", "dyme"))
    yield from (dyme("low", K=size) for size in SIZES)
    yield from (dyme("low", tau=tau) for tau in TAUS)


def records(task: str, seed: int, capacity: str) -> Iterator[Cell]:
    """Whether what DyME adds on a task grows with its records."""
    for items in MORE_ITEMS:
        for method in ("sft", "two_stage", "dyme"):
            yield Cell(task, method, "medium", seed, capacity, (("items", items),))


def refined(task: str, seed: int, capacity: str) -> Iterator[Cell]:
    """What rules make of low traces, for DyME and for those it is compared with."""
    for method in ("sft", "two_stage", "dyme"):
        yield Cell(task, method, "low", seed, capacity, (("refiner", "rules"),))


def unchecked(tasks: Iterable[str], seed: int, capacity: str) -> Iterator[Cell]:
    """What the thinking reward is worth: DyME without it."""
    yield from (Cell(task, "dyme", "medium", seed, capacity, (("thinking", 0.0),)) for task in tasks)


def rates(task: str, capacity: str) -> Iterator[Cell]:
    """The learning rate, swept equally for the main methods, at one seed."""
    for rate in RATES:
        yield from (Cell(task, method, "low", 1, capacity, (("lr", rate),)) for method in MAIN)


def border(task: str, capacities: Iterable[str]) -> Iterator[Cell]:
    """The map: records x noise of traces x capacity, for sft and dyme at equal steps."""
    for capacity in capacities:
        for items in MAP_ITEMS:
            for noise in MAP_NOISE:
                changes = (("items", items), ("noise", noise))
                yield from (Cell(task, method, "low", 1, capacity, changes) for method in ("sft", "dyme"))


def cpu() -> Grid:
    tasks, first, tiny = ("charts", "easy_vqa"), "charts", "tiny"
    cells = [
        *(cell for seed in SEEDS for cell in main_table(tasks, seed, tiny)),
        *(cell for seed in SEEDS for cell in records(tasks[1], seed, tiny)),
        *(cell for seed in SEEDS for cell in unchecked(tasks, seed, tiny)),
        *others(first, 1, tiny),
        *(cell for seed in SEEDS for cell in refined(first, seed, tiny)),
        *questions(first, 1, tiny),
        *rates(first, tiny),
        *border(first, ("tiny", "small")),
        *(Cell("arithmetic", method, trace, 1, tiny) for trace in ("medium", "low") for method in MAIN),
        *(cell for seed in SEEDS[1:] for cell in others(first, seed, tiny)),
        *(cell for seed in SEEDS[1:] for cell in questions(first, seed, tiny)),
    ]
    return Grid(CPU, tasks, with_needs(cells))


def gpu() -> Grid:
    tasks, first, large = ("charts_full", "nlvr", "puzzlevqa"), "charts_full", "large"
    cells = [
        *main_table(tasks, 1, large),
        *questions(first, 1, large),
        *(cell for seed in SEEDS[1:] for cell in main_table(tasks[:1], seed, large)),
        *others(first, 1, large),
        *(cell for seed in SEEDS[1:] for cell in main_table(tasks[1:], seed, large)),
        *unchecked(tasks[:1], 1, large),
        *refined(first, 1, large),
        *border(first, (large,)),
        *rates(first, large),
        *(cell for seed in SEEDS[1:] for cell in others(first, seed, large)),
    ]
    return Grid(GPU, tasks, with_needs(cells))


def smoke() -> Grid:
    tasks = ("charts", "arithmetic")
    cells = [Cell(task, method, "low", 1, "nano") for task in tasks for method in ("sft", "grpo", "dyme")]
    return Grid(SMOKE, tasks, with_needs(cells))


def with_needs(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells in their order, each once and behind what it needs."""
    out: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        for need in cell.needs:
            add(need)
        out.setdefault(cell.id, cell)

    for cell in cells:
        add(cell)
    return tuple(out.values())


GRIDS = {"cpu": cpu, "gpu": gpu, "smoke": smoke}
