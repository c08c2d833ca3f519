"""ChartQASource: the official ChartQA folder (Masry et al. 2022, arXiv 2203.10244)."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal

from dyme.data.errors import DataError
from dyme.data.paths import existing_folder
from dyme.data.record import RecordSet
from dyme.data.rows import FieldName, Item, Limit, Row, list_items, needed, to_records
from dyme.settings.schema import Schema

SPLITS = ("train", "val", "test")
PARTS = ("human", "augmented")


class ChartQASource(Schema):
    """The folder with train, val and test, each with png/ and one JSON list for each part."""

    source: Literal["chartqa"] = "chartqa"
    path: str
    """The folder that holds train, val and test. `~` and environment variables are filled in."""
    split: Literal["train", "val", "test"] = "train"
    """Which of the three."""
    part: Literal["human", "augmented", "both"] = "both"
    """Questions written by people, generated ones, or the first followed by the second."""
    hint_key: str | None = None
    """Key of a thinking trace, for files to which one was added; the published ones have none."""
    limit: Limit = None
    """Use only the first rows."""

    def read(self) -> RecordSet:
        """Records whose kind is their part. Raises `DataError` when a file is missing or no row has `hint_key`."""
        folder = existing_folder(self.path) / self.split
        parts = PARTS if self.part == "both" else (self.part,)
        items = chain.from_iterable(_items(folder, part) for part in parts)
        fields: dict[FieldName, str] = {} if self.hint_key is None else {"hint": self.hint_key}
        pictures = folder / "png"
        return to_records(
            folder, items, _convert, limit=self.limit, fields=fields, setting="hint_key", pictures=pictures
        )


def chartqa_splits(root: Path) -> list[str]:
    """The splits that lie in the folder."""
    return [split for split in SPLITS if any((root / split / f"{split}_{part}.json").is_file() for part in PARTS)]


def _items(folder: Path, part: str) -> list[Item]:
    file = folder / f"{folder.name}_{part}.json"
    if not file.is_file():
        found = ", ".join(chartqa_splits(folder.parent)) or "none"
        raise DataError(f"{file}: no such file; correct path, split or part (splits in the folder: {found})")
    return [replace(item, kind=part) for item in list_items(file)]


def _convert(row: Row) -> Row:
    return {
        "question": row.get("query"),
        "answer": row.get("label"),
        "image": needed(row, "imgname"),
        "hint": row.get("hint"),
    }
