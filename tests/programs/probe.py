"""A rank that tells where it runs and whether it was warned. usage: (launcher) probe.py FOLDER

Writes FOLDER/rank<i>.json, and FOLDER/warned<i> on SIGUSR1; ends a second after that, or where FOLDER/stop appears.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "CROSS_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def main() -> None:
    folder = Path(sys.argv[-1])
    rank = os.environ["RANK"]
    warned = []
    signal.signal(signal.SIGUSR1, lambda *_: warned.append(True))
    told = {k: os.environ.get(k) for k in (*NAMES, "SLURMD_NODENAME", "SLURM_NODEID")}
    partial = folder / f"partial{rank}"
    partial.write_text(json.dumps({**told, "pid": os.getpid()}))
    partial.rename(folder / f"rank{rank}.json")
    while not warned and not (folder / "stop").exists():
        time.sleep(0.1)
    if warned:
        (folder / f"warned{rank}").touch()
        time.sleep(1)


if __name__ == "__main__":
    main()
