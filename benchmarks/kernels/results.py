"""The JSON that a measurement leaves, written so that a killed process loses nothing."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "transformers", "trl", "liger-kernel", "cut-cross-entropy", "quack-kernels", "deepspeed")


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": "cpu", "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    p = torch.cuda.get_device_properties(device)
    return {
        "device": p.name,
        "multiprocessors": p.multi_processor_count,
        "memory_gb": round(p.total_memory / 1e9, 1),
        "l2_mb": round(getattr(p, "L2_cache_size", 0) / 1e6, 1),
    }


def module_environment(**variables: str) -> dict[str, str]:
    """The environment of a process that runs a module of this repository."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}


def deepspeed_command(*arguments: str) -> list[str]:
    """A launch under DeepSpeed on a free port of this machine."""
    from torch.distributed.elastic.utils.distributed import get_free_port

    return [sys.executable, "-m", "deepspeed.launcher.runner", f"--master_port={get_free_port()}", *arguments]


def json_lines(module: str, *arguments: str, timeout: float | None = None) -> tuple[list[Any], str]:
    """What a module of this repository prints as lines of JSON in a process of its own, and "" or why it failed."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return [], f"no answer in {timeout} s"
    lines = []
    for line in done.stdout.splitlines():
        with suppress(ValueError):  # what libraries print
            lines.append(json.loads(line))
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines, said[-1][:200] if done.returncode else ""


def command() -> str:
    """As it was typed, without the path of the interpreter."""
    spec = sys.modules["__main__"].__spec__
    module = "" if spec is None else f"-m {spec.name.removesuffix('.__main__')}"
    return " ".join(["python", module or Path(sys.argv[0]).name, *map(shlex.quote, sys.argv[1:])])


def header(device: torch.device) -> dict[str, Any]:
    """What every file of results begins with."""
    return {
        "done": False,
        "command": command(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "hardware": hardware(device),
    }


def finite(value: Any) -> Any:
    """NaN and infinities as text: JSON has no other place for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def save(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(finite(data), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def reason(error: BaseException) -> str:
    """One line of an exception."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {text[:200]}"
