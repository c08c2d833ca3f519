"""Task: where a suite's records come from, for the base, for stage 2 and for the splits that are measured."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dyme.data import Record, SourceConfig, load_records

Tree = dict[str, Any]
"""A data source as it stands in a configuration."""
Check = Callable[[str, Record], tuple[int, int]]
"""(thinking, record) -> readings that agree with what is to be seen, and all readings."""


@dataclass(frozen=True)
class Split:
    """A measured split: the first `count` records of a source whose facts hold one of the words `having`, each once."""

    source: Tree
    count: int
    having: tuple[str, ...] = ()

    def records(self) -> Sequence[Record]:
        """Raises `DataError` where the source cannot be read."""
        found: Sequence[Record] = load_records(TypeAdapter(SourceConfig).validate_python(self.source), 0.0)
        if self.having:
            found = [r for r in found if set(self.having) & set((r.facts or "").replace(",", "").split())]
        once: dict[Any, Record] = {}
        for record in found:
            once.setdefault((record.question, record.facts, record.image.path if record.image else None), record)
        return list(once.values())[: self.count]


@dataclass(frozen=True)
class Sizes:
    """Records of the splits that are measured."""

    validation: int
    test: int
    ood: int


@dataclass(frozen=True)
class Task:
    """`base(folder, steps, prompts)` is the source of the base, in its order.

    `train(folder, count, seed, trace, noise)` is that of stage 2; `noise` is the probability that a low trace holds a
    wrong reading. `held_out(folder, sizes)` has "validation" (drawn like training), "test" and the splits out of
    distribution: what the base has seen and stage 2 has not. Files are written into `folder`. `check` None: readings
    are numbers, as dyme evaluates them.
    """

    name: str
    base: Callable[[Path, int, int], Tree]
    train: Callable[[Path, int, int, str, float], Tree]
    held_out: Callable[[Path, Sizes], Mapping[str, Split]]
    tokenizer: Callable[[Path], Sequence[Tree]]
    traces: tuple[str, ...] = ("high", "medium", "low")
    family: str = "auto"
    picture: Mapping[str, int] = field(default_factory=dict)
    max_new_tokens: int = 48
    check: Check | None = None


CAPTION = "describe the picture."
CAPTIONS_FIRST, CAPTION_FRACTION = 0.2, 0.1
"""Parts of a base's records that ask for what is to be seen: all of the first fifth, then a tenth."""


def asks_for_facts(i: int, count: int, rng: random.Random) -> bool:
    """Whether record i of a base's `count` asks for what is to be seen."""
    return i < int(CAPTIONS_FIRST * count) or rng.random() < CAPTION_FRACTION


def split_of(folder: Path, task: str, name: str, count: int, rows: Callable[[], Sequence[Mapping[str, Any]]]) -> Split:
    """A measured split whose rows are written into a file of their own."""
    return Split(jsonl(folder / f"{task}-{name.replace(' ', '_')}-{count}.jsonl", rows), count)


def every_trace(train: Callable[[Path, int, int, str, float], Tree]) -> Callable[[Path], Sequence[Tree]]:
    """`Task.tokenizer` of a task with traces of three qualities, from its `train`."""
    return lambda folder: [train(folder, 1000, 0, trace, 0.3) for trace in ("high", "medium", "low")]


def jsonl(path: Path, rows: Callable[[], Sequence[Mapping[str, Any]]]) -> Tree:
    """The source of a file of rows, which is written unless it is there; many cells may ask at the same time."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
        partial.replace(path)
    return {"source": "jsonl", "path": str(path)}
