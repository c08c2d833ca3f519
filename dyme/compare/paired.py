"""Paired comparison: the same items answered twice, as differences of means, a 2 x 2 table and a list of flips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dyme.compare.items import CompareError, Evaluation, Item, Reply
from dyme.config import changed_keys
from dyme.evaluation.files import COLUMNS, SETTINGS
from dyme.evaluation.statistics import Interval, mcnemar, paired_interval
from dyme.report.runs import distinct_names

NAMED = 12  # most settings that a note names
EXPECTED = ("run.dir", "model.content")  # settings that differ between any two runs


@dataclass(frozen=True)
class Answered:
    """One item and the replies to it on each side."""

    item: Item
    a: tuple[Reply, ...]
    b: tuple[Reply, ...]


@dataclass(frozen=True)
class Difference:
    """Means over `n` items on both sides, and the 95 % paired bootstrap interval of b - a (None below 2 items)."""

    n: int
    a: float
    b: float
    interval: Interval | None

    @property
    def delta(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Flip:
    """An item that one side alone got right. `gained`: B did."""

    answered: Answered
    gained: bool


@dataclass(frozen=True)
class Section:
    """One comparison. An item counts as right when more than half of its scored samples are.

    All but `faithfulness` is over the items scored on both sides; `unscored` counts the others. `accuracy` is over
    their mean scores. `p_value` is that of the exact McNemar test on `only_a` and `only_b`; with several samples an
    item, of the sign test on the items whose mean score is `lower` and `higher` in B. `kinds` is empty where there is
    one kind.
    """

    title: str
    samples: tuple[int, int]
    unscored: int
    accuracy: Difference | None
    both: int
    only_a: int
    only_b: int
    neither: int
    lower: int
    higher: int
    p_value: float
    kinds: tuple[tuple[str, Difference], ...]
    faithfulness: Difference | None
    flips: tuple[Flip, ...]

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def sampled(self) -> bool:
        return self.samples != (1, 1)


@dataclass(frozen=True)
class Comparison:
    """Names of side A and side B, notes on what is not in both, and a section for each column in both."""

    name_a: str
    name_b: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]


def compare_runs(a: Evaluation, b: Evaluation) -> Comparison:
    """Two evaluations of the same data. Raises `CompareError` when items differ under one id or none is in both."""
    folders = [_named_folder(evaluation) for evaluation in (a, b)]
    if folders[0].resolve() == folders[1].resolve():
        raise CompareError(f"{folders[0]} is given twice; give it once to compare its think and direct columns")
    common = [name for name in a.items if name in b.items]
    for name in common:
        _same_record(a.items[name], b.items[name])
    if not common:
        raise CompareError(f"{a.folder} and {b.folder} share no answered item; evaluate both on the same data")
    sections, notes = [], list(_notes(a, b, len(common)))
    for column in COLUMNS:
        answers = [
            (a.items[name], a.items[name].columns.get(column), b.items[name].columns.get(column)) for name in common
        ]
        pairs = [Answered(item, ours, theirs) for item, ours, theirs in answers if ours and theirs]
        lone = sum((ours is None) != (theirs is None) for _, ours, theirs in answers)
        notes += [f"{lone} items have the column {column} on one side only"] if lone else []
        if pairs:
            sections.append(_section(column, pairs))
    if not sections:
        names = ", ".join(COLUMNS)
        raise CompareError(f"{a.folder} and {b.folder} share no column ({names}); evaluate one of them again")
    name_a, name_b = distinct_names([folder.resolve() for folder in folders])
    return Comparison(name_a, name_b, tuple(notes), tuple(sections))


def compare_columns(run: Evaluation) -> Comparison:
    """The columns of one evaluation, direct as A and think as B. Raises `CompareError` when it has one of them only."""
    pairs = [
        Answered(item, item.columns["direct"], item.columns["think"])
        for item in run.items.values()
        if len(item.columns) == len(COLUMNS)
    ]
    if not pairs:
        raise CompareError(f"{run.folder} has not both of {', '.join(COLUMNS)}; name a second run to compare it with")
    lone = len(run.items) - len(pairs)
    notes = [f"{len(pairs)} items have both columns", *([f"{lone} have one of them only"] if lone else [])]
    notes += [f"{len(run.failed)} could not be asked"] if run.failed else []
    name = _named_folder(run).resolve().name
    section = _section("direct to think", pairs)
    return Comparison(f"{name}, direct", f"{name}, think", (*notes, *_unfinished(run)), (section,))


def is_right(replies: Sequence[Reply]) -> bool:
    """More than half of the scored samples are right."""
    return 2 * sum(reply.correct for reply in replies) > sum(reply.score is not None for reply in replies)


def _named_folder(evaluation: Evaluation) -> Path:
    folder = evaluation.folder
    return folder.parent if folder.resolve().name == "evaluation" else folder


def _same_record(a: Item, b: Item) -> None:
    for what, ours, theirs in (("question", a.question, b.question), ("gold answer", a.gold, b.gold)):
        if ours != theirs:
            raise CompareError(
                f"item {a.id} has another {what} in B ({theirs!r:.60}) than in A ({ours!r:.60}): "
                "not the same data, evaluate both on the same"
            )


def _notes(a: Evaluation, b: Evaluation, common: int) -> tuple[str, ...]:
    known_a, known_b = ({**e.items, **e.failed} for e in (a, b))
    only_a, only_b = sum(name not in known_b for name in known_a), sum(name not in known_a for name in known_b)
    told = [
        f"{common} items answered in both, {only_a} only in A, {only_b} only in B",
        *([f"{len(a.failed)} could not be asked in A, {len(b.failed)} in B"] if a.failed or b.failed else []),
    ]
    changed = _changed_settings(a.folder / SETTINGS, b.folder / SETTINGS)
    return (*told, *changed, *_unfinished(a), *_unfinished(b))


def _changed_settings(a: Path, b: Path) -> list[str]:
    """A note on settings of the evaluations that differ and may explain differences, such as limits of tokens."""
    if not (a.is_file() and b.is_file()):
        return []
    try:
        changed = changed_keys(a.read_text(encoding="utf-8"), b.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return [f"settings not compared: {' '.join(str(error).split())[:120]}"]
    told = [key for key in changed if key not in EXPECTED]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return [f"settings that differ: {', '.join(told[:NAMED])}{more}"] if told else []


def _unfinished(run: Evaluation) -> list[str]:
    return [] if run.finished else [f"{run.folder} has no summary.json: that evaluation may not be complete"]


def _section(title: str, pairs: Sequence[Answered]) -> Section:
    scored = [pair for pair in pairs if _score(pair.a) is not None and _score(pair.b) is not None]
    verdicts = [(is_right(pair.a), is_right(pair.b)) for pair in scored]
    only_a, only_b = verdicts.count((True, False)), verdicts.count((False, True))
    deltas = [(_score(pair.b) or 0.0) - (_score(pair.a) or 0.0) for pair in scored]
    lower, higher = sum(delta < 0 for delta in deltas), sum(delta > 0 for delta in deltas)
    samples = (max(len(pair.a) for pair in pairs), max(len(pair.b) for pair in pairs))
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for pair in scored:
        kinds[pair.item.kind].append(pair)
    by_kind = [(kind, _difference(kinds[kind], _score)) for kind in sorted(kinds)] if len(kinds) > 1 else []
    return Section(
        title=title,
        samples=samples,
        unscored=len(pairs) - len(scored),
        accuracy=_difference(scored, _score),
        both=verdicts.count((True, True)),
        only_a=only_a,
        only_b=only_b,
        neither=verdicts.count((False, False)),
        lower=lower,
        higher=higher,
        p_value=mcnemar(only_a, only_b) if samples == (1, 1) else mcnemar(lower, higher),
        kinds=tuple((kind, difference) for kind, difference in by_kind if difference is not None),
        faithfulness=_difference(pairs, _faithfulness),
        flips=tuple(Flip(pair, gained=b) for pair, (a, b) in zip(scored, verdicts, strict=True) if a != b),
    )


def _difference(pairs: Sequence[Answered], measure: Callable[[Sequence[Reply]], float | None]) -> Difference | None:
    """Over the items that have the measure on both sides; None where there is none."""
    both = [(x, y) for pair in pairs if (x := measure(pair.a)) is not None and (y := measure(pair.b)) is not None]
    if not both:
        return None
    a, b = [x for x, _ in both], [y for _, y in both]
    return Difference(len(both), sum(a) / len(a), sum(b) / len(b), paired_interval(a, b))


def _score(replies: Sequence[Reply]) -> float | None:
    return _mean([reply.score for reply in replies])


def _faithfulness(replies: Sequence[Reply]) -> float | None:
    return _mean([reply.faithfulness for reply in replies])


def _mean(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return sum(held) / len(held) if held else None
