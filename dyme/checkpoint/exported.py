"""Exported: an export folder is removed for a newer one only as it was written; anything else is kept.

.export.json, beside the folder: size and modification time of the files that were written
"""

from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path


def note(folder: Path) -> None:
    """Remembers the files of a folder that was just written."""
    _listing(folder).write_text(json.dumps(_contents(folder)), encoding="utf-8")


def clear(folder: Path) -> Path | None:
    """Makes room for a new folder. Removes the old one if it is as it was when `note` saw it; otherwise renames it and
    returns its new place."""
    if not folder.exists():
        return None
    try:
        noted = json.loads(_listing(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = None
    if noted == _contents(folder):
        shutil.rmtree(folder)
        return None
    places = (folder.with_name(f"{folder.name}-kept-{number}") for number in count(1))
    return folder.rename(next(place for place in places if not place.exists()))


def level_modes(folder: Path) -> None:
    """Gives the weights the permissions of new files: safetensors writes them for the owner alone. Other files keep
    theirs."""
    usual = folder / ".mode"
    usual.touch()
    mode = usual.stat().st_mode
    usual.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def _listing(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.json")


def _contents(folder: Path) -> dict[str, list[int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        at = path.lstat()
        found[path.relative_to(folder).as_posix()] = [at.st_size, at.st_mtime_ns] if not path.is_dir() else []
    return found
