"""Programs in other processes: their environment, and how to start them on several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """Of a launched program: like a user's, so without Triton's interpreter, and without the process group that a test
    in this process may have joined."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    bin_dir = str(Path(sys.executable).parent)
    ours = {"TRITON_INTERPRET", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return inherited | {
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "PATH": bin_dir + os.pathsep + os.environ["PATH"],
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def run_on_ranks(n: int, program: str, *arguments: object, timeout: float = 300) -> str:
    """Runs a program of tests/programs on n ranks through torchrun; returns its output, fails with it when a rank
    fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    command += ["-m", f"tests.programs.{program}", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def launch(
    *arguments: object,
    ranks: int = 2,
    timeout: float = 300,
    check: bool = True,
    launcher: str = "train.py",
) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus N launchers/train.py ...` (or another launcher) as a user types it."""
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    port = 20000 + os.getpid() % 20000
    command = [deepspeed, f"--num_gpus={ranks}", f"--master_port={port}", f"launchers/{launcher}", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    if check:
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done
