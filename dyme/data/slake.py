"""SlakeSource: SLAKE (Liu et al. 2021, arXiv 2102.09542), questions on medical pictures in English and Chinese."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dyme.data.errors import DataError
from dyme.data.paths import existing_folder
from dyme.data.record import RecordSet
from dyme.data.rows import Limit, Row, list_items, needed, to_records
from dyme.settings.schema import Schema

SPLITS = ("train", "validate", "test")


class SlakeSource(Schema):
    """The published folder: train.json, validate.json and test.json beside imgs/."""

    source: Literal["slake"] = "slake"
    path: str
    """The folder. `~` and environment variables are filled in."""
    split: Literal["train", "validate", "test"] = "train"
    """Which of the three."""
    language: Literal["en", "zh"] = "en"
    """Language of the questions; those in the other are left out."""
    limit: Limit = None
    """Use only the first rows of the language."""

    def read(self) -> RecordSet:
        """Records whose kind is the content type (Organ, Modality ...). Raises `DataError` when the file is missing."""
        folder = existing_folder(self.path)
        file = folder / f"{self.split}.json"
        if not file.is_file():
            found = ", ".join(slake_splits(folder)) or "none"
            raise DataError(f"{file}: no such file; correct path or split (splits in the folder: {found})")
        return to_records(file, list_items(file), self._convert, limit=self.limit, pictures=folder / "imgs")

    def _convert(self, row: Row) -> Row | None:
        if needed(row, "q_lang") != self.language:
            return None
        return {
            "question": row.get("question"),
            "answer": row.get("answer"),
            "image": needed(row, "img_name"),
            "kind": row.get("content_type"),
        }


def slake_splits(root: Path) -> list[str]:
    """The splits that lie in the folder; none where it has no imgs."""
    return [s for s in SPLITS if (root / f"{s}.json").is_file()] if (root / "imgs").is_dir() else []
