"""Runs configurations one after the other in this process, each as `launchers/train.py` does.

usage: torchrun --nproc_per_node N -m tests.programs.configs JOBS.json
JOBS.json: [{"config": FILE, "overrides": [key.sub=value, ...]}, ...]
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import torch


def main() -> None:
    from dyme.config import load_config
    from dyme.engine.train_engine import close_distributed, init_distributed
    from dyme.fault_tolerance.launch import quiet
    from dyme.opening import open_run
    from dyme.trainer import train

    quiet()
    init_distributed(0)
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        try:
            cfg = load_config(job["config"], job["overrides"])
            torch.manual_seed(cfg.run.seed)
            train(open_run(cfg))
        except Exception:  # the others still run; the test finds that this one did not finish
            traceback.print_exc()
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
