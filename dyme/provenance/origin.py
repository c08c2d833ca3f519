"""Origin: the code, the command and the machine of a start."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import dyme

_GIT_S = 20.0


def code_version(root: Path | None = None) -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether tracked files differ from it; None outside git.
    `root`: the folder that holds the package."""
    root = root or Path(dyme.__path__[0]).parent
    # an environment may lie in somebody else's repository, which does not track the installed package
    if _git(root, "ls-files", "--error-unmatch", "dyme/__init__.py") is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit.strip(), "dirty": changed is None or bool(changed.strip())}


def command(ranks: int) -> str:
    """The command line of this process, as a user would type it."""
    arguments = [argument for argument in sys.argv if not argument.startswith("--local_rank")]
    return " ".join(["deepspeed", f"--num_gpus {ranks}", *arguments])


def origin(ranks: int) -> dict[str, Any]:
    """Host, system, ranks, command and code of this start, as JSON."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "ranks": ranks,
        "command": command(ranks),
        "code": code_version(),
    }


def _git(root: Path, *arguments: str) -> str | None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "--no-optional-locks", *arguments],
            capture_output=True, text=True, env=clean, timeout=_GIT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
