"""Geometry3KSource: Geometry3K (Lu et al. 2021, arXiv 2105.04165), a folder for each problem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from dyme.data.errors import DataError
from dyme.data.paths import existing_folder
from dyme.data.recordset import RecordSet
from dyme.data.rows import Item, Row, RowError, to_records
from dyme.settings.schema import Schema

SPLITS = ("train", "val", "test")
PROBLEM = "data.json"
DIAGRAM = "img_diagram.png"


class Geometry3KSource(Schema):
    """Folders train, val and test, in each one numbered folder a problem with data.json and img_diagram.png."""

    source: Literal["geometry3k"] = "geometry3k"
    path: str
    """The folder that holds train, val and test. `~` and environment variables are filled in."""
    split: Literal["train", "val", "test"] = "train"
    """Which of the three."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first problems, by number."""


def read_geometry3k(config: Geometry3KSource) -> RecordSet:
    """Records with four choices, whose kind is what is asked for (Length, Angle ...).

    Raises `DataError` when the folder holds no problem.
    """
    folder = existing_folder(config.path) / config.split
    problems = sorted(folder.glob(f"*/{PROBLEM}"), key=lambda file: (len(file.parent.name), file.parent.name))
    if not problems:
        found = ", ".join(geometry3k_splits(folder.parent)) or "none"
        raise DataError(f"{folder}: no */{PROBLEM}; correct path or split (splits in the folder: {found})")
    return to_records(folder, _items(problems, config.split), _convert, limit=config.limit)


def geometry3k_splits(root: Path) -> list[str]:
    """The splits that lie in the folder."""
    return [split for split in SPLITS if next((root / split).glob(f"*/{PROBLEM}"), None)]


def _items(problems: list[Path], split: str) -> Iterator[Item]:
    for file in problems:
        yield Item(file, 1, file.read_bytes(), f"{split}-{file.parent.name}")


def _convert(row: Row) -> Row:
    choices, letter = row.get("choices"), row.get("answer")
    if not isinstance(choices, list):
        raise RowError(f"no choices; its keys are {', '.join(row)}")
    letters = "ABCDEFGH"[: len(choices)]
    if not isinstance(letter, str) or len(letter) != 1 or letter not in letters:
        raise RowError(f"answer {letter!r} is not one of the letters {letters}")
    return {
        "question": row.get("problem_text"),
        "choices": choices,
        "answer": choices[letters.index(letter)],
        "image": DIAGRAM,
        "kind": _kind(row),
    }


def _kind(row: Row) -> object:
    """The published files split the type into goal and graph, each a list; the goal says what the answer is."""
    kind = row.get("problem_type_goal") or row.get("problem_type")
    return ", ".join(map(str, kind)) if isinstance(kind, list) else kind
