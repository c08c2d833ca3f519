"""Geometry3KSource: Geometry3K (Lu et al. 2021, arXiv 2105.04165), a folder for each problem."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dyme.data.errors import DataError
from dyme.data.paths import existing_folder
from dyme.data.record import RecordSet
from dyme.data.rows import Item, Limit, Row, RowError, to_records
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
    limit: Limit = None
    """Use only the first problems, by number."""

    def read(self) -> RecordSet:
        """Records with four choices, whose kind is what is asked for (Length, Angle ...).

        Raises `DataError` when the folder holds no problem.
        """
        folder = existing_folder(self.path) / self.split
        problems = sorted(folder.glob(f"*/{PROBLEM}"), key=lambda file: (len(file.parent.name), file.parent.name))
        if not problems:
            found = ", ".join(geometry3k_splits(folder.parent)) or "none"
            raise DataError(f"{folder}: no */{PROBLEM}; correct path or split (splits in the folder: {found})")
        items = (Item(file, 1, file.read_bytes, f"{self.split}-{file.parent.name}") for file in problems)
        return to_records(folder, items, _convert, limit=self.limit)


def geometry3k_splits(root: Path) -> list[str]:
    """The splits that lie in the folder."""
    return [split for split in SPLITS if next((root / split).glob(f"*/{PROBLEM}"), None)]


def _convert(row: Row) -> Row:
    choices, letter = row.get("choices"), row.get("answer")
    if not isinstance(choices, list):
        raise RowError(f"no choices; its keys are {', '.join(row)}")
    letters = "ABCDEFGH"[: len(choices)]
    if not isinstance(letter, str) or len(letter) != 1 or letter not in letters:
        raise RowError(f"answer {letter!r} is not one of the letters {letters}")
    # the published files split the type into goal and graph, each a list; the goal says what the answer is
    kind = row.get("problem_type_goal") or row.get("problem_type")
    return {
        "question": row.get("problem_text"),
        "choices": choices,
        "answer": choices[letters.index(letter)],
        "image": DIAGRAM,
        "kind": ", ".join(map(str, kind)) if isinstance(kind, list) else kind,
    }
