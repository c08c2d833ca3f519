"""What a file or folder holds, guessed by its layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dyme.data.chartqa import ChartQASource, chartqa_splits
from dyme.data.dataset import SPLITS_FILE, STATE_FILE, DatasetSource, splits_on_disk
from dyme.data.errors import DataError
from dyme.data.gsm8k import FLAG, Gsm8kSource
from dyme.data.imagefolder import METADATA, ImageFolderSource, splits_of
from dyme.data.jsonl import JsonlSource
from dyme.data.sources import SourceConfig

FORMS = "a .jsonl file, a data set in its published layout, a run YAML, or source:key=value,key=value"


@dataclass(frozen=True)
class NamedSource:
    """`label` says what the source is and, where it was guessed, from what."""

    label: str
    source: SourceConfig


def guess_folder(path: Path) -> list[NamedSource]:
    """A source for each split of the folder. Raises `DataError` when its layout is none that is known."""
    if (path / METADATA).is_file():
        return [_named(ImageFolderSource(path=str(path)), path, METADATA)]
    if splits_of(path):
        return [
            _named(ImageFolderSource(path=str(path), split=s), f"{path}, split {s}", f"{s}/{METADATA}")
            for s in splits_of(path)
        ]
    stored = splits_on_disk(path)
    if stored is not None:
        return [_named(DatasetSource(path=str(path), split=s), f"{path}, split {s}", SPLITS_FILE) for s in stored] or [
            _named(DatasetSource(path=str(path)), path, STATE_FILE)
        ]
    published = _published(path)
    if not published:
        raise DataError(
            f"{path}: neither the folder nor a subfolder holds {METADATA}, nor is it laid out as a data set that is "
            f"known; give {FORMS}"
        )
    return published


def guess_file(path: Path) -> NamedSource:
    """The source of a file: a JSON list by the keys of its first entry, anything else as JSONL."""
    if "gsm8k" in str(path).lower():
        return NamedSource(f"gsm8k {path} (guessed: by its name)", Gsm8kSource(path=str(path)))
    if _has_flag(path):
        return NamedSource(f"gsm8k {path} (guessed: the first answer has {FLAG!r})", Gsm8kSource(path=str(path)))
    return NamedSource(f"jsonl {path} (guessed: a file)", JsonlSource(path=str(path)))


def _published(path: Path) -> list[NamedSource]:
    return [
        _named(ChartQASource(path=str(path), split=s), f"{path}, split {s}", f"{s}/{s}_*.json")
        for s in ("train", "val", "test")
        if s in chartqa_splits(path)
    ]


def _named(source: SourceConfig, where: object, holds: str) -> NamedSource:
    return NamedSource(f"{source.source} {where} (guessed: it holds {holds})", source)


def _has_flag(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    try:
        row = json.loads(first)
    except ValueError:
        return False  # the reader reports the broken line
    return isinstance(row, dict) and FLAG in str(row.get("answer"))
