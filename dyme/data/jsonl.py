"""JsonlSource: one JSON object per line, with our keys or mapped ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dyme.data.layouts import with_our_keys
from dyme.data.paths import existing_file
from dyme.data.record import RecordSet
from dyme.data.rows import FieldName, Limit, read_rows
from dyme.settings.schema import Schema


class JsonlSource(Schema):
    """Rows with `question`, `answer` or `answers`, and optionally id, choices, hint, facts, image (file_name), kind."""

    source: Literal["jsonl"] = "jsonl"
    path: str
    """The file; images are relative to its folder. `~` and environment variables are filled in."""
    limit: Limit = None
    """Use only the first rows."""
    fields: dict[FieldName, str] = Field(default_factory=dict)
    """Our field names mapped to the keys of the file, where these differ: {answer: label}."""

    def read(self) -> RecordSet:
        """Records of the file. Raises `DataError` when it is missing or `fields` names a key that no row has."""
        return read_rows(existing_file(self.path), self.limit, self.fields, with_our_keys)
