"""A training run in which the loss of the last rank is NaN in some steps: nan_step.py CONFIG RUN_DIR FIRST
COUNT_END."""

from __future__ import annotations

import os
import sys

from dyme import trainer
from dyme.config import load_config
from dyme.engine.train_engine import close_distributed, init_distributed
from dyme.opening import open_run
from dyme.run import Run

config, folder, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
cfg = load_config(config, [f"run.dir={folder}"])
init_distributed(cfg.run.seed)
run = open_run(cfg)
at = {"step": 0}
train_step, forward_backward = trainer.train_step, run.engine.forward_backward


def counted(run: Run, step: int) -> dict:
    at["step"] = step + 1
    return train_step(run, step)


def poisoned(batch, inputs, *, last: bool, _last=last):
    if first <= at["step"] <= _last and run.engine.rank == run.engine.world_size - 1:
        inputs = type(inputs)(inputs.advantages, inputs.weights * float("nan"), inputs.memorize)
    return forward_backward(batch, inputs, last=last)


trainer.train_step = counted
run.engine.forward_backward = poisoned
try:
    trainer.train(run)
except RuntimeError as error:
    print(error, flush=True)
close_distributed()
os._exit(0)
