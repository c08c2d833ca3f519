"""Runs configurations one after the other on one rank, as `launchers/train.py` does, and writes down what was said.

usage: python -m tests.programs.recorded JOBS.json
JOBS.json: [{"config": FILE, "overrides": [key.sub=value, ...], "log": FILE, "full": [words of the paths of DeepSpeed's
files and of exports that find no space on the disk, ...]}, ...]
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr


def main() -> None:
    import torch

    from dyme.checkpoint import store
    from dyme.config import load_config
    from dyme.engine.train_engine import init_distributed
    from dyme.fault_tolerance.launch import quiet
    from dyme.opening import open_run
    from dyme.trainer import train

    quiet()
    save, write_weights = torch.save, store._write_weights
    init_distributed(0)
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        with open(job["log"], "w", encoding="utf-8") as log, redirect_stderr(log):
            try:
                torch.manual_seed(0)  # each as in a process of its own
                torch.save = without_space(save, job.get("full", []))
                store._write_weights = without_space(write_weights, job.get("full", []))
                run = open_run(load_config(job["config"], job["overrides"]))
                groups = run.engine.ds.optimizer.optimizer.param_groups
                kept = [{key: group[key] for key in ("name", "weight_decay", "betas", "eps")} for group in groups]
                print(f"optimizer {json.dumps(kept)}", file=log)
                train(run)
            except Exception as error:  # the test reads it
                print(f"error: {type(error).__name__}: {error}", file=log)
    os._exit(0)


def without_space(write: Callable, words: list[str]) -> Callable:
    def written(value, path, **named) -> None:
        if any(word in str(path) for word in words):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(value, path, **named)

    return written


if __name__ == "__main__":
    main()
