"""Rows of parquet files. Pictures stay in the file until they are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dyme.data.embedded import picture_or_path
from dyme.data.errors import DataError, ImageError
from dyme.data.images import decode
from dyme.data.record import LazyImage
from dyme.data.rows import Item, Row

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 256  # rows
_KEPT = 128 << 20  # bytes of a column's row group that stay in memory for the next picture


@dataclass(frozen=True)
class ParquetPicture:
    """Decodes the picture of one row, or the `at`-th of a list. Holds names and numbers only, so a record pickles
    without its file. `row` counts within the row group."""

    file: Path
    column: str
    group: int
    row: int
    at: int | None = None

    def __call__(self) -> Image.Image:
        """The picture in RGB. Raises `ImageError` when it or the file is damaged."""
        name = f"{self.file}: row group {self.group}, row {self.row}, column {self.column!r}"
        try:
            cell = _cell(self.file, self.column, self.group, self.row)
            cell = cell if self.at is None else cell[self.at]
        except Exception as error:  # a file that vanished or broke during a run costs its records
            raise ImageError(f"{name}: cannot be read ({error}); write the file again") from error
        found = picture_or_path(cell, self.file.parent, name)
        return found.load() if isinstance(found, LazyImage) else decode(found)


def parquet_items(path: Path) -> Iterator[Item]:
    """The rows in order, counted from 1, with a lazy picture in each picture column; class labels by name.

    Only the other columns are read. Raises `DataError` when the file is damaged.
    """
    try:
        with _opened(path) as file:
            yield from _items(path, file)
    except Exception as error:  # pyarrow raises many kinds of errors on damaged files
        raise DataError(f"{path}: cannot be read as parquet ({error}); download or write it again") from error


def _items(path: Path, file: pq.ParquetFile) -> Iterator[Item]:
    schema = file.schema_arrow
    labels = _label_names(schema)
    pictures = [field.name for field in schema if _is_picture(field.type) and not _holds_text(file, field.name)]
    leaves = [file.schema.column(k).path for k in range(len(file.schema))]
    # of {bytes, path} the path alone tells whether there is a picture
    read = [leaf for leaf in leaves if not (leaf.split(".")[0] in pictures and leaf.endswith(".bytes"))]
    read += [f"{name}.bytes" for name in pictures if not any(leaf.split(".")[0] == name for leaf in read)]
    number = 0
    for group in range(file.num_row_groups):
        within = 0
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=read):
            words = batch.select([name for name in batch.schema.names if name not in pictures])
            shown = {name: _lengths(batch.column(name)) for name in pictures}
            rows: list[Row] = words.to_pylist() if words.num_columns else [{} for _ in range(batch.num_rows)]
            for k, row in enumerate(rows):
                number += 1
                for name, classes in labels.items():
                    row[name] = _named(row.get(name), classes)
                for name, lengths in shown.items():
                    row[name] = _lazy(ParquetPicture(path, name, group, within + k), lengths[k])
                yield Item(path, number, {key: _text(value) for key, value in row.items()}, f"{path.stem}-{number}")
            within += batch.num_rows


def _lazy(picture: ParquetPicture, length: int | None) -> object:
    """None, one picture (length -1) or a list of them."""
    if length is None:
        return None
    if length < 0:
        return LazyImage(draw=picture)
    return [
        LazyImage(draw=ParquetPicture(picture.file, picture.column, picture.group, picture.row, at))
        for at in range(length)
    ]


def _lengths(column: pa.Array) -> list[int | None]:
    import pyarrow as pa
    from pyarrow.compute import list_value_length

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return list(list_value_length(column).to_pylist())
    return [None if empty else -1 for empty in column.is_null().to_pylist()]


def _is_picture(kind: pa.DataType) -> bool:
    """{bytes, path} or bytes, or a list of these."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        held = {kind.field(k).name: kind.field(k).type for k in range(kind.num_fields)}
        return "bytes" in held and _is_picture(held["bytes"])
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_text(file: pq.ParquetFile, name: str) -> bool:
    """Some writers do not mark text as text. No picture file is valid UTF-8."""
    import pyarrow as pa

    kind = file.schema_arrow.field(name).type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return False
    for batch in file.iter_batches(8, columns=[name]):
        for value in batch.column(0).to_pylist():
            if value:
                return isinstance(_text(value), str)
    return False


def _text(value: object) -> object:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes of each column of class labels, or of lists of them, as `datasets` notes in the schema."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface") or b"{}")
    found = {}
    for name, feature in noted.get("info", {}).get("features", {}).items():
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature", inner) if isinstance(inner, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[name] = list(inner["names"])
    return found


def _named(value: Any, classes: list[str]) -> object:
    if isinstance(value, list):
        return [_named(entry, classes) for entry in value]
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else None


def _cell(path: Path, column: str, group: int, row: int) -> Any:
    if _size(path, column, group) <= _KEPT:
        return _group(path, column, group)[row].as_py()
    with _opened(path) as file:
        start = 0
        for batch in file.iter_batches(8, row_groups=[group], columns=[column]):
            if row < start + batch.num_rows:
                return batch.column(0)[row - start].as_py()
            start += batch.num_rows
    raise IndexError(f"the row group has {start} rows")


@lru_cache(maxsize=4)
def _group(path: Path, column: str, group: int) -> pa.ChunkedArray:
    with _opened(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)


@lru_cache(maxsize=1024)
def _size(path: Path, column: str, group: int) -> int:
    """Bytes of a column in a row group, uncompressed."""
    with _opened(path) as file:
        held = file.metadata.row_group(group)
        chunks = (held.column(k) for k in range(held.num_columns))
        return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _opened(path: Path) -> pq.ParquetFile:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, memory_map=True)
