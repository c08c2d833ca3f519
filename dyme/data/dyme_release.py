"""DymeReleaseSource: the JSON lists that the DyME reference release (arXiv 2506.23061) trains on."""

from __future__ import annotations

from typing import Literal

from dyme.data.paths import existing_file, existing_folder
from dyme.data.record import RecordSet
from dyme.data.rows import Limit, Row, list_items, to_records
from dyme.settings.schema import Schema


class DymeReleaseSource(Schema):
    """A JSON list of objects with question, question_wo_prompt, answer, hint and image."""

    source: Literal["dyme_release"] = "dyme_release"
    path: str
    """The JSON list. `~` and environment variables are filled in."""
    images: str | None = None
    """Folder that image names are relative to (default: the folder of the file)."""
    limit: Limit = None
    """Use only the first rows."""

    def read(self) -> RecordSet:
        """Records of the list. Raises `DataError` when the file or the folder is missing."""
        file = existing_file(self.path, "name the JSON file in it")
        pictures = existing_folder(self.images, "images") if self.images else None
        return to_records(file, list_items(file), _convert, limit=self.limit, pictures=pictures)


def _convert(row: Row) -> Row:
    """`question` has the prompt of the release in it; ours comes from the run configuration."""
    question = row.get("question_wo_prompt") or row.get("question")
    return {**{key: row.get(key) for key in ("id", "answer", "hint", "image")}, "question": question}
