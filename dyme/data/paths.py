"""Paths as users write them in configurations."""

from __future__ import annotations

from pathlib import Path

from dyme.data.errors import DataError
from dyme.settings import paths


def expand(text: str) -> Path:
    """`~` and environment variables (`$NAME`, `${NAME}`) filled in; relative paths stay relative to the working folder.

    Raises `DataError` naming a variable that is not set.
    """
    try:
        return Path(paths.expand(text))
    except ValueError as error:
        raise DataError(str(error)) from None


def existing_file(text: str, mend: str = "name a .jsonl file, or use source: imagefolder") -> Path:
    """The expanded path of a file. Raises `DataError`, with `mend` where it is a folder, when there is none."""
    path = expand(text)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; {mend}")
    if not path.is_file():
        raise DataError(f"{path}: no such file (working folder {Path.cwd()}); correct data path")
    return path


def existing_folder(text: str, setting: str = "path") -> Path:
    """The expanded path of a folder that the key `setting` names. Raises `DataError` when there is none."""
    path = expand(text)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder (working folder {Path.cwd()}); correct data {setting}")
    return path
