"""Space: writes that fail on one rank are noted, so that all ranks give a checkpoint up together, and why is said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


class SaveError(Exception):
    """A checkpoint that was not written and left nothing behind; the message names the disk, free and needed bytes."""


@contextmanager
def noting(failed: list[str]) -> Iterator[None]:
    """Adds the reason why a write in the body failed to `failed`, and goes on. Hold no collective in the body."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch's writer raises RuntimeError on a full disk
        told = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        failed.append(" ".join(told.split())[:200] or type(error).__name__)


@contextmanager
def noting_writes(ds: Any, failed: list[str]) -> Iterator[None]:
    """The same for the writes of a DeepSpeed engine in its `save_checkpoint`: between them its ranks wait for each
    other, so a failed one must not end a rank alone."""
    places = ((ds.checkpoint_engine, "save"), (ds, "_copy_recovery_script"))

    def noted(write: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            with noting(failed):
                return write(*arguments, **named)

        return call

    for owner, name in places:
        setattr(owner, name, noted(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in places:
            delattr(owner, name)


def shortage(folder: Path, needed: int) -> str:
    """The disk of an existing folder, its free bytes and those needed, in words. Raises OSError."""
    disk = folder.resolve()
    while not disk.is_mount():
        disk = disk.parent
    free = shutil.disk_usage(folder).free
    return f"the disk of {folder} ({disk}) has {free:,} bytes free, needed are {needed:,}"


def has_room(folder: Path, needed: int) -> bool:
    """Whether the disk of an existing folder has so many bytes free. Raises OSError."""
    return shutil.disk_usage(folder).free >= needed
