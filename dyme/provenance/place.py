"""Place: which folder a run may use. Nothing that DyME did not write is removed or overwritten.

A run takes a folder that does not exist yet, that is empty, or that already is a run's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from dyme.fault_tolerance.lock import LOCK, read_lock
from dyme.settings.errors import ConfigError

STARTS = "starts.jsonl"
"""One line for each start of the run; its presence says that the folder is a run's."""
BESIDE = frozenset(
    (
        "watchdog",
        "logs",
        ".preflight",
        "evaluation",
        "judge-cache",
        "deepspeed.log",
        "lost+found",
        ".gitkeep",
        ".gitignore",
    )
)
"""Entries that may lie in the folder of a run that never began: what a start leaves that was killed early, the logs of
a SLURM job, an evaluation of another model, and those of a new disk or repository."""
WRITTEN = (
    "config.yaml",
    "config_history.jsonl",
    "metrics.jsonl",
    "samples.jsonl",
    "modes.jsonl",
    "summary.json",
    STARTS,
)
_SHOWN = 3


def check_place(folder: Path, model: Path | None = None) -> None:
    """Raises `ConfigError` where a run must not use the folder. Changes nothing. `model`: that of `model.path`."""
    try:
        _check_place(folder, model)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"run.dir: {folder} cannot be used ({error}): choose another folder") from None


def _check_place(folder: Path, model: Path | None) -> None:
    full = folder.resolve()
    for place, what in ((Path(full.anchor), "the root of the file system"), (_home(), "your home folder")):
        if full == place:
            raise ConfigError(f"run.dir: {folder} is {what}: name a folder below it")
    if not full.exists():
        above = next(parent for parent in full.parents if parent.exists())
        if not above.is_dir():
            raise ConfigError(f"run.dir: {folder} lies below {above}, which is a file: choose another folder")
        return
    if not full.is_dir():
        raise ConfigError(f"run.dir: {folder} is a file: choose another folder")
    _check_links(folder)
    if model is not None and (full / "export") in (model.resolve(), *model.resolve().parents):
        raise ConfigError(
            f"run.dir: model.path lies in {folder / 'export'}, which this run replaces: choose another run.dir"
        )
    if not is_run(folder) and (foreign := sorted(_foreign(folder))):
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ConfigError(
            f"run.dir: {folder} holds files that are not a run's ({', '.join(foreign[:_SHOWN])}{more}): "
            "choose a new or an empty folder"
        )


def is_run(folder: Path) -> bool:
    """Whether a run has begun in the folder, or its checkpoints were copied there."""
    if (folder / STARTS).is_file() or read_lock(folder) is not None:
        return True
    if any(_is_manifest(path) for path in (folder / "checkpoints").glob("step-????????/manifest.json")):
        return True
    return (folder / "metrics.jsonl").is_file() and _is_settings(folder / "config.yaml")  # of an earlier version


def _is_manifest(path: Path) -> bool:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # damaged, which is said when it is verified
    return isinstance(held, dict) and "files" in held


def _is_settings(path: Path) -> bool:
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(held, dict) and {"model", "data", "run"} <= held.keys()


def _check_links(folder: Path) -> None:
    for name in WRITTEN:
        if (folder / name).is_symlink():
            raise ConfigError(f"run.dir: {folder / name} is a link, and a run writes this file: remove the link")
    export = folder / "export"
    if export.is_symlink() or (export.exists() and not export.is_dir()):
        raise ConfigError(
            f"run.dir: {export} must be a folder of its own, because a finished export is renamed to it: remove it, "
            "or make run.dir itself a link to the other disk"
        )
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"run.dir: {path} is a link to nothing: make what it names, or remove it")


def _foreign(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        empty_link = path.is_symlink() and path.is_dir() and not any(path.iterdir())  # prepared on another disk
        if path.name not in BESIDE and not path.name.startswith((".nfs", f".{LOCK}")) and not empty_link:
            yield path.name


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except RuntimeError:
        return None


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes the folder and its parents; where the body raises, those that it made are removed if they are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            try:
                path.rmdir()
            except OSError:
                break
        raise


def check_writable(folder: Path) -> None:
    """Makes the folder and writes a file in it. Raises `ConfigError`; then the folder is as before."""
    try:
        with made(folder):
            probe = folder / f".{LOCK}-{os.getpid()}-probe"
            probe.write_bytes(b"dyme\n")
            probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"run.dir: {folder} cannot be written ({error.strerror or error}): choose another folder, or free space"
        ) from None


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk of a folder that may not exist yet. Raises OSError."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
