"""DatasetSource: a Hugging Face `datasets` data set on disk, as `save_to_disk` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from pydantic import Field

from dyme.data.embedded import picture_or_path
from dyme.data.errors import DataError, ImageError
from dyme.data.images import check_header_bytes, decode
from dyme.data.layouts import with_our_keys
from dyme.data.paths import existing_folder
from dyme.data.record import LazyImage, RecordSet
from dyme.data.rows import FieldName, Item, Limit, Row, to_records
from dyme.settings.schema import Schema

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS_FILE = "dataset_dict.json"
STATE_FILE = "state.json"
_BATCH = 1000  # rows


class DatasetSource(Schema):
    """A folder written by `save_to_disk` of Hugging Face datasets, of one data set or of one for each split."""

    source: Literal["dataset"] = "dataset"
    path: str
    """The folder. `~` and environment variables are filled in."""
    split: str | None = None
    """Which split of a folder that holds several."""
    limit: Limit = None
    """Use only the first rows."""
    fields: dict[FieldName, str] = Field(default_factory=dict)
    """Our field names mapped to the columns of the data set, where these differ: {answer: label}."""

    def read(self) -> RecordSet:
        """Records of the data set. Pictures are decoded when they are loaded.

        Raises `DataError` when the folder holds no data set or not the split, or `fields` names a column it lacks.
        """
        folder = _folder_of_split(existing_folder(self.path), self.split)
        items = _items(folder, self.split or folder.name)
        records = to_records(folder, items, with_our_keys, limit=self.limit, fields=self.fields)
        columns = _opened(folder).column_names
        for ours, theirs in self.fields.items():  # found here even where there is no row
            if theirs and theirs not in columns:
                raise DataError(f"{folder}: fields.{ours} names the column {theirs!r}; it has {', '.join(columns)}")
        return records


@dataclass(frozen=True)
class StoredPicture:
    """Decodes the picture of one row, or the `at`-th of a list of pictures. Holds names only, so a record pickles
    without its data set."""

    folder: Path
    column: str
    row: int
    at: int | None = None

    def __call__(self) -> Image.Image:
        """The picture in RGB. Raises `ImageError` when it or the data set is damaged."""
        name = f"{self.folder}: row {self.row + 1}, column {self.column!r}"
        try:
            cell = _pictures(self.folder, self.column)[self.row][self.column]
            cell = cell if self.at is None else cell[self.at]
        except Exception as error:  # a folder that vanished or broke during a run costs its records, as a file does
            raise ImageError(f"{name}: cannot be read ({error}); write the data set again") from error
        found = picture_or_path(cell, self.folder, name)
        return found.load() if isinstance(found, LazyImage) else decode(found)


def splits_on_disk(root: Path) -> list[str] | None:
    """Names of the splits, [] for a single data set, None where the folder holds no data set."""
    if (root / SPLITS_FILE).is_file():
        return sorted(p.parent.name for p in root.glob(f"*/{STATE_FILE}"))
    return [] if (root / STATE_FILE).is_file() else None


def _folder_of_split(root: Path, split: str | None) -> Path:
    splits = splits_on_disk(root)
    if splits is None:
        raise DataError(f"{root}: holds neither {SPLITS_FILE} nor {STATE_FILE}; name a folder made by save_to_disk")
    if not splits and split is not None:
        raise DataError(f"{root}: is one data set without splits; leave out split ({split!r})")
    if splits and split not in splits:
        raise DataError(f"{root}: no split {split or ''!r}; set split to one of: {', '.join(splits)}")
    return root / (split or "")


def _items(folder: Path, split: str) -> Iterator[Item]:
    """Rows with a lazy picture in each picture column; class labels by name, as a model is to write them."""
    dataset = _opened(folder)
    features = dataset.features
    pictures = {name: _present(dataset, name) for name in features if _is_picture(dataset, name)}
    # sounds, films and pages need decoders that may be missing, and are no field of ours
    opaque = [name for name in features if name not in pictures and hasattr(features[name], "decode_example")]
    words = dataset.select_columns([name for name in features if name not in pictures and name not in opaque])
    for first in range(0, len(dataset), _BATCH):
        cells = _batch(words, range(first, min(first + _BATCH, len(dataset))))
        for index in range(first, min(first + _BATCH, len(dataset))):

            def row(index: int = index, at: int = index - first, cells: Row | None = cells) -> Row:
                held = words[index] if cells is None else {name: column[at] for name, column in cells.items()}
                named = {name: _named(features[name], cell) for name, cell in held.items()}
                shown = {name: _lazy(folder, name, index, given[index]) for name, given in pictures.items()}
                return {name: (named | shown).get(name) for name in features}

            yield Item(folder, index + 1, row, f"{split}-{index + 1}")


def _batch(words: Dataset, rows: range) -> Row | None:
    """The columns of some rows; None where a cell among them cannot be read, so that they are to be read one by one."""
    try:
        return words[rows.start : rows.stop] if words.column_names else {}
    except Exception:
        return None


def _element(feature: object) -> object:
    """What a column holds, one or a list of it."""
    from datasets import LargeList, List

    return feature.feature if isinstance(feature, (List, LargeList)) else feature


def _is_picture(dataset: Dataset, column: str) -> bool:
    """Whether a column holds pictures, one or a list a row: an `Image`, bytes and path as `Image` stores them, or bytes
    of which the first are a picture."""
    from datasets import Image, Value
    from pyarrow.compute import list_flatten

    feature = _element(dataset.features[column])
    if isinstance(feature, dict):
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    if not isinstance(feature, Value) or "binary" not in feature.dtype:
        return isinstance(feature, Image)
    cells = dataset.data.column(column)
    flat = list_flatten(cells) if hasattr(cells.type, "value_field") else cells
    there = _there(flat)
    if True not in there:
        return False
    try:
        return bool(check_header_bytes(flat[there.index(True)].as_py(), column))
    except ImageError:
        return False


def _present(dataset: Dataset, column: str) -> list[Any]:
    """Of each row whether it has a picture, or that of each picture in its list. Reads no picture."""
    from pyarrow.compute import list_flatten, list_value_length

    cells = dataset.data.column(column)
    if not hasattr(cells.type, "value_field"):
        return _there(cells)
    there = iter(_there(list_flatten(cells)))
    return [list(islice(there, length or 0)) for length in list_value_length(cells).to_pylist()]


def _there(cells: Any) -> list[bool]:
    """Whether each cell holds anything: bytes, or a structure with any of its parts."""
    from pyarrow.compute import is_valid, or_, struct_field

    parts = [field.name for field in cells.type] if hasattr(cells.type, "fields") else []
    held = [is_valid(struct_field(cells, name)) for name in parts] or [is_valid(cells)]
    return reduce(or_, held).to_pylist()


def _named(feature: object, cell: Any) -> object:
    """A cell with class labels by name, also in lists."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return None if cell is None or cell < 0 else feature.int2str(cell)
    inner = _element(feature)
    return [_named(inner, each) for each in cell] if inner is not feature and isinstance(cell, list) else cell


def _lazy(folder: Path, column: str, row: int, present: bool | list[bool]) -> object:
    def picture(there: bool, at: int | None = None) -> LazyImage | None:
        return LazyImage(draw=StoredPicture(folder, column, row, at)) if there else None

    return picture(present) if isinstance(present, bool) else [picture(there, at) for at, there in enumerate(present)]


@lru_cache(maxsize=8)
def _opened(folder: Path) -> Dataset:
    from datasets import load_from_disk  # takes a second to import and only this source needs it

    try:
        return load_from_disk(str(folder))
    except Exception as error:  # json, pyarrow and datasets raise many kinds of errors on damaged files
        raise DataError(f"{folder}: cannot be opened ({error}); write it again with save_to_disk") from error


@lru_cache(maxsize=8)
def _pictures(folder: Path, column: str) -> Dataset:
    """The picture column alone and undecoded: our own decoding rules hold for every source."""
    from datasets import Image, LargeList, List

    held = _opened(folder).select_columns([column])
    feature, raw = held.features[column], Image(decode=False)
    if not isinstance(_element(feature), Image):
        return held
    return held.cast_column(column, type(feature)(raw) if isinstance(feature, (List, LargeList)) else raw)
