"""Rows of parquet files. Pictures stay in the file until they are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dyme.data.embedded import picture_or_path
from dyme.data.errors import DataError, ImageError
from dyme.data.images import decode
from dyme.data.record import LazyImage
from dyme.data.rows import Item, Row
from dyme.text.printable import shortened

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH = 128  # rows
_BUFFER = 1 << 20  # bytes; by default pyarrow holds the whole column of a row group
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
        reason = shortened(str(error), 200)
        raise DataError(f"{path}: cannot be read as parquet ({reason}); download or write it again") from error


def _items(path: Path, file: pq.ParquetFile) -> Iterator[Item]:
    schema = file.schema_arrow
    labels = _label_names(schema)
    pictures = [field.name for field in schema if _is_picture(field.type) and not _holds_text(file, field.name)]
    number = 0
    for group in range(file.num_row_groups):
        within = 0
        read, bare = _leaves(file, group, pictures)
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=read):
            words = batch.select([name for name in batch.schema.names if name not in pictures])
            shown = {name: _present(batch.column(name), name in bare) for name in pictures}
            rows: list[Row] = words.to_pylist() if words.num_columns else [{} for _ in range(batch.num_rows)]
            for k, row in enumerate(rows):
                number += 1
                named = {name: _named(row[name], classes) for name, classes in labels.items() if name in row}
                cells = {name: _lazy(path, name, group, within + k, there[k]) for name, there in shown.items()}
                held = {name: _text(value) for name, value in (row | named | cells).items()}
                yield Item(path, number, held, f"{path.stem}-{number}")
            within += batch.num_rows


def _leaves(file: pq.ParquetFile, group: int, pictures: list[str]) -> tuple[list[str], set[str]]:
    """The leaves of the columns to read, and the picture columns among them that come without their bytes: where no
    bytes are missing, the path of {bytes, path} alone tells how many pictures there are."""
    held = file.metadata.row_group(group)
    chunks = [held.column(k) for k in range(held.num_columns)]
    leaves = [chunk.path_in_schema for chunk in chunks]
    bare = {
        chunk.path_in_schema
        for chunk in chunks
        if chunk.path_in_schema.endswith(".bytes")
        and (column := chunk.path_in_schema.split(".")[0]) in pictures
        and sum(leaf.split(".")[0] == column for leaf in leaves) > 1
        and chunk.statistics is not None
        and chunk.statistics.null_count == 0
    }
    return [leaf for leaf in leaves if leaf not in bare], {leaf.split(".")[0] for leaf in bare}


def _lazy(path: Path, column: str, group: int, row: int, there: bool | list[bool]) -> object:
    """A picture, None where there is none, or a list of these."""
    if isinstance(there, list):
        return [LazyImage(draw=ParquetPicture(path, column, group, row, k)) if t else None for k, t in enumerate(there)]
    return LazyImage(draw=ParquetPicture(path, column, group, row)) if there else None


def _present(column: pa.Array, bare: bool) -> list[Any]:
    """Of each row whether it has a picture, or that of each picture in its list. `bare`: the bytes were not read."""
    import pyarrow as pa
    from pyarrow.compute import list_flatten, list_value_length

    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _there(column, bare)
    there = iter(_there(list_flatten(column), bare))
    return [list(islice(there, length or 0)) for length in list_value_length(column).to_pylist()]


def _there(cells: pa.Array, bare: bool) -> list[bool]:
    import pyarrow as pa
    from pyarrow.compute import is_valid, or_, struct_field

    if bare or not pa.types.is_struct(cells.type):
        return list(is_valid(cells).to_pylist())
    names = [cells.type.field(k).name for k in range(cells.type.num_fields)]
    parts = [is_valid(struct_field(cells, name)) for name in names if name in ("bytes", "path")]
    return list(reduce(or_, parts).to_pylist())


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
    status = path.stat()
    stamp = status.st_mtime_ns, status.st_size  # a file that was written again is another one
    if _size(path, column, group, stamp) <= _KEPT:
        return _group(path, column, group, stamp)[row].as_py()
    with _opened(path) as file:
        start = 0
        for batch in file.iter_batches(8, row_groups=[group], columns=[column]):
            if row < start + batch.num_rows:
                return batch.column(0)[row - start].as_py()
            start += batch.num_rows
    raise IndexError(f"the row group has {start} rows")


@lru_cache(maxsize=4)
def _group(path: Path, column: str, group: int, stamp: tuple[int, int]) -> pa.ChunkedArray:
    with _opened(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)


@lru_cache(maxsize=1024)
def _size(path: Path, column: str, group: int, stamp: tuple[int, int]) -> int:
    """Bytes of a column in a row group, uncompressed."""
    with _opened(path) as file:
        held = file.metadata.row_group(group)
        chunks = (held.column(k) for k in range(held.num_columns))
        return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _opened(path: Path) -> pq.ParquetFile:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)
