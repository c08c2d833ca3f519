"""SlakeSource: SLAKE (Liu et al. 2021, arXiv 2102.09542), questions on medical pictures in English and Chinese."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from dyme.data.errors import DataError
from dyme.data.paths import existing_folder
from dyme.data.recordset import RecordSet
from dyme.data.rows import Row, RowError, list_items, to_records
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
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows of the language."""


def read_slake(config: SlakeSource) -> RecordSet:
    """Records whose kind is the content type (Organ, Modality ...). Raises `DataError` when the file is missing."""
    folder = existing_folder(config.path)
    file = folder / f"{config.split}.json"
    if not file.is_file():
        found = ", ".join(slake_splits(folder)) or "none"
        raise DataError(f"{file}: no such file; correct path or split (splits in the folder: {found})")
    convert = partial(_convert, language=config.language)
    return to_records(file, list_items(file), convert, limit=config.limit, pictures=folder / "imgs")


def slake_splits(root: Path) -> list[str]:
    """The splits that lie in the folder; none where it has no imgs."""
    return [s for s in SPLITS if (root / f"{s}.json").is_file()] if (root / "imgs").is_dir() else []


def _convert(row: Row, language: str) -> Row | None:
    if row.get("q_lang") is None:
        raise RowError(f"no q_lang; its keys are {', '.join(row)}")
    if row["q_lang"] != language:
        return None
    if not row.get("img_name"):
        raise RowError(f"no img_name; its keys are {', '.join(row)}")
    return {
        "question": row.get("question"),
        "answer": row.get("answer"),
        "image": row["img_name"],
        "kind": row.get("content_type"),
    }
