"""VQARadSource: VQA-RAD (Lau et al. 2018, doi 10.1038/sdata.2018.251), the published JSON beside its picture folder."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from dyme.data.paths import existing_file, existing_folder
from dyme.data.recordset import RecordSet
from dyme.data.rows import Row, RowError, list_items, to_records
from dyme.settings.schema import Schema

Split = Literal["train", "test", "all"]


class VQARadSource(Schema):
    """VQA_RAD Dataset Public.json. Its test questions are those whose phrase_type starts with test."""

    source: Literal["vqa_rad"] = "vqa_rad"
    path: str
    """The JSON list. `~` and environment variables are filled in."""
    images: str | None = None
    """Folder of the pictures (default: "VQA_RAD Image Folder" beside the file)."""
    split: Split = "all"
    """Official training questions, official test questions, or all."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows of the split."""


def read_vqa_rad(config: VQARadSource) -> RecordSet:
    """Records whose kind is the question type (PRES, POS ...). Raises `DataError` when file or folder is missing."""
    file = existing_file(config.path, "name the JSON file in it")
    folder = config.images or str(file.parent / "VQA_RAD Image Folder")
    convert = partial(_convert, split=config.split)
    pictures = existing_folder(folder, "images")
    return to_records(file, list_items(file), convert, limit=config.limit, pictures=pictures)


def _convert(row: Row, split: Split) -> Row | None:
    if split != "all":
        phrase = row.get("phrase_type")
        if not isinstance(phrase, str):
            raise RowError("no phrase_type, which says what is test; use split: all")
        if phrase.startswith("test") != (split == "test"):
            return None
    if not row.get("image_name"):
        raise RowError(f"no image_name; its keys are {', '.join(row)}")
    return {
        "question": row.get("question"),
        "answer": row.get("answer"),
        "image": row["image_name"],
        "kind": row.get("question_type"),
    }
