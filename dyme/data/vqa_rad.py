"""VQARadSource: VQA-RAD (Lau et al. 2018, doi 10.1038/sdata.2018.251), the published JSON beside its picture folder."""

from __future__ import annotations

from typing import Literal

from dyme.data.paths import existing_file, existing_folder
from dyme.data.record import RecordSet
from dyme.data.rows import Limit, Row, RowError, list_items, needed, to_records
from dyme.settings.schema import Schema


class VQARadSource(Schema):
    """VQA_RAD Dataset Public.json. Its test questions are those whose phrase_type starts with test."""

    source: Literal["vqa_rad"] = "vqa_rad"
    path: str
    """The JSON list. `~` and environment variables are filled in."""
    images: str | None = None
    """Folder of the pictures (default: "VQA_RAD Image Folder" beside the file)."""
    split: Literal["train", "test", "all"] = "all"
    """Official training questions, official test questions, or all."""
    limit: Limit = None
    """Use only the first rows of the split."""

    def read(self) -> RecordSet:
        """Records by question type (PRES, POS ...). Raises `DataError` when file or folder is missing."""
        file = existing_file(self.path, "name the JSON file in it")
        pictures = existing_folder(self.images or str(file.parent / "VQA_RAD Image Folder"), "images")
        return to_records(file, list_items(file), self._convert, limit=self.limit, pictures=pictures)

    def _convert(self, row: Row) -> Row | None:
        if self.split != "all":
            phrase = row.get("phrase_type")
            if not isinstance(phrase, str):
                raise RowError("no phrase_type, which says what is test; use split: all")
            if phrase.startswith("test") != (self.split == "test"):
                return None
        return {
            "question": row.get("question"),
            "answer": row.get("answer"),
            "image": needed(row, "image_name"),
            "kind": row.get("question_type"),
        }
