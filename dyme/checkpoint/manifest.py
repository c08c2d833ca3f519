"""Manifest: the size and hash of every file of a checkpoint folder, and the check of a folder against it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_CHUNK = 1 << 24
_THREADS = 4  # files read at the same time by one rank


def share_of(files: Iterable[str], rank: int, world_size: int) -> list[str]:
    """The files that a rank hashes; all ranks together hash each once."""
    return sorted(files)[rank::world_size]


def files_in(folder: Path) -> list[str]:
    """Relative names of all files of a folder but the manifest."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def measure(folder: Path, files: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size (bytes) and BLAKE2b hash of new files, in threads. On return the files are synced to
    disk. Raises OSError."""
    names = list(files)
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: _entry(folder / name, flush=True), names), strict=True))


def write_manifest(folder: Path, entries: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    """Writes the last file of a checkpoint. `about`: its other keys. On return it is synced to disk."""
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({**about, "files": dict(sorted(entries.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def listed(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The entries of a manifest, and the errors of the manifest itself."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: {"size": entry["size"], "blake2b": entry["blake2b"]} for name, entry in files.items()}, []
    except FileNotFoundError:
        return {}, [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, [f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"]


def damage(folder: Path, entries: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each listed file that is missing or has changed; empty where all are as they were written."""
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda item: _wrong(folder / item[0], item[0], item[1]), entries.items())
        return [line for line in found if line]


def _wrong(path: Path, name: str, entry: dict[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{name} has {size} bytes instead of {entry['size']}"
        return "" if _entry(path) == entry else f"{name} has changed since it was written (hash)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error})"


def _entry(path: Path, *, flush: bool = False) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb", buffering=0) as file:
        if flush:  # older checkpoints are removed after this one, so it must be on the disk even if the power fails
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"size": path.stat().st_size, "blake2b": digest.hexdigest()}
