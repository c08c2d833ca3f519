"""DatasetSource: a Hugging Face `datasets` data set on disk, as `save_to_disk` writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image
from pydantic import Field

from dyme.data.errors import DataError, ImageError
from dyme.data.images import decode, decode_bytes
from dyme.data.paths import existing_folder
from dyme.data.record import LazyImage, RecordSet
from dyme.data.rows import FieldName, Item, Limit, Row, to_records
from dyme.settings.schema import Schema

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS_FILE = "dataset_dict.json"
STATE_FILE = "state.json"


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
        records = to_records(folder, items, lambda row: row, limit=self.limit, fields=self.fields)
        columns = _opened(folder).column_names
        for ours, theirs in self.fields.items():  # found here even where there is no row
            if theirs not in columns:
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
        return decode_bytes(cell["bytes"], name) if cell["bytes"] else decode(self.folder / cell["path"])


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
    from datasets import ClassLabel, Image, List
    from pyarrow.compute import list_value_length

    dataset = _opened(folder)
    features = dataset.features
    columns = [name for name in features if isinstance(features[name], Image)]
    pictures = {name: dataset.data.column(name).is_null().to_pylist() for name in columns}
    lists = {
        name: list_value_length(dataset.data.column(name)).to_pylist()
        for name, feature in features.items()
        if isinstance(feature, List) and isinstance(feature.feature, Image)
    }
    labels = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    words = dataset.select_columns([name for name in features if name not in pictures and name not in lists])
    # datasets counts no rows where it has no columns
    rows: Iterable[Row] = words if words.column_names else ({} for _ in range(len(dataset)))
    for index, row in enumerate(rows):
        for name, label in labels.items():
            row[name] = None if row[name] is None or row[name] < 0 else label.int2str(row[name])
        for name, empty in pictures.items():
            row[name] = None if empty[index] else LazyImage(draw=StoredPicture(folder, name, index))
        for name, lengths in lists.items():
            row[name] = [LazyImage(draw=StoredPicture(folder, name, index, at)) for at in range(lengths[index] or 0)]
        yield Item(folder, index + 1, row, f"{split}-{index + 1}")


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
    from datasets import Image, List

    held = _opened(folder).select_columns([column])
    raw = Image(decode=False)
    return held.cast_column(column, List(raw) if isinstance(held.features[column], List) else raw)
