"""ImageFolderSource: the Hugging Face imagefolder layout, read by the lines of its metadata.

Iterating over lines, not images, keeps every question of a picture that several lines share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dyme.data.errors import DataError
from dyme.data.layouts import with_our_keys
from dyme.data.paths import existing_folder
from dyme.data.record import RecordSet
from dyme.data.rows import FieldName, Limit, Row, RowError, read_rows
from dyme.settings.schema import Schema

METADATA = "metadata.jsonl"


class ImageFolderSource(Schema):
    """A folder with metadata.jsonl, whose lines name their picture by `file_name`."""

    source: Literal["imagefolder"] = "imagefolder"
    path: str
    """The folder. `~` and environment variables are filled in."""
    split: str | None = None
    """Subfolder that holds metadata.jsonl, for folders with train and test side by side."""
    limit: Limit = None
    """Use only the first rows."""
    fields: dict[FieldName, str] = Field(default_factory=dict)
    """Our field names mapped to the keys of the file, where these differ: {answer: label}."""

    def read(self) -> RecordSet:
        """Records of the folder. Raises `DataError` when the folder or its metadata.jsonl is missing."""
        root = existing_folder(self.path)
        metadata = root / (self.split or "") / METADATA
        if not metadata.is_file():
            splits = ", ".join(splits_of(root))
            mend = f"set split to one of: {splits}" if splits else "write one line per question, with file_name"
            raise DataError(f"{metadata}: no such file; {mend}")
        return read_rows(metadata, self.limit, self.fields, _with_picture)


def splits_of(root: Path) -> list[str]:
    """Names of the subfolders that hold a metadata.jsonl."""
    return sorted(p.parent.name for p in root.glob(f"*/{METADATA}"))


def _with_picture(row: Row) -> Row:
    if not (row.get("file_name") or row.get("image")):
        raise RowError(f"no file_name; its keys are {', '.join(row)}")
    return with_our_keys(row)
