"""FilesSource: rows of parquet, csv, tsv, JSON and JSONL files, whatever layout from docs/data.md they have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import Field

from dyme.data.documents import columns_as_rows, lists_of_rows, read_json, rows_under_a_name
from dyme.data.errors import DataError, RowError
from dyme.data.layouts import with_our_keys
from dyme.data.parquet import parquet_items
from dyme.data.paths import existing_folder, expand
from dyme.data.record import RecordSet
from dyme.data.rows import FieldName, Item, Limit, line_items, to_records
from dyme.data.snapshot import missing_shards, splits_of_snapshot
from dyme.data.sniff import Format, format_of
from dyme.data.tables import table_items
from dyme.settings.schema import Schema
from dyme.text.printable import shortened


class FilesSource(Schema):
    """One file of rows, or a folder of such files, as in a snapshot of a hub. The format is told by the content."""

    source: Literal["files"] = "files"
    path: str
    """The file or folder. `~` and environment variables are filled in."""
    split: str | None = None
    """Which split of a folder that holds several."""
    config: str | None = None
    """Which configuration of a snapshot whose README.md has several."""
    images: str | None = None
    """Folder that image names are relative to (default: the folder of the file)."""
    format: Format | None = None
    """The format, where the content does not tell it: parquet, csv (also tsv), json or jsonl."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """The delimiter of a csv file (default: the one of , ; | and tab that splits the header into most columns)."""
    first_index: Literal[0, 1] = 0
    """The number of the first choice, where answers are given by number."""
    limit: Limit = None
    """Use only the first rows."""
    fields: dict[FieldName, str] = Field(default_factory=dict)
    """Our field names mapped to the keys of the file, where these differ: {answer: label}."""

    def read(self) -> RecordSet:
        """Records of the file or folder. Pictures in parquet files are read when they are loaded.

        Raises `DataError` when a file is missing or of another kind, when the split is unclear, and when `fields` names
        a key that no row has.
        """
        path = expand(self.path)
        if path.is_dir():
            files = self._of_folder(path)
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder (working folder {Path.cwd()}); correct data path")
        elif self.split or self.config:
            raise DataError(f"{path}: is one file; leave out split and config, or name the folder")
        else:
            files = [path]
        found = (file_items(f, self.format, self.delimiter) for f in files)
        items = chain(chain.from_iterable(found), map(_missing, missing_shards(files) if path.is_dir() else ()))
        pictures = existing_folder(self.images, "images") if self.images else None
        return to_records(
            path,
            items,
            with_our_keys,
            limit=self.limit,
            fields=self.fields,
            pictures=pictures,
            first_index=self.first_index,
        )

    def _of_folder(self, path: Path) -> list[Path]:
        splits = splits_of_snapshot(path, self.config)
        if self.split is None and len(splits) == 1:
            return next(iter(splits.values()))
        if self.split not in splits:
            raise DataError(f"{path}: no split {self.split or ''!r}; set split to one of: {', '.join(splits)}")
        return splits[self.split]


def _missing(shard: Path) -> Item:
    """A bad row for a shard of a split."""

    def refuse() -> None:
        raise RowError("this shard of the split is missing; download it")

    return Item(shard, 1, refuse, shard.stem)


def file_items(path: Path, kind: Format | None = None, delimiter: str | None = None) -> Iterator[Item]:
    """The rows of a file of any of the four formats. Raises `DataError` when it is none of them, or damaged."""
    kind = kind or ("csv" if delimiter else format_of(path))
    if kind == "parquet":
        return parquet_items(path)
    if kind == "csv":
        return table_items(path, delimiter)
    return document_items(path) if kind == "json" else line_items(path, path.stem)


def document_items(path: Path) -> Iterator[Item]:
    """The rows of a JSON document: a list; objects by id, whose key is the id; columns; or the one list of objects in
    it. Raises `DataError` for any other."""
    value = read_json(path)
    if isinstance(value, dict):
        several = lists_of_rows(value)
        if several:
            names = shortened(", ".join(several), 200)
            raise DataError(f"{path}: holds several lists of rows ({names}); write each to a file of its own")
        rows = rows_under_a_name(value) or columns_as_rows(value)
    else:
        rows = value
    if isinstance(rows, list):
        return (Item(path, number, entry, f"{path.stem}-{number}") for number, entry in enumerate(rows, 1))
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a JSON {type(value).__name__}, not rows; name another file")
    if not any(isinstance(entry, dict) for entry in value.values()):
        shown = shortened(", ".join(value), 200)
        raise DataError(f"{path}: a JSON object that holds no rows (its keys: {shown}); write a list of objects")
    return (
        Item(path, number, {**entry, "id": key} if isinstance(entry, dict) else entry, key)
        for number, (key, entry) in enumerate(value.items(), 1)
    )
