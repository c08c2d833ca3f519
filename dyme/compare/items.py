"""Items: records with their replies, read from the items.jsonl of an evaluation folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyme.evaluation.files import COLUMNS, ITEMS, SUMMARY
from dyme.text.json_lines import read_jsonl


class CompareError(Exception):
    """Evaluations that cannot be compared; the message names the file or item and the mend."""


@dataclass(frozen=True)
class Reply:
    """One completion of an item. `score` in [0, 1] is 0 for an invalid format; None where the verifier failed."""

    completion: str
    thinking: str
    answer: str
    correct: bool
    format: bool
    guessed: bool
    truncated: bool
    score: float | None
    faithfulness: float | None


@dataclass(frozen=True)
class Item:
    """One record and the replies to it, by column (think, direct); one reply where decoding was greedy."""

    id: str
    kind: str
    question: str
    gold: tuple[str, ...]
    image: str | None
    columns: Mapping[str, tuple[Reply, ...]]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder. `items` by id in data order; `failed` has the error of each bad record."""

    folder: Path
    items: Mapping[str, Item]
    failed: Mapping[str, str]
    finished: bool


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation of a run folder or evaluation folder. Raises `CompareError`."""
    again = "make the file again with launchers/evaluate.py"
    if not path.is_dir():
        raise CompareError(f"{path}: no such folder; give a run folder or its evaluation folder")
    folder = path if (path / ITEMS).is_file() else path / "evaluation"
    file = folder / ITEMS
    if not file.is_file():
        raise CompareError(
            f"{path}: holds no {ITEMS}, nor does its evaluation folder; make it with launchers/evaluate.py"
        )
    try:
        rows = read_jsonl(file)
    except ValueError as error:
        raise CompareError(str(error)) from None
    items: dict[str, Item] = {}
    failed: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{file}:{number}"
        name = row.get("id")
        if not isinstance(name, str):
            raise CompareError(f"{where}: has no id; {again}")
        if name in items or name in failed:
            raise CompareError(f"{where}: the id {name} occurs twice; {again}")
        if "error" in row:
            failed[name] = str(row["error"])
        else:
            items[name] = _item(row, name, where)
    if not items:
        raise CompareError(f"{file}: holds no answered item; evaluate the run again with launchers/evaluate.py")
    return Evaluation(folder, items, failed, (folder / SUMMARY).is_file())


def _item(row: Mapping[str, Any], name: str, where: str) -> Item:
    columns = {key: row[key] for key in COLUMNS if row.get(key)}
    if not columns:
        raise CompareError(f"{where}: item {name} has neither {' nor '.join(COLUMNS)}; evaluate again")
    gold = row.get("gold") or []
    return Item(
        id=name,
        kind=str(row.get("kind") or ""),
        question=str(row.get("question") or ""),
        gold=tuple(map(str, gold if isinstance(gold, list) else [gold])),
        image=None if row.get("image") is None else str(row["image"]),
        columns={key: _replies(entries, f"{where}: {key} of item {name}") for key, entries in columns.items()},
    )


def _replies(entries: Any, where: str) -> tuple[Reply, ...]:
    if not isinstance(entries, Sequence) or not all(isinstance(e, dict) and "correct" in e for e in entries):
        raise CompareError(f"{where}: is no list of answers with correct; make the file again")
    return tuple(
        Reply(
            completion=str(entry.get("completion") or ""),
            thinking=str(entry.get("thinking") or ""),
            answer=str(entry.get("answer") or ""),
            correct=bool(entry["correct"]),
            format=bool(entry.get("format")),
            guessed=bool(entry.get("guessed")),
            truncated=bool(entry.get("truncated")),
            score=_number(entry, "score", where),
            faithfulness=_number(entry, "faithfulness", where),
        )
        for entry in entries
    )


def _number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise CompareError(f"{where}: {key} is {value!r:.40}, not a number from 0 to 1; make the file again")
    return float(value)
